"""How structures become torch's flat arguments, and come back."""

from typing import NamedTuple

import pytest
import torch

from lepo_kernels import dispatch, linear_log_probs
from lepo_kernels.ops._library import OPS, _Layout
from lepo_kernels.structures import Head, Selection


class Pair(NamedTuple):
    left: int
    right: float


def test_what_is_unpacked_is_what_was_packed():
    layout = _Layout({"first": int, "pair": Pair, "last": str})
    values = (1, Pair(2, 3.0), "four")
    assert layout.pack(*values) == (1, 2, 3.0, "four")
    assert layout.unpack(layout.pack(*values)) == values
    assert type(layout.unpack((1, 2, 3.0, "four"))[1]) is Pair
    assert list(layout.flat.items()) == [("first", int), ("left", int), ("right", float),
                                         ("last", str)]  # fmt: skip


def test_two_arguments_of_one_name_are_refused():
    with pytest.raises(AssertionError, match="two arguments share a name"):
        _Layout({"left": int, "pair": Pair})


@pytest.mark.parametrize("op", dispatch.KERNELS)
def test_the_schema_of_every_op_ends_with_the_backend(op):
    schema = getattr(torch.ops.lepo_kernels, op).default._schema
    assert schema.arguments[-1].name == "backend"
    assert OPS[op].name == schema.name
    # Torch leaves out arguments at their defaults, and structures would get those of others.
    assert not any(argument.has_default_value() for argument in schema.arguments)


def test_kernels_get_structures(monkeypatch):
    seen = []

    def kernel(*arguments):
        seen.extend(arguments)
        return torch.zeros(2, 1), torch.zeros(2), torch.zeros(2)

    monkeypatch.setattr(dispatch, "load", lambda op, name: kernel)
    hidden, lm_head, ids = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, 1).long()
    linear_log_probs(hidden, lm_head, ids, softcap=2.0, chunk_size=7)
    head, selection, *rest = seen
    assert type(head) is Head
    assert type(selection) is Selection
    assert head.hidden.data_ptr() == hidden.data_ptr()
    assert (head.bias, head.softcap, rest) == (None, 2.0, [7, False])
