"""Which checkpoint a run goes on from, how one is written, and the experience stored in it.

A checkpoint is complete when everything that its manifest lists is there and whole. A checkpoint
taken while a rollout is still being trained on holds that rollout too.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lepo_kernels.trainer.experience import Experience
from lepo_kernels.trainer.manifest import damage, read_manifest

EVALUATION_DUE = "evaluation_due"

_logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the message says why, and which is the last good one."""


def find_checkpoint(output_dir: Path, wanted: str | Path | bool) -> Path:
    """The checkpoint that a run goes on from.

    Args:
        output_dir: the run's folder.
        wanted: a checkpoint, or True for the newest complete one; damaged ones are passed over with
            a warning that names the file.

    Raises:
        ValueError: there is none, or it is damaged, or it cannot be gone on from.
    """
    if isinstance(wanted, bool):
        folder = last_complete_checkpoint(output_dir)
        if folder is None:
            raise ValueError(
                f"resume_from_checkpoint: there is no complete checkpoint in {output_dir}"
            )
    else:
        folder = Path(wanted)
        reason = damage(folder)
        if reason is not None:
            raise ValueError(
                f"resume_from_checkpoint: {folder} is no complete checkpoint: {reason}"
            )
    if read_manifest(folder).get("save_only_model"):
        raise ValueError(
            f"resume_from_checkpoint: {folder} was saved with save_only_model: it has no optimizer "
            "to go on with; train its model as a new run"
        )
    return folder


def last_complete_checkpoint(output_dir: Path, contents: bool = True) -> Path | None:
    """The newest checkpoint that is complete and whole; None if there is none.

    Args:
        output_dir: the run's folder.
        contents: whether to read every file; without, sizes alone are compared.
    """
    numbered = [
        (int(folder.name.removeprefix("checkpoint-")), folder)
        for folder in output_dir.glob("checkpoint-*")
        if folder.name.removeprefix("checkpoint-").isdigit()
    ]
    for _, folder in sorted(numbered, reverse=True):
        reason = damage(folder, contents)
        if reason is None:
            return folder
        _logger.warning("%s is passed over: %s", folder, reason)
    return None


def is_complete(folder: Path) -> bool:
    """Whether the checkpoint was written to its end, and is whole."""
    return damage(folder) is None


@contextlib.contextmanager
def writing(folder: Path, first_process: bool) -> Iterator[None]:
    """Turn whatever goes wrong while a checkpoint is written into a `CheckpointError`.

    What was written of it is removed: it is of no use, and may be what fills the disk.
    """
    try:
        yield
    # torch and safetensors have errors of their own for a full disk.
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = _cause(folder, error)
        if first_process:
            shutil.rmtree(folder, ignore_errors=True)
        last = last_complete_checkpoint(folder.parent, contents=False)
        raise CheckpointError(
            f"{folder} could not be written: {cause} "
            f"({shutil.disk_usage(folder.parent).free / 1e6:.1f} MB are free there); "
            f"the last complete checkpoint is {last or 'none'}"
        ) from error


def _cause(folder: Path, error: Exception) -> str:
    """The error, and what the system says to writing there where the error does not tell."""
    if isinstance(error, OSError):
        return str(error)
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(1 << 20))
    except OSError as refusal:
        return f"{refusal.strerror} ({error})"
    finally:
        probe.unlink(missing_ok=True)
    return str(error)


def warn_of_other_processes(folder: Path, manifest: dict[str, Any], processes: int) -> None:
    """Say that a run goes on with another number of processes, which nobody else says."""
    if manifest["processes"] != processes:
        _logger.warning(
            "resume_from_checkpoint: %s was written by %d processes, and %d go on from it: batches "
            "are of another size, and the random generators start anew",
            folder,
            manifest["processes"],
            processes,
        )


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


def _file(folder: Path, process_index: int) -> Path:
    return folder / f"experience_{process_index}.pt"
