"""The checkpoints of a run's folder: which one a run resumes from, and which are removed.

A checkpoint is complete when everything that its manifest lists is there and whole.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

from lepo_kernels.report.run_folder import RunFolder
from lepo_kernels.trainer.manifest import MANIFEST, damage, read_manifest

_logger = logging.getLogger(__name__)


def find_checkpoint(output_dir: Path, wanted: str | Path | bool) -> Path:
    """The checkpoint that a run resumes from.

    Args:
        output_dir: the run's folder.
        wanted: a checkpoint, or True for the newest complete one; damaged ones are skipped with a
            warning that names the file.

    Raises:
        ValueError: there is none, or it is damaged, or it cannot be resumed.
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
            "state; train its model as a new run"
        )
    return folder


def last_complete_checkpoint(output_dir: Path, contents: bool = True) -> Path | None:
    """The newest checkpoint that is complete and whole; None if there is none.

    Args:
        output_dir: the run's folder.
        contents: whether to read every file; without, sizes alone are compared.
    """
    for folder in reversed(RunFolder(output_dir).checkpoints()):
        reason = damage(folder, contents)
        if reason is None:
            return folder
        _logger.warning("%s is skipped: %s", folder, reason)
    return None


def is_complete(folder: Path) -> bool:
    """Whether the checkpoint was written to its end, and is whole."""
    return damage(folder) is None


def remove_checkpoint(folder: Path) -> None:
    """Remove what there is of a checkpoint, its manifest first."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def trim_checkpoints(newest: Path, limit: int | None, best: str | None) -> None:
    """Remove the checkpoints of a run that were written first.

    Args:
        newest: the one just written, which stays.
        limit: how many to keep (transformers' ``save_total_limit``); None keeps all.
        best: the one with the best metric, which stays too; None if there is none.
    """
    if limit is None or limit <= 0:
        return
    kept = {newest} if best is None else {newest, Path(best)}
    # A run that was resumed from an older one writes a lower number last.
    written = sorted(RunFolder(newest.parent).checkpoints(), key=lambda path: path.stat().st_mtime)
    surplus = len(written) - max(limit, len(kept))
    removable = [folder for folder in written if folder not in kept]
    for folder in removable[: max(0, surplus)]:
        remove_checkpoint(folder)


def warn_of_other_processes(folder: Path, manifest: dict[str, Any], processes: int) -> None:
    """Warn of a resume with another number of processes, which nothing else reports."""
    if manifest["processes"] != processes:
        _logger.warning(
            "resume_from_checkpoint: %s was written by %d processes, and %d resume it: batches "
            "are of another size, and the random generators start over",
            folder,
            manifest["processes"],
            processes,
        )
