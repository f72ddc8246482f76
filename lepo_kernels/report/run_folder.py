"""The files of a run: ``config.yaml``, ``metrics.jsonl``, ``curves.png`` and completions.

``metrics.jsonl`` holds one JSON object per log, each with its ``step``; evaluations are logs whose
metrics start with ``eval_``. A line that cannot be read (another program wrote into the file, or a
disk was full) is skipped with a message: it ends no run.
"""

import functools
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import yaml

from lepo_kernels.report.json_text import json_text
from lepo_kernels.report.run_lock import RunLock

METRICS = "metrics.jsonl"
CONFIG = "config.yaml"
CURVES = "curves.png"

# Files of one JSON object per line with a "step", and by how much a line that belongs to the update
# after step s is ahead: completions are written before the update that they train. The trainer
# writes the last two.
STEP_FILES = {METRICS: 0, "completions.jsonl": 1, "evaluations.jsonl": 0}

# Batches of updates that were not finite, which the trainer keeps for inspection.
NONFINITE_BATCH = "nonfinite_batch_step_{step}_process_{process}.pt"


class RunFolder:
    """The folder of one run.

    Args:
        folder: made when first written to.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @property
    def metrics_file(self) -> Path:
        """Where the metrics are."""
        return self.folder / METRICS

    def checkpoints(self) -> list[Path]:
        """The folders checkpoint-N in it, in the order of N; complete or not."""
        numbered = [
            (int(path.name.removeprefix("checkpoint-")), path)
            for path in self.folder.glob("checkpoint-*")
            if path.name.removeprefix("checkpoint-").isdecimal() and path.is_dir()
        ]
        return [path for _, path in sorted(numbered)]

    def holds_a_run(self) -> bool:
        """Whether an earlier run left metrics or checkpoints here."""
        return self.metrics_file.exists() or bool(self.checkpoints())

    def clear(self) -> None:
        """Remove what an earlier run wrote, and nothing else.

        Raises:
            FolderInUseError: a run is using the folder.
        """
        with RunLock(self.folder):
            for checkpoint in self.checkpoints():
                shutil.rmtree(checkpoint)
            for name in (CONFIG, CURVES, *STEP_FILES):
                (self.folder / name).unlink(missing_ok=True)
            for batch in self.folder.glob(NONFINITE_BATCH.format(step="*", process="*")):
                batch.unlink()

    def forget_after(self, step: int, evaluation: bool = False) -> None:
        """Drop what was recorded after ``step``, so that a resumed run does not record it twice.

        A last line that a killed run left half written goes, too.

        Args:
            step: the last update before the resume.
            evaluation: whether the evaluation at ``step`` is to be done again, and goes, too.
        """
        for name, ahead in STEP_FILES.items():
            path = self.folder / name
            if path.exists():
                kept = [
                    row
                    for row in read_rows(path)
                    if row["step"] + ahead <= step
                    and not (evaluation and row["step"] == step and _is_of_evaluation(row))
                ]
                replace_text(path, "".join(map(_line, kept)))

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the settings as YAML."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
        replace_text(self.folder / CONFIG, text)

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Add a line of metrics; it needs a ``step``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open_log(self.metrics_file) as file:
            file.write(_line(metrics))

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics so far; empty if there are none."""
        return read_metrics(self.metrics_file) if self.metrics_file.exists() else []


def open_log(path: Path) -> TextIO:
    r"""Open a file of JSON lines to add to it.

    A lone surrogate, which UTF-8 cannot hold, is written as JSON's own ``\ud800``.
    """
    return path.open("a", encoding="utf-8", errors="backslashreplace")


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; see `read_rows`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    return list(read_rows(path))


def read_rows(path: Path | str) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON objects with a ``step``, without those that are none.

    Raises:
        FileNotFoundError: there is no such file.
    """
    unreadable = []
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            row = _row(line)
            if row is not None:
                yield row
            elif line.endswith("\n"):  # else a killed run left it half written
                unreadable.append(number)
    if unreadable:
        _warn_once(f"{path}: no JSON object with a step on line {_some(unreadable)}; skipped")


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    # RecursionError: brackets without end.
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and type(row.get("step")) is int
    return row if is_row else None


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


@functools.cache
def _warn_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def _is_of_evaluation(row: Mapping[str, Any]) -> bool:
    return "evaluation" in row or any(name.startswith("eval_") for name in row)


def _line(row: Mapping[str, Any]) -> str:
    return json_text(row) + "\n"


def _plain(value: Any) -> Any:
    """The value as YAML's own types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        # A subclass (an enum of str) would be written as a Python object.
        return value if type(value) in (type(None), bool, int, float, str) else str(value)
    return str(value)


def replace_text(path: Path, text: str) -> None:
    """Write a file that is never seen half written."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(fresh, path)
