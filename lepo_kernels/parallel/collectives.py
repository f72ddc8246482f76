"""What the ranks of a process group tell each other inside an op. Ops know a group by its name."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lepo_kernels.ops._library import torch_op


def rank_in(group: str) -> int:
    """This process's rank in the group."""
    return dist.get_rank(_group(group))


def add_over_ranks(
    x: Tensor,  # changed in place
    group: str,
) -> Tensor:
    """Replace ``x`` by its sum over all ranks, and return it."""
    dist.all_reduce(x, group=_group(group))
    return x


@torch_op("sum_over_ranks", lambda x, group: add_over_ranks(x.clone(), group))
def sum_over_ranks(x: Tensor, group: str) -> Tensor:
    """The sum of ``x`` over all ranks: what a backward pass may call in a compiled graph, too."""
    return torch.empty_like(x)


sum_over_ranks.refuse_double_backward()


def exchange(
    own: Tensor,  # [C, N]
    shared: Tensor,  # [K, N]
    group: str,
) -> tuple[Tensor, Tensor]:  # [R, C, N], [K, N]
    """Every rank's ``own``, and the sum of all ``shared``, in one collective.

    A rank's own numbers go to a place where all others add 0: they arrive as they are, on all ranks
    alike, in whatever order the sums are formed. So do shared ones where but one rank adds another
    number than 0.
    """
    ranks, rank = dist.get_world_size(_group(group)), rank_in(group)
    count = own.shape[0]
    packed = own.new_zeros(ranks * count + shared.shape[0], own.shape[1])
    packed[rank * count : (rank + 1) * count] = own
    packed[ranks * count :] = shared
    add_over_ranks(packed, group)
    of_ranks, sums = packed.split((ranks * count, shared.shape[0]))
    return of_ranks.unflatten(0, (ranks, count)), sums


def _group(name: str) -> "dist.ProcessGroup":
    # Not at the top: some builds of torch are without it.
    from torch.distributed import distributed_c10d

    # As torch's own traceable collectives find theirs.
    module: Any = distributed_c10d
    group: dist.ProcessGroup = module._resolve_process_group(name)
    return group
