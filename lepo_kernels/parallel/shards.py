"""Who holds which part of a vocabulary, and that all ranks call the same op.

Contract: the parts are contiguous, follow each other in the order of the ranks, and may be of
different sizes, or empty. What stands behind the end of the vocabulary is padding, and takes part
in nothing.

A rank that knows its ``first_id`` and the ``vocab_size`` asks nobody. Otherwise all ranks tell each
other how many rows they hold, with what must be the same in all of their calls: it costs a
collective and waits for the device, and in return a call that is wrong on one rank raises on all of
them. Without it, the others would wait for that rank until the group's timeout.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from lepo_kernels.validation import check_integer

_T = TypeVar("_T")


class Shard(NamedTuple):
    """A rank's part of a vocabulary."""

    group: str  # the name of the process group
    first_id: int
    rows: int  # without padding
    vocab_size: int


class _Call(NamedTuple):
    """What a rank tells the others about its call."""

    refusal: str | None
    first_id: int | None = None
    rows: int = 0
    alike: tuple[tuple[str, object], ...] = ()


class Ranks:
    """The ranks of a group that call an op together.

    Args:
        group: None takes the default group.
        first_id: the vocabulary id of this rank's first row; None lets the ranks find out.
        vocab_size: the rows of all ranks without padding; None takes all rows.
        unit: where a vocabulary may be cut: at its multiples.

    Raises:
        TypeError: ``group`` is not a process group.
        ValueError: there is no process group, or this process is not part of it.
    """

    def __init__(
        self,
        group: "dist.ProcessGroup | None",
        first_id: int | None,
        vocab_size: int | None,
        *,
        unit: int = 1,
    ) -> None:
        self._group = _member_of(group)
        self._first_id = first_id
        self._vocab_size = vocab_size
        self._unit = unit
        self._asks = first_id is None or vocab_size is None
        if self._asks and torch.compiler.is_compiling():
            raise ValueError("first_id, vocab_size: expected both in a compiled graph, got None")

    def prepare(self, check: Callable[[], _T]) -> _T:
        """Run the checks of the arguments, and let the others know where they fail."""
        if not self._asks:
            return self._checked(check)
        try:
            return self._checked(check)
        except Exception as error:
            self._tell(_Call(f"{type(error).__name__}: {error}"))
            raise

    def locate(self, rows: int, alike: dict[str, object]) -> Shard:
        """This rank's part of the vocabulary.

        Args:
            rows: how many rows it holds.
            alike: what must be the same in the calls of all ranks, by name.

        Raises:
            ValueError: a rank refused its arguments, or the ranks' calls do not fit together.
        """
        first_id, vocab_size = self._first_id, self._vocab_size
        if first_id is None or vocab_size is None:
            alike = {"vocab_size": vocab_size, **alike}
            calls = self._tell(_Call(None, first_id, rows, tuple(alike.items())))
            _check_calls(calls, self._unit)
            starts = [0, *accumulate(call.rows for call in calls)]
            first_id = starts[dist.get_rank(self._group)]
            if vocab_size is None:
                vocab_size = starts[-1]
            check_integer("vocab_size", vocab_size, 1, starts[-1])
        held = max(0, min(rows, vocab_size - first_id))
        return Shard(self._group.group_name, first_id, held, vocab_size)

    def _checked(self, check: Callable[[], _T]) -> _T:
        if self._first_id is not None:
            check_integer("first_id", self._first_id, 0)
            if self._first_id % self._unit != 0:
                raise ValueError(
                    f"first_id: expected a multiple of {self._unit}, got {self._first_id}"
                )
        if self._vocab_size is not None:
            check_integer("vocab_size", self._vocab_size, 1)
        return check()

    def _tell(self, call: _Call) -> list[_Call]:
        calls: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(calls, call, group=self._group)
        return calls


def _member_of(group: "dist.ProcessGroup | None") -> "dist.ProcessGroup":
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("group: there is no process group; torch.distributed is not initialized")
    if group is None:
        group = dist.group.WORLD
    # What `new_group` gives to those whom it leaves out.
    outsider: Any = dist.GroupMember.NON_GROUP_MEMBER
    if group is outsider:
        raise ValueError("group: this process is not a member of it")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group: expected a ProcessGroup, got {type(group).__name__}")
    return group


def _check_calls(calls: list[_Call], unit: int) -> None:
    """Raise, on all ranks, what is wrong with the calls of some of them.

    Raises:
        ValueError: naming the rank, and what is wrong.
    """
    for rank, call in enumerate(calls):
        if call.refusal is not None:
            raise ValueError(f"rank {rank} of the group refuses its arguments: {call.refusal}")
    for rank, call in enumerate(calls):
        for (name, got), (_, first) in zip(call.alike, calls[0].alike, strict=True):
            if got != first:
                raise ValueError(f"{name}: rank 0 of the group has {first}, rank {rank} has {got}")
    starts = accumulate((call.rows for call in calls), initial=0)
    for (rank, call), start in zip(enumerate(calls), starts, strict=False):
        if call.first_id not in (None, start):
            raise ValueError(
                f"first_id: rank {rank} of the group has {call.first_id}, but the ranks before it "
                f"hold {start} rows"
            )
        if call.rows > 0 and start % unit != 0:
            raise ValueError(
                f"first_id: expected a multiple of {unit} on every rank, but the ranks before rank "
                f"{rank} of the group hold {start} rows"
            )
