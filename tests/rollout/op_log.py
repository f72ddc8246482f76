"""What a step issues: every operation of torch, on which memory, and whether it waits."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

# Reads of values, and shapes that depend on values: a GPU would be waited for.
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten._unique2.default,
}
_INDEXING = (aten.index, aten.index_put, aten.index_put_)


class OpLog(TorchDispatchMode):
    """Within it, every operation is noted.

    Tensors from before are told apart by their address, those made within it by when they were.

    Attributes:
        ops: of each operation its name, and the shape, dtype and memory of its tensors.
        waits: names of those that wait for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[Any, ...]] = []
        self.waits: list[str] = []
        self._made: dict[int, int] = {}
        # Alive, so that none of their addresses is used twice.
        self._results: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [self._told(x) for x in tree_leaves((args, kwargs or {}))]
        result = func(*args, **(kwargs or {}))
        if func in WAITING or self._by_mask(func, args):
            self.waits.append(str(func))
        known = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if _is_tensor(x)}
        for x in tree_leaves(result):
            if _is_tensor(x) and (at := x.untyped_storage().data_ptr()) not in known:
                self._made.setdefault(at, len(self._made))
        self._results.append(result)
        self.ops.append((str(func), is_view(func), *inputs))
        return result

    @property
    def count(self) -> int:
        """Operations that are no views."""
        return sum(not view for _, view, *_ in self.ops)

    def _told(self, x: Any) -> Any:
        if not _is_tensor(x):
            return str(x)
        at = x.untyped_storage().data_ptr()
        where = ("made", self._made[at]) if at in self._made else ("held", at)
        return tuple(x.shape), x.dtype, x.storage_offset(), *where

    @staticmethod
    def _by_mask(func: Any, args: Any) -> bool:
        indices = args[1] if getattr(func, "overloadpacket", None) in _INDEXING else ()
        return any(i is not None and i.dtype == torch.bool for i in indices)


def is_view(func: Any) -> bool:
    """Whether an operation issues no work: its result is a view of an argument."""
    returns = func._schema.returns
    aliases = [x.alias_info for x in returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def _is_tensor(x: Any) -> bool:
    return isinstance(x, torch.Tensor)
