"""Results as pytest-benchmark saves them, with our columns: read once, for tables and pictures."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# The order of rows: ours first, then what they are compared with.
_KINDS = ("ours", "other", "floor")
# The op itself on some backend, not a variant of it such as "ours, one call (cpu)".
_PLAIN = re.compile(r"ours( \(\w+\))?")


@dataclass(frozen=True)
class Row:
    """One implementation of a case; seconds, and what `measure` derived.

    Attributes:
        speed: how many times as fast as the fastest of the others; None where there is none.
    """

    name: str
    median: float
    low: float
    high: float
    info: dict[str, Any]
    speed: float | None = None

    @property
    def kind(self) -> str:
        return str(self.info["kind"])

    @property
    def lacks(self) -> str:
        """What it does not do that ours do in this case."""
        return str(self.info["lacks"])

    @property
    def label(self) -> str:
        """Its name, with a mark if it does less than the case asks for."""
        return f"{self.name} *" if self.lacks else self.name


@dataclass(frozen=True)
class Group:
    """One case.

    Attributes:
        rows: ours first, and by time.
        skipped: why others are missing.
        unexplained: what else is compared with in other cases of the op, and here is not.
    """

    name: str
    rows: tuple[Row, ...]
    skipped: dict[str, str]
    unexplained: tuple[str, ...] = ()

    @property
    def op(self) -> str:
        return str(self.rows[0].info["op"])

    @property
    def shape(self) -> str:
        return str(self.rows[0].info["shape"])

    @property
    def model(self) -> str:
        """Whose shape it is; empty if it is no model's."""
        return self.shape.rpartition(": ")[0]

    @property
    def sizes(self) -> str:
        """The shape without the model."""
        return self.shape.rpartition(": ")[2]

    @property
    def flops(self) -> int:
        return int(self.rows[0].info["flops"])

    @property
    def best_other(self) -> Row | None:
        """The fastest of the others, which may do less; never one of ours."""
        return _fastest(row for row in self.rows if row.kind == "other")

    @property
    def best_of_ours(self) -> Row | None:
        """The fastest of ours that does all of the case's work: of the op itself, if it is here."""
        whole = [row for row in self.rows if row.kind == "ours" and not row.lacks]
        return _fastest(row for row in whole if _PLAIN.fullmatch(row.name)) or _fastest(whole)


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        machine: ``device`` and ``versions``.
        run: ``load``, ``note`` and ``ceilings``.
        dirty: whether the tree had changes that the commit does not hold.
    """

    machine: dict[str, Any]
    run: dict[str, Any]
    date: str
    commit: str
    dirty: bool
    groups: tuple[Group, ...]

    @property
    def device(self) -> dict[str, Any]:
        return dict(self.machine["device"])

    @property
    def drawn(self) -> list[Group]:
        """The cases that have something to show of ours."""
        return [group for group in self.groups if group.best_of_ours is not None]

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
            dirty=output.get("commit_info", {}).get("dirty", False),
            groups=tuple(_groups(output["benchmarks"], output["run"]["skipped"])),
        )


def _groups(benchmarks: list[dict[str, Any]], skipped: list[dict[str, str]]) -> Iterable[Group]:
    compared: dict[str, dict[str, None]] = {}  # by op, in their order
    for one in benchmarks:
        if one["extra_info"]["kind"] == "other":
            names = compared.setdefault(one["extra_info"]["op"], {})
            names[one["extra_info"]["implementation"]] = None
    for name in dict.fromkeys(one["group"] for one in benchmarks):
        rows = _rows([one for one in benchmarks if one["group"] == name])
        missing = {one["name"]: one["reason"] for one in skipped if one["group"] == name}
        known = {row.name for row in rows} | set(missing)
        group = Group(name, rows, missing)
        elsewhere = compared.get(group.op, {})
        yield replace(group, unexplained=tuple(x for x in elsewhere if x not in known))


def _rows(benchmarks: list[dict[str, Any]]) -> tuple[Row, ...]:
    """Of one case, in order, with their speeds."""
    rows = [_row(one) for one in benchmarks]
    rows.sort(key=lambda row: (_KINDS.index(row.kind), row.median))
    best = _fastest(row for row in rows if row.kind == "other")
    if best is None:
        return tuple(rows)
    return tuple(replace(row, speed=best.median / row.median) for row in rows)


def _row(benchmark: dict[str, Any]) -> Row:
    stats, info = benchmark["stats"], benchmark["extra_info"]
    return Row(info["implementation"], stats["median"], stats["q1"], stats["q3"], info)


def _fastest(rows: Iterable[Row]) -> Row | None:
    return min(rows, key=lambda row: row.median, default=None)
