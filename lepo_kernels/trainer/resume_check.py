"""What may change when a run is resumed.

A resume continues with the optimizer, the random numbers and perhaps the rollout of the run. So
everything that decides what experience is and what an update does is held to the run's value:
sampling, batches, rewards, objective, seeds, training problems, and the optimizer with its schedule
(the saved optimizer state would silently override a new learning rate). What remains may change and
is logged: the run's length, its precision, and what is done besides its updates, such as
evaluations and checkpoints. To continue from a checkpoint under other settings, start a new run
with it as its model.
"""

import json
import logging
from pathlib import Path
from typing import Any

from lepo_kernels.trainer.model_settings import COURSE, EVALUATION, FILE, read_settings

logger = logging.getLogger(__name__)

# Settings that may change in a resume; all others that a checkpoint holds may not.
FREE = {
    *COURSE,
    *EVALUATION,
    "logging_steps",
    "metric_for_best_model",
    "max_prompt_length",
    "rollout_batch_size",
    "cache_implementation",
    "compile_rollout",
    "log_completions",
    "num_completions_to_print",
    "reward_timeout",
    "skip_nonfinite_updates",
    "sampling_logp_difference_warning",
    "sampling_logp_difference_error",
} - {"reward_weights"}


def check_resume(checkpoint: Path, sections: dict[str, Any], quiet: bool = False) -> None:
    """Hold a resume to the settings of the run, and log those that it changes.

    Args:
        checkpoint: the folder to resume from.
        sections: the sections of the run that resumes it; see `model_settings`.
        quiet: logs nothing, for all processes but one.

    Raises:
        ValueError: naming each setting that must not change, with both values; or the file cannot
            be read.
    """
    log = logging.DEBUG if quiet else logging.WARNING
    held = held_changes(checkpoint, sections)
    if held:
        raise ValueError(refusal(checkpoint, held))
    free = _changes_of(checkpoint, sections, free=True)
    if free:
        logger.log(log, "resuming from %s with other settings: %s", checkpoint, "; ".join(free))


def held_changes(checkpoint: Path, sections: dict[str, Any]) -> list[str]:
    """The changes that a resume is refused for.

    Args:
        checkpoint: the folder to resume from.
        sections: those of the run that resumes it; what is missing there is not compared.

    Raises:
        ValueError: the checkpoint's settings cannot be read.
    """
    return _changes_of(checkpoint, sections, free=False)


def changes(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs in value, of the names that both have: "tau was 0.5 and is 0.3"."""
    return [
        f"{name} was {value!r} and is {now[name]!r}"
        for name, value in saved.items()
        if name in now and _plain(now[name]) != _plain(value)
    ]


def refusal(checkpoint: Path, held: list[str]) -> str:
    """The message that a resume with these changes is refused with."""
    return (
        f"resume_from_checkpoint: a resume of {checkpoint} must keep the run's settings, but "
        f"{'; '.join(held)}; leave them as they were, or start a new run from that model"
    )


def _changes_of(checkpoint: Path, sections: dict[str, Any], free: bool) -> list[str]:
    saved, now = (_flat(part) for part in (read_settings(checkpoint / FILE), sections))
    # Where prompts are cut to it, it decides what experience is.
    free_names = FREE - ({"max_prompt_length"} if saved.get("truncate_prompts") else set())
    return changes({name: saved[name] for name in saved if (name in free_names) == free}, now)


def _flat(sections: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for section in ("sampling", "evaluation", "training", "data")
        for name, value in (sections.get(section) or {}).items()
    }


def _plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))
