"""How far an update is from the exact one, and how far it may be.

Elements tell little in bfloat16: among those of a deep model's gradient some are always off by
several percent of the largest. The norm of a difference averages that out:
``|got - exact| / |exact|``. What rounding leaves of it differs from tensor to tensor, most where
terms cancel, in queries and keys; so ours is measured against what it leaves of the plain
implementation's, which is held to a bound itself.
"""

import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.end_to_end.exact import Exact

# By what is off: "loss" in shares of the mean absolute term, "norm" in shares of itself, and
# ("tensor", name) and ("block", name) for gradients. A block is what lies at one place of a layer:
# its attention, its MLP, its norms.
Errors = dict[tuple[str, str], float]

# Entries that are compared at a time.
_COMPARED = 1 << 24


@dataclass(frozen=True)
class Room:
    """What rounding may cost.

    Attributes:
        floor: where the plain implementation happens to be exact.
        block: of a block's gradients, where large tensors and many of them average.
        tensor: of any gradient.
    """

    floor: float
    block: float
    tensor: float

    def bound(self, what: tuple[str, str]) -> float:
        """The most that a right implementation is off."""
        return {"loss": self.floor, "tensor": self.tensor}.get(what[0], self.block)


# Where results are rounded to 8 bits, two roundings of one number, such as the norm, already are a
# floor of 2 / 256. Random models of 2 to 36 layers and widths of 32 to 2048 had blocks off by 0.8 %
# to 2.9 %, and tensors, the smallest biases of keys, by up to 8 %: twice and three times that. A
# gradient that is wrong by 10 % breaks the first, one that is missing or of another sign the
# second.
_HALF = Room(floor=0.01, block=0.06, tensor=0.25)
# The exact update is float32, too, and no better than those compared with it: all are off by 1e-7
# to 4e-6 there. Longer sums and other orders of them have room.
ROOM = {
    torch.float32: Room(floor=1e-4, block=1e-4, tensor=1e-3),
    torch.bfloat16: _HALF,
    torch.float16: _HALF,
}


def errors(
    exact: Exact,
    loss: Tensor,  # []
    norm: Tensor,  # []
    gradients: dict[str, Tensor],
) -> Errors:
    """Of a loss, of the norm of its gradients, and of the gradients after clipping."""
    found = {
        ("loss", ""): abs(float(loss) - exact.loss) / exact.size,
        ("norm", ""): abs(float(norm) - exact.norm) / exact.norm,
    }
    blocks: dict[str, list[Tensor]] = {}
    for name, want in exact.gradients.items():
        squares = _squares(gradients[name], want)
        found["tensor", name] = _ratio(squares)
        blocks.setdefault(_block(name), []).append(squares)
    for name, several in blocks.items():
        found["block", name] = _ratio(torch.stack(several).sum(dim=0))
    return found


def assert_as_good(got: Errors, usual: Errors, room: Room) -> None:
    """At most twice as far off as usual, which its bound limits, plus the floor."""
    of_kind: dict[tuple[str, str], list[float]] = {}
    for what, error in usual.items():
        of_kind.setdefault(_kind(what), []).append(error)
    for what, error in got.items():
        # The bias of one layer may be off by little, by luck; then what is usual in all layers
        # counts. Norms of errors of the same sums in other orders differed by a factor of up to
        # 1.2 in large tensors, and up to 1.8, rarely more, in biases of 32 entries.
        level = max(usual[what], statistics.fmean(of_kind[_kind(what)]))
        allowed = 2 * min(room.bound(what), level) + room.floor
        assert error <= allowed, f"{' '.join(what)}: off by {error:.2%}, {allowed:.2%} allowed"


def assert_right(got: Errors, room: Room) -> None:
    """Each within its bound."""
    for what, error in got.items():
        allowed = room.bound(what)
        assert error <= allowed, f"{' '.join(what)}: off by {error:.2%}, {allowed:.2%} allowed"


def _kind(what: tuple[str, str]) -> tuple[str, str]:
    """The same for what lies at one place in each layer."""
    return what[0], re.sub(r"\d+", "", what[1])


def _squares(got: Tensor, want: Tensor) -> Tensor:  # [2]
    """Of the norms of the difference and of what is wanted."""
    assert got.shape == want.shape, f"shape {list(got.shape)}, not {list(want.shape)}"
    return torch.stack([torch.stack(pair) for pair in _parts(got, want)]).sum(dim=0)


def _parts(got: Tensor, want: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    pieces = (x.detach().flatten().split(_COMPARED) for x in (got, want))
    for x, y in zip(*pieces, strict=True):
        exact = y.double()
        yield (x.double() - exact).square().sum(), exact.square().sum()


def _ratio(squares: Tensor) -> float:  # [2]
    difference, want = squares.sqrt().tolist()
    return float(difference / want)


def _block(name: str) -> str:
    """Of ``model.layers.3.mlp.up_proj.weight``: ``model.layers.3.mlp``."""
    return name.rsplit(".", 2)[0]
