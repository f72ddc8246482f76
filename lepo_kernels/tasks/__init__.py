"""Problems to train on, rewards that check them, and models that need no hub."""

from lepo_kernels.tasks.models import resolve_model
from lepo_kernels.tasks.registry import instruction_of, load_task, system_prompt_of, task_names
from lepo_kernels.tasks.smollm2 import ModelNotInstalledError
from lepo_kernels.tasks.task import Task, TaskError

__all__ = [
    "ModelNotInstalledError",
    "Task",
    "TaskError",
    "instruction_of",
    "load_task",
    "resolve_model",
    "system_prompt_of",
    "task_names",
]
