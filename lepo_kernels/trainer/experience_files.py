"""The experience in a checkpoint that was taken while a rollout was still being trained on."""

from pathlib import Path

import torch

from lepo_kernels.trainer.experience import Experience


def save_experience(
    folder: Path, process_index: int, experience: Experience, shape: dict[str, int]
) -> None:
    """Store the experience of one process, and the settings it was cut by, in a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"experience": experience.state_dict(), "shape": shape}
    torch.save(state, _experience_file(folder, process_index))


def load_experience(
    folder: Path, process_index: int, device: torch.device, shape: dict[str, int]
) -> Experience:
    """Read what `save_experience` stored.

    Raises:
        FileNotFoundError: the checkpoint holds no experience for this process.
        ValueError: it was written with other batch settings.
    """
    file = _experience_file(folder, process_index)
    if not file.exists():
        raise FileNotFoundError(
            f"{file}: the checkpoint lies inside a rollout but does not hold it"
        )
    # torch.load knows no "cpu:0", which is what a process of several on a CPU has.
    location = "cpu" if device.type == "cpu" else device
    state = torch.load(file, map_location=location, weights_only=True)
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


def _experience_file(folder: Path, process_index: int) -> Path:
    return folder / f"experience_{process_index}.pt"
