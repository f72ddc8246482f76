"""A group of processes in a test, and the parts of a vocabulary that they hold."""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# Long enough for a machine that does much else; a rank that waits in vain takes as long to fail.
PATIENCE = timedelta(seconds=20)


class Team:
    """Ranks that hold parts of ``sizes`` rows.

    Every process of the world makes the same teams in the same order, member or not.
    """

    def __init__(self, members: list[int], sizes: list[int]) -> None:
        assert len(members) == len(sizes)
        self.group = dist.new_group(members, timeout=PATIENCE)
        self.is_member = dist.get_rank() in members
        self.rank = members.index(dist.get_rank()) if self.is_member else -1
        self.sizes = sizes
        self.first_id = sum(sizes[: max(0, self.rank)])
        self.rows = slice(self.first_id, self.first_id + sizes[self.rank])

    def part(self, whole: Tensor | None, dim: int = 0) -> Tensor | None:
        """This rank's part of what there is for each entry of the vocabulary."""
        if whole is None:
            return None
        own = whole.detach().narrow(dim, self.first_id, self.sizes[self.rank])
        return own.clone().requires_grad_(whole.requires_grad)

    def assert_same_on_all(self, tensors: list[Tensor]) -> None:
        """Bit for bit."""
        mine = torch.cat([x.detach().double().flatten() for x in tensors])
        theirs = [torch.empty_like(mine) for _ in self.sizes]
        dist.all_gather(theirs, mine, group=self.group)
        for other in theirs:
            assert torch.equal(other.view(torch.int64), mine.view(torch.int64))
