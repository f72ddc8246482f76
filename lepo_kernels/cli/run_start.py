"""Where ``lepo train`` starts: a new run, or an earlier one with its own settings.

A resumed run takes up the settings of its folder (``config.yaml``, and ``lepo_config.json`` of the
checkpoint), below what the command line and a YAML file say. Unlike the settings of a model, these
are all of a run's, since a run's folder is one that this person trains in; but a setting that loads
code must be named again, and none that publishes is taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.parsing import Parsed, mapping, peek
from lepo_kernels.cli.saved_settings import NO_SETTINGS, SavedSettings, read_values
from lepo_kernels.report.run_folder import CONFIG, RunFolder
from lepo_kernels.trainer.checkpoint import last_complete_checkpoint
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.model_settings import FILE, read_settings, settings_of
from lepo_kernels.trainer.resume_check import changes, held_changes, refusal

LATEST, AUTO = "latest", "auto"

# Settings of one call, and of the place where a run lies.
OF_THE_CALL = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "eval_on_start")
_PUBLISHING = ("push_to_hub", "hub_", "trackio_", "logging_dir")
# Options besides `LEPOConfig`'s that decide what is trained, and on what.
HELD = (
    "model",
    "dtype",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "task",
    "task_params",
    "train_size",
    "task_seed",
)


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        folder: the run's.
        resume: None for a new run, `LATEST` for the newest checkpoint of ``folder``, or a
            checkpoint.
        saved: the settings of the run that is resumed.
        note: what a person should know of the choice; empty if nothing.
    """

    folder: Path
    resume: str | None = None
    saved: SavedSettings = NO_SETTINGS
    note: str = ""


def find_start(words: list[str]) -> Start:
    """Decide where the run that the command line asks for starts.

    Args:
        words: the command line after the subcommand.

    Raises:
        UsageError: ``output_dir`` holds another run than the one that is resumed, or its settings
            cannot be read or must be named again.
    """
    named = peek(
        "train", words, ("output_dir", "resume_from_checkpoint", "overwrite_output_dir", "task")
    )
    folder = Path(str(named.get("output_dir") or default_folder(named.get("task"))))
    resume = named.get("resume_from_checkpoint")
    if resume is None:
        return Start(folder)
    if resume == AUTO:
        anew = str(named.get("overwrite_output_dir", "false")).lower() not in ("false", "no", "0")
        return Start(folder) if anew else _automatic(folder, words)
    if resume == LATEST:
        return Start(folder, LATEST, _saved_settings(folder, None, words))
    checkpoint = Path(str(resume))
    if "output_dir" not in named:
        folder = checkpoint.parent
    elif checkpoint.parent.resolve() != folder.resolve() and RunFolder(folder).holds_a_run():
        raise UsageError(
            f"output_dir: {folder} holds another run than {checkpoint}; name another folder"
        )
    return Start(folder, str(checkpoint), _saved_settings(checkpoint.parent, checkpoint, words))


def default_folder(task: str | None) -> str:
    """The run's folder where none is named."""
    return str(Path("runs") / (task or "run").replace(":", "-"))


def refuse_changes(
    checkpoint: Path, start: Start, settings: dict[str, Any], args: LEPOConfig
) -> None:
    """Hold a resume to the run's settings, before the model is loaded or a file is written.

    Args:
        checkpoint: the one to resume from.
        start: with the settings of the run.
        settings: those that ``config.yaml`` would hold.
        args: the trainer's.

    Raises:
        UsageError: naming each setting that must not change.
    """
    before, now = (_comparable(part) for part in (start.saved.values, settings))
    try:
        held = changes(before, now) + held_changes(checkpoint, settings_of(args))
    except ValueError as error:
        raise UsageError(f"resume_from_checkpoint: {error}") from error
    if held:
        hint = "; a resume without a CONFIG.yaml takes up the run's settings by itself"
        raise UsageError(refusal(checkpoint, held) + hint)


def described(checkpoint: Path, start: Start, parsed: Parsed) -> str:
    """One line on what a resumed run starts from, and with which settings."""
    text = f"Resuming {checkpoint}"
    if start.saved.source is not None:
        set_here = {name: parsed.given[name] for name in parsed.given if name not in parsed.taken}
        said = ", ".join(f"{n}={v!r}" for n, v in set_here.items() if n not in OF_THE_CALL)
        text += f" with the settings of {start.saved.source}"
        text += f"; set here: {said}" if said else ""
        left = start.saved.ignored
        text += f"; not taken, since they publish: {', '.join(left)}" if left else ""
    return text


def _automatic(folder: Path, words: list[str]) -> Start:
    """Resume the run in the folder, or begin one there, or beside it where neither is possible."""
    place, number = folder, 1
    while RunFolder(place).holds_a_run():
        if last_complete_checkpoint(place) is not None:
            return Start(place, LATEST, _saved_settings(place, None, words))
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")
    if number == 1:
        return Start(place)
    note = f"{folder} holds a run that has no checkpoint to resume from; this one goes to {place}"
    return Start(place, note=note)


def _saved_settings(folder: Path, checkpoint: Path | None, words: list[str]) -> SavedSettings:
    """The settings of the run in a folder.

    Args:
        folder: the run's.
        checkpoint: the one to resume from; None for the newest.
        words: the command line, where settings that load code must be named again.
    """
    if checkpoint is None:
        checkpoint = _newest_with_settings(folder)
    sources = [folder / CONFIG, *([] if checkpoint is None else [checkpoint / FILE])]
    sources = [source for source in sources if source.is_file()]
    if not sources:
        return NO_SETTINGS
    values: dict[str, Any] = {}
    # The run's own file counts: it knows how an earlier resume changed what may change.
    for source in reversed(sources):
        values |= read_values(source, ("task", "sampling", "evaluation", "training"))
    _refuse_code(values, sources[0], words)
    kept = {
        name: value
        for name, value in values.items()
        if name not in OF_THE_CALL and not name.startswith(_PUBLISHING)
    }
    publishing = [n for n, v in values.items() if n.startswith(_PUBLISHING) and v]
    return SavedSettings(sources[0], kept, tuple(publishing))


def _newest_with_settings(folder: Path) -> Path | None:
    """The newest checkpoint whose settings can be read: a damaged one is skipped."""
    for checkpoint in reversed(RunFolder(folder).checkpoints()):
        try:
            read_settings(checkpoint / FILE)
        except ValueError:
            continue
        return checkpoint
    return None


def _refuse_code(values: dict[str, Any], source: Path, words: list[str]) -> None:
    """Have settings named again that may load code: a folder alone must not do so.

    They are removed from ``values``.
    """
    attention = values.get("attn_implementation")
    loads_code = {
        # A name with a slash is a kernel on the hub.
        "attn_implementation": "/" in str(attention or ""),
        "model_init_kwargs": bool(values.get("model_init_kwargs")),
    }
    for name, risky in loads_code.items():
        if risky and not _is_named(words, name):
            raise UsageError(
                f"{name}: {source} has {values[name]!r}, which may load code; name it again on the "
                f"command line (or '--{name} null') to resume"
            )
        if risky:
            del values[name]


def _is_named(words: list[str], name: str) -> bool:
    """Whether the command line has the option, with null as its value, too, or the file does."""
    cli_given = {word.partition("=")[0].replace("-", "_") for word in words}
    return f"__{name}" in cli_given or name in peek("train", words, (name,))


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options that must not change, in one form each."""
    found = {name: settings[name] for name in HELD if name in settings}
    if "task_params" in found:
        found["task_params"] = mapping("task_params", found["task_params"])
    return found
