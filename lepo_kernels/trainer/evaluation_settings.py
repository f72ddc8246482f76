"""The ranges of the settings of an evaluation, for the trainer and for `evaluate_policy` alike."""

from typing import Any

from lepo_kernels.validation import FLOAT32_MAX, check_integer, check_number


def check_evaluation(
    num_samples: Any, greedy: bool, batch_size: Any, success_threshold: Any, prefix: str = ""
) -> None:
    """Check how a policy is to be evaluated; arguments as in `evaluate_policy`.

    Args:
        num_samples, greedy, batch_size, success_threshold: what is checked.
        prefix: "eval_" where messages are to name the trainer's settings.

    Raises:
        TypeError, ValueError: a number is out of range, or there is nothing to decode.
    """
    check_integer(f"{prefix}num_samples", num_samples, 0)
    check_integer(f"per_device_{prefix}batch_size" if prefix else "batch_size", batch_size, 1)
    check_number("success_threshold", success_threshold, -FLOAT32_MAX, FLOAT32_MAX)
    if num_samples == 0 and not greedy:
        raise ValueError(
            f"{prefix}num_samples: expected at least 1 when {prefix}greedy is off, got 0"
        )


def check_evaluation_settings(args: Any) -> None:
    """Check the settings of the trainer, or of ``lepo eval``, that say how it evaluates.

    Raises:
        TypeError, ValueError: see `check_evaluation`.
    """
    check_evaluation(
        args.eval_num_samples,
        args.eval_greedy,
        args.per_device_eval_batch_size,
        args.success_threshold,
        prefix="eval_",
    )
