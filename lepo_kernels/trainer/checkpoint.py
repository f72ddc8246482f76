"""What makes a checkpoint complete, and the experience that is stored in it.

transformers writes ``trainer_state.json`` after everything else of a checkpoint, so a folder with a
readable one is complete. A checkpoint taken while a rollout is still being trained on holds that
rollout too.
"""

import json
from pathlib import Path

import torch

from lepo_kernels.trainer.experience import Experience

STATE_FILE = "trainer_state.json"


def last_complete_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint folder that was written to its end; None if there is none."""
    numbered = [
        (int(folder.name.removeprefix("checkpoint-")), folder)
        for folder in output_dir.glob("checkpoint-*")
        if folder.name.removeprefix("checkpoint-").isdigit()
    ]
    for _, folder in sorted(numbered, reverse=True):
        if is_complete(folder):
            return folder
    return None


def is_complete(folder: Path) -> bool:
    """Whether the checkpoint was written to its end."""
    try:
        json.loads((folder / STATE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return True


def discard_stale_state(folder: Path) -> None:
    """Mark a folder that is about to be written again as incomplete."""
    (folder / STATE_FILE).unlink(missing_ok=True)


def checkpoint_step(folder: Path) -> int:
    """The number of updates behind a checkpoint."""
    return int(json.loads((folder / STATE_FILE).read_text())["global_step"])


def save_experience(
    folder: Path, process_index: int, experience: Experience, shape: dict[str, int]
) -> None:
    """Store the experience of one process, and the settings it was cut by, in a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"experience": experience.state_dict(), "shape": shape}
    torch.save(state, _file(folder, process_index))


def load_experience(
    folder: Path, process_index: int, device: torch.device, shape: dict[str, int]
) -> Experience:
    """Read what `save_experience` stored.

    Raises:
        FileNotFoundError: the checkpoint holds no experience for this process.
        ValueError: it was written with other batch settings.
    """
    file = _file(folder, process_index)
    if not file.exists():
        raise FileNotFoundError(
            f"{file}: the checkpoint lies inside a rollout but does not hold it"
        )
    state = torch.load(file, map_location=device, weights_only=True)
    if state["shape"] != shape:
        changed = [
            f"{name} was {state['shape'].get(name)} and is {now}"
            for name, now in shape.items()
            if state["shape"].get(name) != now
        ]
        raise ValueError(
            f"resume_from_checkpoint: {folder} lies inside a rollout of other settings: "
            + ", ".join(changed)
        )
    return Experience.from_state_dict(state["experience"])


def _file(folder: Path, process_index: int) -> Path:
    return folder / f"experience_{process_index}.pt"
