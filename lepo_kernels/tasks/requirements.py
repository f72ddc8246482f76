"""The packages that rewards need, looked for before anything is loaded."""

from lepo_kernels import extras
from lepo_kernels.tasks.task import TaskError

# Name of a reward -> the module that computes it. A reward that is not here needs none.
_MODULES = {"math_verify": "math_verify"}


def check_reward_installed(task: str, reward: str) -> None:
    """Check that a reward can be computed.

    Args:
        task: whose reward it is, for the message.
        reward: its name.

    Raises:
        TaskError: it needs a package that is not installed.
    """
    module = _MODULES.get(reward)
    if module is not None and not extras.is_here(module):
        raise TaskError(
            f"{task}: the reward {reward} cannot be computed: {extras.remedy([module])}, or set "
            "the task's parameter reward to 'exact_answer'"
        )
