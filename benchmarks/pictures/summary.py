"""One line per case: times as fast as the best of the others, which that is, and the limit."""

from collections.abc import Sequence
from typing import Any

from benchmarks.pictures import style
from benchmarks.results import Group, Result
from benchmarks.tables import number


def draw(groups: Sequence[Group], result: Result, model: str) -> Any:
    """``model`` if all cases are of one, which is then said once; else empty."""
    where = f"lepo_kernels on {result.device['name']}"
    less = any(group.best_other is not None and group.best_other.lacks for group in groups)
    figure = style.figure(
        12.5,
        1.2 + 0.42 * len(groups),
        f"{where}: {model}" if model else where,
        result,
        style.LESS if less else "",
    )
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 2))
    positions = list(range(len(groups)))[::-1]
    _speeds(left, groups, positions)
    labels = [f"{group.op}\n{group.sizes if model else group.shape}" for group in groups]
    left.set_yticks(positions, labels)
    left.set_ylim(-0.6, len(groups) - 0.4)
    words = {position: beside(group) for position, group in zip(positions, groups, strict=True)}
    style.words_beside(middle, "Which of ours, than what", words, 44)
    _shares(right, groups, positions)
    for axis in (left, right):
        style.clean(axis)
    return figure


def beside(group: Group) -> str:
    """Which rows are compared."""
    other = "nothing beside it" if group.best_other is None else f"than {group.best_other.label}"
    return f"{group.best_of_ours.name}\n{other}"


def _speeds(axis: Any, groups: Sequence[Group], positions: Sequence[int]) -> None:
    style.title(axis, "Times as fast as the fastest of the others")
    speeds = [group.best_of_ours.speed for group in groups]
    style.times_as_fast(axis, speeds, room=0.2)
    for position, speed in zip(positions, speeds, strict=True):
        if speed is not None:
            # From 1, where both are equally fast: to the left of it ours is slower.
            axis.barh(position, speed - 1, left=1, color=style.COLOURS["ours"], height=0.6)
            axis.annotate(
                f" {number(speed)} x",
                (max(1, speed), position),
                va="center",
                fontsize=8.5,
                color=style.INK,
                fontweight="bold",
            )


def _shares(axis: Any, groups: Sequence[Group], positions: Sequence[int]) -> None:
    style.title(axis, "Share of the measured limit")
    shares = [group.best_of_ours.info["percent_of_limit"] for group in groups]
    axis.barh(positions, shares, color=style.COLOURS["ours"], height=0.6)
    axis.axvline(100, color=style.INK, linewidth=1)
    axis.set_xlim(0, max(120, *(1.2 * share for share in shares)))
    for position, share in zip(positions, shares, strict=True):
        axis.annotate(f" {share:.0f}%", (share, position), va="center", fontsize=8, color=style.INK)
