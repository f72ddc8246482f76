"""The error of a reward function."""


class RewardError(RuntimeError):
    """A reward function raised, took too long, or returned or logged what it must not."""


def raised(function: str, error: BaseException) -> RewardError:
    """The error of a function that raised; to be chained to its cause."""
    return RewardError(f"reward function {function!r} raised {error!r}")
