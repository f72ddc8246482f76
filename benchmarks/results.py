"""Results as pytest-benchmark saves them, with our columns: read once, for tables and pictures."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The order of rows: ours first, then what they are compared with.
_KINDS = ("ours", "other", "floor")


@dataclass(frozen=True)
class Row:
    """One implementation of a case; seconds, and what `measure` derived."""

    name: str
    median: float
    low: float
    high: float
    info: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.info["kind"])

    @property
    def speed(self) -> float | None:
        """How many times as fast as the fastest of the others."""
        ratio = self.info["ratio_to_best_other"]
        return None if ratio is None else 1 / ratio


@dataclass(frozen=True)
class Group:
    """One case: its rows, ours first and by time, and why others are missing."""

    name: str
    rows: tuple[Row, ...]
    skipped: dict[str, str]

    @property
    def op(self) -> str:
        return str(self.rows[0].info["op"])

    @property
    def shape(self) -> str:
        return str(self.rows[0].info["shape"])

    @property
    def best_other(self) -> str | None:
        return self.rows[0].info["best_other"]

    @property
    def best_of_ours(self) -> Row | None:
        """The fastest of ours that does all of the case's work."""
        ours = [row for row in self.rows if row.kind == "ours" and not row.info["lacks"]]
        return min(ours, key=lambda row: row.median, default=None)


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        machine: ``device`` and ``versions``.
        run: ``load``, ``note`` and ``ceilings``.
    """

    machine: dict[str, Any]
    run: dict[str, Any]
    date: str
    commit: str
    groups: tuple[Group, ...]

    @property
    def device(self) -> dict[str, Any]:
        return dict(self.machine["device"])

    @staticmethod
    def read(file: Path) -> "Result":
        """Of a file that ``--benchmark-json`` or ``--benchmark-autosave`` wrote.

        Raises:
            ValueError: the file is none of ours.
        """
        try:
            return Result.of(json.loads(file.read_text(encoding="utf-8")))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} holds no results of these benchmarks: {error!r}") from error

    @staticmethod
    def of(output: dict[str, Any]) -> "Result":
        return Result(
            machine=output["machine_info"],
            run=output["run"],
            date=output.get("datetime", ""),
            commit=output.get("commit_info", {}).get("id", ""),
            groups=tuple(_groups(output["benchmarks"], output["run"]["skipped"])),
        )


def _groups(benchmarks: list[dict[str, Any]], skipped: list[dict[str, str]]) -> Iterable[Group]:
    for name in dict.fromkeys(one["group"] for one in benchmarks):
        rows = [_row(one) for one in benchmarks if one["group"] == name]
        rows.sort(key=lambda row: (_KINDS.index(row.kind), row.median))
        missing = {one["name"]: one["reason"] for one in skipped if one["group"] == name}
        yield Group(name, tuple(rows), missing)


def _row(benchmark: dict[str, Any]) -> Row:
    stats, info = benchmark["stats"], benchmark["extra_info"]
    return Row(info["implementation"], stats["median"], stats["q1"], stats["q3"], info)
