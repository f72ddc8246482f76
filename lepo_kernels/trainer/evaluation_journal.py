"""The finished batches of an evaluation, kept in a folder until it is over.

The folder holds ``settings.json``, what the evaluation was begun with, and a file of JSON lines per
process, a line per finished batch. A line is written and brought to the disk at once; one that a
kill left half written is dropped, and its batch done again. Several processes, on several machines,
need a file system that they share.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepo_kernels.report.json_text import json_text
from lepo_kernels.report.run_folder import open_log, replace_text
from lepo_kernels.report.run_lock import RunLock

SETTINGS = "settings.json"


@dataclass(frozen=True)
class FinishedBatch:
    """What is left of a batch.

    Attributes:
        evaluation: which evaluation of the call it belongs to.
        batch: its index there.
        seconds: how long it took.
        records: one per completion, as JSON has them.
    """

    evaluation: str
    batch: int
    seconds: float
    records: list[dict[str, Any]]


class SettingsDifferError(ValueError):
    """The folder's batches were made with other settings; the message names them."""


class Journal:
    """The finished batches of one call of ``lepo eval``.

    Args:
        folder: made by `begin`.
        process: which process of the call this is.
    """

    def __init__(self, folder: Path | str, process: int = 0) -> None:
        self.folder = Path(folder)
        self.process = process
        self._lock = RunLock(self.folder)

    def begin(self, settings: Mapping[str, Any], *, restart: bool = False) -> list[FinishedBatch]:
        """Lock the folder, and give what an earlier call finished; for the first process alone.

        Args:
            settings: all that decides the samples, by name.
            restart: whether to drop what is there.

        Raises:
            SettingsDifferError: what is there was made with other settings.
            FolderInUseError: another process is using the folder.
        """
        self._lock.acquire()
        wanted = json.loads(json_text(settings))
        if restart:
            self._clear()
        found = self._settings()
        if found is None:
            # Lines without settings are of nobody knows which samples.
            self._clear()
            replace_text(self.folder / SETTINGS, json_text(wanted, indent=2) + "\n")
            return []
        _refuse_other(self.folder, found, wanted)
        batches = [batch for file in self._files() for batch in _read_whole_lines(file)]
        return list({(batch.evaluation, batch.batch): batch for batch in batches}.values())

    def add(self, batch: FinishedBatch) -> None:
        """Keep a finished batch."""
        with open_log(self.folder / f"process-{self.process}.jsonl") as file:
            file.write(json_text(vars(batch)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def end(self, *, keep: bool) -> None:
        """Give the lock back, and remove the folder unless it is to be kept; as `begin`."""
        if not keep:
            self._clear()
        self._lock.release()
        if not keep:
            with contextlib.suppress(OSError):  # somebody else's file is in it
                self.folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("process-*.jsonl"))

    def _clear(self) -> None:
        for file in (self.folder / SETTINGS, *self._files()):
            file.unlink(missing_ok=True)

    def _settings(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def as_json(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records as a journal gives them back: what was resumed and what was not are alike."""
    plain: list[dict[str, Any]] = json.loads(json_text(records))
    return plain


def _refuse_other(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if names:
        said = ", ".join(f"{n} ({found.get(n)!r} there, {wanted.get(n)!r} here)" for n in names)
        raise SettingsDifferError(
            f"output: {folder} holds the samples of an unfinished evaluation with other settings: "
            f"{said}; give it those, name another output, or drop the samples with --restart"
        )


def _read_whole_lines(file: Path) -> list[FinishedBatch]:
    """The batches of a file; an unfinished last line is cut off, so that others can be added."""
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(file, len(whole))
    batches = []
    # Not splitlines(): JSON may hold other characters that end lines.
    for line in whole.decode(errors="replace").split("\n")[:-1]:
        try:
            batches.append(FinishedBatch(**json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            continue  # damaged: the batch is done again
    return batches
