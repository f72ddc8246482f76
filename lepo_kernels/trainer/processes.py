"""What the processes of a run decide together."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list

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
