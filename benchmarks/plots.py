"""Which pictures a run gets, and their files' names."""

import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.results import Group, Result

Pictures = dict[str, Callable[[], Any]]  # a file's name, and what makes its figure
# So many cases can be told apart in one picture; more get one for each model, too.
FEW = 20
# So many bars fit into a picture of an op; more are drawn for each model.
BARS = 50


@dataclass
class Drawn:
    """Files that were written, and why others were not."""

    written: list[Path] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)


def pictures(result: Result) -> Pictures:
    """All of a run: the overview, and the bars of each op.

    Raises:
        ImportError: matplotlib is not here.
    """
    from benchmarks.pictures import bars

    named = overview(result)
    for op, mine in _by("op", result.drawn).items():
        parts = {op: mine}
        if sum(len(group.rows) for group in mine) > BARS:
            parts = {f"{op} {model}": part for model, part in _by("model", mine).items()}
        for name, part in parts.items():
            named[f"bars_{slug(name)}.png"] = partial(bars.draw, part, result)
    return named


def overview(result: Result) -> Pictures:
    """``summary.png`` and ``roofline.png`` show all cases; many have one of each per model, too.

    Raises:
        ImportError: matplotlib is not here.
    """
    import matplotlib  # noqa: F401

    from benchmarks.pictures import limits, models, summary

    groups = result.drawn
    by_model = _by("model", groups)
    if not groups:
        return {}
    if len(by_model) == 1 or len(groups) <= FEW:
        one = groups[0].model if len(by_model) == 1 else ""
        return {
            "summary.png": partial(summary.draw, groups, result, one),
            "roofline.png": partial(limits.draw, groups, result, one),
        }
    named: Pictures = {
        "summary.png": partial(models.summary, groups, result),
        "roofline.png": partial(models.roofline, groups, result),
    }
    for kind, draw in (("summary", summary.draw), ("roofline", limits.draw)):
        for model, mine in by_model.items():
            named[f"{kind}_{slug(model)}.png"] = partial(draw, mine, result, model)
    return named


def _by(part: str, groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups with the same op, or the same model, in their order."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(getattr(group, part), []).append(group)
    return found


def draw(named: Pictures, folder: Path, prefix: str = "") -> Drawn:
    """Write them; one that fails leaves the others alone."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Drawn()
    for name, make in named.items():
        try:
            # Without the version of matplotlib, so that a picture changes only with what it shows.
            make().savefig(folder / f"{prefix}{name}", format="png", metadata={"Software": None})
            found.written.append(folder / f"{prefix}{name}")
        except Exception as error:
            traceback.print_exception(error)
            found.failed[name] = error
    return found


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
