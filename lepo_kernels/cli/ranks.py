"""The processes of a command that a launcher (``torchrun``, ``accelerate launch``) started."""

import os
from dataclasses import dataclass
from datetime import timedelta

from accelerate.state import PartialState

# A process that is done waits for the one that decodes the longest completions.
_LONGEST_WAIT = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """How many processes there are, and which of them this one is."""

    world_size: int = 1
    process_index: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.process_index == 0


def join_ranks(use_cpu: bool) -> Ranks:
    """Join the process group that a launcher asks for; alone without one.

    Args:
        use_cpu: whether the processes stay off the GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    state = PartialState(cpu=use_cpu, timeout=_LONGEST_WAIT)
    return Ranks(state.num_processes, state.process_index)
