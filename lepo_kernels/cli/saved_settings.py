"""The settings that are saved with a model.

Commands sample and evaluate as the model was trained to: they read ``lepo_config.json`` beside its
weights (`lepo_kernels.trainer.model_settings`), or else ``config.yaml`` of the run's folder that it
lies in, which older releases alone wrote.

A folder may come from anyone, so only the names below are taken from its file: task, sampling
and evaluation. Nothing that names a file to write, code to load, a report or an account is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.options import (
    ALL,
    EvaluationOptions,
    GenerateOptions,
    TaskOptions,
)
from lepo_kernels.cli.yaml_file import read_yaml
from lepo_kernels.console import say
from lepo_kernels.report.run_folder import CONFIG
from lepo_kernels.tasks import system_prompt_of
from lepo_kernels.tasks.models import BUILT_IN
from lepo_kernels.trainer.model_settings import EVALUATION, FILE, SAMPLING, read_settings

if TYPE_CHECKING:
    from lepo_kernels.cli.parsing import Parsed

TASK = tuple(option.name for option in fields(TaskOptions))
PROMPTS = ("prompt_format", "system_prompt")
TAKEN = (*TASK, *PROMPTS, *SAMPLING, *EVALUATION)


@dataclass(frozen=True)
class SavedSettings:
    """Settings of a folder.

    Attributes:
        source: the file they are from; None if there is none.
        values: those that are taken.
        ignored: names of those that are not, unless they are null.
    """

    source: Path | None = None
    values: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    ignored: tuple[str, ...] = ()


NO_SETTINGS = SavedSettings()


def model_settings(named: Mapping[str, Any]) -> SavedSettings:
    """The settings that are saved with the model.

    Where another task is asked for, nothing that belongs to the model's own task is taken.

    Args:
        named: ``model``, ``task`` and ``eval_task``, as far as a person named them.

    Raises:
        UsageError: the model's file of settings cannot be read.
    """
    source = _source(named.get("model"))
    if source is None:
        return NO_SETTINGS
    values = _read(source)
    left = _of_another_task(values, named)
    ignored = [name for name in values if name not in TAKEN and values[name] is not None]
    kept = {name: value for name, value in values.items() if name in TAKEN and name not in left}
    return SavedSettings(source, kept, tuple(ignored))


def announce(console: Console, model: str | None, saved: SavedSettings, parsed: "Parsed") -> None:
    """Print which settings come from which file.

    Args:
        console: where to print it.
        model: the model's name.
        saved: the settings saved with it.
        parsed: the command's options, and what was taken for them.
    """
    taken = parsed.taken
    if saved.source is None:
        text = f"No settings are saved with {model}: what is not set here has its default"
    else:
        defaults = _defaults()
        special = {name: value for name, value in taken.items() if value != defaults.get(name)}
        said = ", ".join(f"{name}={value!r}" for name, value in special.items())
        others = len(taken) - len(special)
        text = f"Settings from {saved.source}: {said or 'none'}"
        text += f"; {others} more have their defaults" if others else ""
        # A run's file holds the settings of its training, too, which mean nothing here.
        asked = {option.name for part in parsed.options for option in fields(part)} - {"model"}
        elsewhere = {option.name for kind in ALL for option in fields(kind)} - asked
        refused = [name for name in saved.ignored if name not in elsewhere]
        text += f"; not taken: {', '.join(refused)}" if refused else ""
    say(console, text)


def read_values(source: Path, sections: tuple[str, ...]) -> dict[str, Any]:
    """The settings in a file, by name.

    Args:
        source: a ``lepo_config.json`` or a ``config.yaml``.
        sections: those that are wanted of the former; the latter has none.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    if source.name != FILE:
        return read_yaml(source)
    try:
        found = read_settings(source)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return {name: value for section in sections for name, value in found[section].items()}


def _source(model: str | None) -> Path | None:
    """The file of settings that a model has, in its folder, its run's, or on the hub."""
    if model is None or str(model).lower() in BUILT_IN:
        return None
    folder = Path(str(model))
    if not folder.is_dir():
        return _from_hub(str(model))
    files = [folder / FILE, folder / CONFIG]
    if folder.name.startswith("checkpoint-"):
        files.append(folder.parent / CONFIG)
    return next((file for file in files if file.is_file()), None)


def _from_hub(name: str) -> Path | None:
    """The file of a model on the hub, or of its copy in the cache."""
    import huggingface_hub as hub

    if name.startswith(("/", ".", "~")):
        return None
    try:
        # Unlike a download, the question is not repeated for a minute where there is no network.
        if hub.HfApi().file_exists(name, FILE):
            return Path(hub.hf_hub_download(name, FILE))
    # The hub's client raises errors of many packages; the model's own loading will say them.
    except Exception:
        pass
    try:
        cached = hub.try_to_load_from_cache(name, FILE)
    except ValueError:  # no name of the hub
        return None
    return Path(cached) if isinstance(cached, str) else None


def _read(source: Path) -> dict[str, Any]:
    values = read_values(source, ("task", "prompts", "sampling", "evaluation"))
    if source.name == FILE:
        return values
    system = system_prompt_of(values.get("task"), values.get("task_params"))
    return {**values, "system_prompt": system}


def _of_another_task(values: Mapping[str, Any], named: Mapping[str, Any]) -> set[str]:
    """The names of settings that belong to a task which is not the one asked for."""
    own = {"eval_task", "eval_task_params"}
    if "task" in named:
        another = named["task"] != values.get("task")
        return {*TASK, "reward_weights", "system_prompt"} if another else own
    if "eval_task" in named and named["eval_task"] != values.get("eval_task"):
        return {*TASK, "reward_weights"}
    return set()


def _defaults() -> dict[str, Any]:
    return {
        option.name: option.default
        for kind in (TaskOptions, EvaluationOptions, GenerateOptions)
        for option in fields(kind)
    }
