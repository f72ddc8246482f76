"""All implementations of an op, a panel per shape, sorted by time."""

from collections.abc import Sequence
from typing import Any

from benchmarks.pictures import style
from benchmarks.results import Group, Result, Row
from benchmarks.tables import number

_BAR = 0.3  # inches per bar


def draw(groups: Sequence[Group], result: Result) -> Any:
    counts = [len(group.rows) for group in groups]
    height = 0.8 + sum(0.75 + _BAR * count for count in counts)
    # The device's name may be long, and the legend is beside the title.
    figure = style.figure(9.5, height, groups[0].op, result, result.device["name"])
    panels = figure.subplots(
        len(groups), 1, squeeze=False, height_ratios=[0.5 + _BAR * count for count in counts]
    )[:, 0]
    for group, axis in zip(groups, panels, strict=True):
        _panel(axis, group)
    panels[-1].set_xlabel(
        "milliseconds: median, line from quartile to quartile; "
        f"(x) times as fast as the fastest of the others;\n{style.LESS}",
        fontsize=8,
        color=style.INK,
    )
    handles = style.kinds({row.kind for group in groups for row in group.rows})
    style.legend(figure, handles, len(handles), "outside upper right")
    return figure


def _panel(axis: Any, group: Group) -> None:
    rows = sorted(group.rows, key=lambda row: -row.median)
    times = [1e3 * row.median for row in rows]
    names = [row.label for row in rows]
    colours = [style.COLOURS[row.kind] for row in rows]
    shown = _shown(rows)
    axis.barh(names, [min(shown, time) for time in times], color=colours, height=0.7)
    axis.hlines(
        names,
        [min(shown, 1e3 * row.low) for row in rows],
        [min(shown, 1e3 * row.high) for row in rows],
        color=style.INK,
        linewidth=1,
    )
    for name, time, row in zip(names, times, rows, strict=True):
        end = min(shown, max(time, 1e3 * row.high))
        label = _label(time, row) + (", cut off" if time > shown else "")
        axis.annotate(f"  {label}", (end, name), va="center", fontsize=8, color=style.INK)
    axis.set_xlim(0, 1.45 * shown)
    style.title(axis, group.shape)
    style.clean(axis)


def _shown(rows: Sequence[Row]) -> float:
    """Milliseconds that bars are drawn to: one far slower than all others is cut off."""
    ends = sorted(1e3 * row.high for row in rows)
    if len(ends) > 1 and ends[-1] > 4 * ends[-2]:
        return 1.5 * ends[-2]
    return ends[-1]


def _label(milliseconds: float, row: Row) -> str:
    speed = "" if row.speed is None or row.kind == "floor" else f" ({number(row.speed)} x)"
    return f"{number(milliseconds)} ms{speed}"
