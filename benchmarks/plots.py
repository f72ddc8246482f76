"""Results as pictures: how much faster, each implementation's time, the distance to the limits.

The colours can be told apart with colour blindness (Okabe and Ito); every bar and point has its
number beside it.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Group, Result, Row
from benchmarks.tables import number

COLOURS = {"ours": "#0072B2", "other": "#E69F00", "floor": "#999999"}
LABELS = {"ours": "ours", "other": "others", "floor": "floor: a part that nobody can leave out"}
INK, PALE = "#333333", "#DDDDDD"
_BAR = 0.3  # inches per bar
# Behind words that a line would run through.
_BACKGROUND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6}


def draw(result: Result, folder: Path) -> list[Path]:
    """Write all pictures of a run; their paths, the summary first."""
    groups = _drawn(result)
    if not groups:
        return []
    written = overview(result, folder)
    for op in dict.fromkeys(group.op for group in groups):
        figure = _bars([group for group in groups if group.op == op])
        written.append(_save(figure, folder / f"bars_{slug(op)}.png"))
    return written


def overview(result: Result, folder: Path, prefix: str = "") -> list[Path]:
    """Write the two pictures that show all cases at once."""
    groups = _drawn(result)
    figures = {"summary": _summary(groups, result), "roofline": _limits(groups, result)}
    return [_save(figure, folder / f"{prefix}{name}.png") for name, figure in figures.items()]


def _drawn(result: Result) -> list[Group]:
    return [group for group in result.groups if group.best_of_ours is not None]


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib, so that a picture changes only with what it shows.
    figure.savefig(path, format="png", metadata={"Software": None})
    return path


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _figure(width: float, height: float, title: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left", fontweight="bold")
    return figure


def _summary(groups: Sequence[Group], result: Result) -> Any:
    """One line per case: times as fast as the best of the others, and the share of the limit."""
    height = 1.3 + 0.48 * len(groups)
    figure = _figure(11.5, height, f"lepo_kernels on {result.device['name']}")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    best = [group.best_of_ours for group in groups]
    positions = list(range(len(groups)))[::-1]
    speeds = [row.speed or 0.0 for row in best]
    # From 1, where both are equally fast: to the left of it ours is slower.
    left.barh(positions, [x - 1 for x in speeds], left=1, color=COLOURS["ours"], height=0.6)
    _logarithmic(left.xaxis)
    low, high = min(0.8, *speeds), max(2.0, *speeds)
    left.set_xlim(low / 1.2, high * (high / low) ** 0.7)
    left.axvline(1, color=INK, linewidth=1)
    for position, group, speed in zip(positions, groups, speeds, strict=True):
        words = (
            f" {number(speed)} x {group.best_other}" if group.best_other else " nothing beside it"
        )
        left.annotate(words, (max(1, speed), position), va="center", fontsize=8, color=INK)
    left.set_yticks(positions, [f"{group.op}\n{group.shape}" for group in groups], fontsize=7.5)
    _title(left, "Times as fast as the fastest of the others")
    shares = [row.info["percent_of_limit"] for row in best]
    right.barh(positions, shares, color=COLOURS["ours"], height=0.6)
    right.axvline(100, color=INK, linewidth=1)
    right.set_xlim(0, max(120, *(1.2 * share for share in shares)))
    for position, share in zip(positions, shares, strict=True):
        right.annotate(f" {share:.0f}%", (share, position), va="center", fontsize=8, color=INK)
    _title(right, "Share of the measured limit")
    for axis in (left, right):
        _clean(axis)
    return figure


def _bars(groups: Sequence[Group]) -> Any:
    """All implementations of an op, a panel per shape, sorted by time."""
    counts = [len(group.rows) for group in groups]
    figure = _figure(9.5, 0.8 + sum(0.75 + _BAR * count for count in counts), groups[0].op)
    panels = figure.subplots(
        len(groups), 1, squeeze=False, height_ratios=[0.5 + _BAR * count for count in counts]
    )[:, 0]
    for group, axis in zip(groups, panels, strict=True):
        rows = sorted(group.rows, key=lambda row: -row.median)
        times = [1e3 * row.median for row in rows]
        names = [row.name + (" *" if row.info["lacks"] else "") for row in rows]
        colours = [COLOURS[row.kind] for row in rows]
        shown = _shown(rows)
        axis.barh(names, [min(shown, time) for time in times], color=colours, height=0.7)
        axis.hlines(
            names,
            [min(shown, 1e3 * row.low) for row in rows],
            [min(shown, 1e3 * row.high) for row in rows],
            color=INK,
            linewidth=1,
        )
        for name, time, row in zip(names, times, rows, strict=True):
            end = min(shown, max(time, 1e3 * row.high))
            label = _bar_label(time, row) + (", cut off" if time > shown else "")
            axis.annotate(f"  {label}", (end, name), va="center", fontsize=8, color=INK)
        axis.set_xlim(0, 1.45 * shown)
        axis.tick_params(axis="y", labelsize=8)
        _title(axis, group.shape)
        _clean(axis)
    panels[-1].set_xlabel(
        "milliseconds: median, line from quartile to quartile; "
        "(x) times as fast as the fastest of the others;\n"
        "* does less than the case asks for",
        fontsize=8,
        color=INK,
    )
    _legend(figure, {row.kind for group in groups for row in group.rows})
    return figure


def _shown(rows: Sequence[Row]) -> float:
    """Milliseconds that bars are drawn to: one far slower than all others is cut off."""
    ends = sorted(1e3 * row.high for row in rows)
    if len(ends) > 1 and ends[-1] > 4 * ends[-2]:
        return 1.5 * ends[-2]
    return ends[-1]


def _bar_label(milliseconds: float, row: Row) -> str:
    speed = "" if row.speed is None or row.kind == "floor" else f" ({number(row.speed)} x)"
    return f"{number(milliseconds)} ms{speed}"


def _limits(groups: Sequence[Group], result: Result) -> Any:
    """Bandwidth of the cases without products, and a roofline of those with."""
    ceilings = result.run["ceilings"]
    title = f"Distance to the measured limits of {result.device['name']}"
    figure = _figure(11.5, 4.2 + 0.14 * len(groups), title)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _bandwidth(left, [group for group in groups if not group.rows[0].info["flops"]], ceilings)
    _roofline(right, [group for group in groups if group.rows[0].info["flops"]], ceilings)
    return figure


def _bandwidth(axis: Any, groups: Sequence[Group], ceilings: dict[str, Any]) -> None:
    _title(axis, "Without products: effective GB/s")
    rows = [group.best_of_ours for group in groups]
    values = [row.info["gb_per_s"] for row in rows]
    positions = list(range(len(groups)))[::-1]
    axis.barh(positions, values, color=COLOURS["ours"], height=0.35)
    for position, value, group in zip(positions, values, groups, strict=True):
        axis.annotate(f" {number(value)}", (value, position), va="center", fontsize=8, color=INK)
        label = f"{group.op}  {group.shape}"
        axis.annotate(
            label, (0, position + 0.24), fontsize=7.5, color=INK, va="bottom", bbox=_BACKGROUND
        )
    top = len(groups) - 0.2
    for place, name in enumerate(("read", "copy")):
        limit = ceilings[name] / 1e9
        axis.axvline(limit, color=COLOURS["other"], linewidth=1.4)
        axis.annotate(
            f" {name} {limit:.0f}", (limit, top + 0.22 * place), fontsize=8, color=INK, va="bottom"
        )
    axis.set_ylim(-0.5, top + 0.6)
    axis.set_xlim(0, 1.25 * max([*values, ceilings["read"] / 1e9, ceilings["copy"] / 1e9]))
    axis.set_yticks([])
    axis.set_xlabel("least bytes of the case over its median, GB/s", fontsize=8, color=INK)
    _clean(axis)


def _roofline(axis: Any, groups: Sequence[Group], ceilings: dict[str, Any]) -> None:
    _title(axis, "With products: TFLOP/s under the roofs")
    bandwidth = max(ceilings["read"], ceilings["copy"])
    intensities = [group.rows[0].info["flops"] / group.rows[0].info["bytes"] for group in groups]
    span = [min([1e3, *intensities]) / 6, max([1.0, *intensities]) * 6]
    used = {group.rows[0].info["dtype"] for group in groups}
    for name in sorted(used, key=lambda name: -ceilings["gemm"][name]):
        roof = ceilings["gemm"][name]
        points = [span[0], roof / bandwidth, span[1]]
        heights = [min(roof, bandwidth * x) / 1e12 for x in points]
        axis.plot(points, heights, color=COLOURS["other"], linewidth=1.4)
        axis.annotate(
            f"{name}: {roof / 1e12:.3g}",
            (span[1], roof / 1e12),
            ha="right",
            va="bottom",
            fontsize=8,
            color=INK,
        )
    for index, (group, intensity) in enumerate(zip(groups, intensities, strict=True), 1):
        row = group.best_of_ours
        rate = row.info["tflop_per_s"]
        axis.plot([intensity], [rate], "o", color=COLOURS["ours"], markersize=6)
        axis.annotate(
            f"{index}",
            (intensity, rate),
            xytext=(6, -9),
            textcoords="offset points",
            fontsize=8,
            color=INK,
            fontweight="bold",
        )
    key = [
        f"{index}  {group.op.partition(' ')[0]}  {number(group.best_of_ours.info['tflop_per_s'])}\n"
        f"     {group.shape}"
        for index, group in enumerate(groups, 1)
    ]
    axis.annotate(
        "\n".join(key), (0.02, -0.16), xycoords="axes fraction", fontsize=7.5, color=INK, va="top"
    )
    _logarithmic(axis.xaxis)
    _logarithmic(axis.yaxis)
    axis.set_xlim(*span)
    rates = [group.best_of_ours.info["tflop_per_s"] for group in groups]
    roofs = [ceilings["gemm"][name] / 1e12 for name in used]
    axis.set_ylim(min([1e3, *rates]) / 3, 1.6 * max([0.001, *rates, *roofs]))
    axis.set_xlabel("flops per byte of least traffic", fontsize=8, color=INK)
    _clean(axis)


def _title(axis: Any, text: str) -> None:
    axis.set_title(text, fontsize=9, color=INK, loc="left")


def _clean(axis: Any) -> None:
    axis.tick_params(labelsize=8, colors=INK, length=0)
    axis.tick_params(axis="y", labelsize=7.5)
    axis.grid(axis="x", color=PALE, linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#999999")


def _logarithmic(axis: Any) -> None:
    """With plain numbers: 0.1, 1, 10."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def _legend(figure: Any, kinds: set[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=COLOURS[kind], label=LABELS[kind]) for kind in LABELS if kind in kinds]
    options = {"fontsize": 8, "frameon": False, "labelcolor": INK, "ncols": len(handles)}
    figure.legend(handles=handles, loc="upper right", **options)
