"""What the processes of a run decide together, and how they end."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list

from lepo_kernels.report.run_lock import RunLock
from lepo_kernels.trainer.stopping import RunEnded

T = TypeVar("T")


def first_process_decides(args: Any, decide: Callable[[], T]) -> T:
    """Let the first process decide; all get its result, or its exception.

    Args:
        args: the run's `TrainingArguments`.
        decide: called on the first process alone.
    """
    if args.world_size == 1:
        return decide()
    outcome: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            outcome = [decide(), None]
        except Exception as failure:  # whatever it is, it is every process's
            outcome = [None, failure]
    result, error = broadcast_object_list(outcome)
    if error is not None:
        raise error
    decided: T = result
    return decided


@contextlib.contextmanager
def alone_in_folder(args: Any) -> Iterator[None]:
    """A block in which no other run writes into ``output_dir``.

    Args:
        args: the run's `TrainingArguments`.

    Raises:
        FolderInUseError: another run is using it; raised on every process.
    """
    lock = RunLock(args.output_dir)
    first_process_decides(args, lock.acquire)
    try:
        yield
    finally:
        if args.process_index == 0:
            lock.release()


@contextlib.contextmanager
def process_group_ends() -> Iterator[None]:
    """Destroy the process group after the block, when every process has reached its end.

    PyTorch asks for this before a process exits: the threads of a group that still exists may
    abort the process while Python shuts down. Without a group nothing happens. After an exception
    other than `RunEnded`, which all processes raise together, the group is left alone: other
    processes may be waiting in a collective, and NCCL's shutdown would wait for them.
    """
    try:
        yield
        if _is_initialized():
            PartialState().wait_for_everyone()
            dist.destroy_process_group()
    except RunEnded:
        if _is_initialized():
            dist.destroy_process_group()
        raise


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()
