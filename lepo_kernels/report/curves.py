"""The picture of a run's learning curves, drawn from its ``metrics.jsonl``."""

import contextlib
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lepo_kernels.report.run_folder import read_metrics

# Colours that people with colour blindness can tell apart (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
INK = "#333333"
SMOOTHING = 10  # points of the moving average, at most a fifth of the curve
COLUMNS = 3
_LARGEST = 1e300  # beyond it, axes have no room for their margins

_MEAN, _PASS = re.compile(r"eval_mean@\d+"), re.compile(r"eval_pass@\d+")


@dataclass(frozen=True)
class Panel:
    """One small plot.

    Args:
        title: what it shows, with its unit.
        series: metric name -> its label in the legend.
        share: whether the values are shares, drawn from 0 to 1.
        smooth: whether to draw a moving average over the pale raw values.
        written_out: label of the series whose first and last values are written into the plot;
            such a panel has few points and marks them all.
        zero_says_nothing: whether to leave the panel out while all its values are 0.
    """

    title: str
    series: dict[str, str]
    share: bool = False
    smooth: bool = True
    written_out: str | None = None
    zero_says_nothing: bool = False


PANELS = (
    Panel("Reward (training)", {"reward": "mean"}, share=True),
    Panel(
        "Accuracy (held out)",
        {"eval_greedy_accuracy": "greedy"},
        share=True,
        smooth=False,
        written_out="greedy",
    ),
    Panel("Entropy (nats)", {"latent/entropy": "latent steps", "entropy": "discrete steps"}),
    Panel("Support size (kept tokens per latent step)", {"latent/support_size": "mean"}),
    Panel("Completion length (tokens)", {"completions/mean_length": "mean"}),
    Panel("Groups of equal rewards (no signal)", {"frac_reward_zero_std": "share"}, share=True),
    Panel(
        "Clip ratio",
        {"clip_ratio/low_mean": "low", "clip_ratio/high_mean": "high"},
        # On-policy there is nothing to clip.
        zero_says_nothing=True,
    ),
)


def plot_curves(metrics: Path | str, picture: Path | str, title: str = "") -> bool:
    """Draw the curves of a run.

    Panels without any value are left out (plain GRPO has no latent steps). Sampled accuracies
    (``eval_mean@k``, ``eval_pass@k``) join the greedy one.

    Args:
        metrics: a ``metrics.jsonl``.
        picture: the PNG to write; replaced in one go.
        title: stands above all.

    Returns:
        Whether there was anything to draw; nothing is written otherwise.

    Raises:
        FileNotFoundError: there is no such metrics file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    panels = [panel for panel in _with_sampled_accuracy(rows) if _has_values(panel, rows)]
    if not panels:
        return False
    lines = -(-len(panels) // COLUMNS)
    columns = min(COLUMNS, len(panels))
    figure = Figure(figsize=(4.0 * columns, 2.8 * lines), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        draw_title(figure, title)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, axis in zip(panels, axes, strict=False):
        _draw(panel, rows, axis)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    save_picture(figure, picture)
    return True


def draw_title(figure: Any, title: str) -> None:
    """Write a title above all panels of a matplotlib figure."""
    # A dollar sign in a name starts no formula.
    figure.suptitle(
        title, fontsize=12, color=INK, x=0.01, ha="left", fontweight="bold", parse_math=False
    )


def save_picture(figure: Any, picture: Path | str) -> None:
    """Write a matplotlib figure as a PNG that is replaced in one go."""
    fresh = Path(picture).with_name(f".{Path(picture).name}.new")
    try:
        with warnings.catch_warnings():
            # The font lacks a letter of the title; the curves are all there.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(fresh, format="png")
        os.replace(fresh, picture)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


def _with_sampled_accuracy(rows: list[dict[str, Any]]) -> list[Panel]:
    """The panels, the accuracy one with mean@k and the largest pass@k that the run has."""
    names = {name for row in rows for name in row}
    # Another data set than the only one has its name in the metric's: eval_NAME_pass@4.
    sampled = {name: name.removeprefix("eval_") for name in names if _MEAN.fullmatch(name)}
    passes = [name for name in names if _PASS.fullmatch(name)]
    if passes:
        largest = max(passes, key=lambda name: int(name.rpartition("@")[2]))
        sampled[largest] = largest.removeprefix("eval_")
    return [
        replace(panel, series={**panel.series, **sampled})
        if "eval_greedy_accuracy" in panel.series
        else panel
        for panel in PANELS
    ]


def _has_values(panel: Panel, rows: list[dict[str, Any]]) -> bool:
    values = [value for name in panel.series for _, value in _points(rows, name)]
    return any(values) if panel.zero_says_nothing else bool(values)


def _points(rows: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric, where it is a number that can be drawn."""
    return [(row["step"], row[name]) for row in rows if _is_drawable(row.get(name))]


def _is_drawable(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < _LARGEST  # NaN is not less


def _draw(panel: Panel, rows: list[dict[str, Any]], axis: Any) -> None:
    drawn = 0
    for colour, (name, label) in zip(COLOURS, panel.series.items(), strict=False):
        points = _points(rows, name)
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        _draw_series(panel, axis, steps, values, label, colour)
        drawn += 1
    _style(panel, axis, legend=drawn > 1)


def _draw_series(
    panel: Panel,
    axis: Any,
    steps: Sequence[float],
    values: Sequence[float],
    label: str,
    colour: str,
) -> None:
    window = min(SMOOTHING, len(values) // 5)
    if panel.smooth and window > 1:
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1.0)
        axis.plot(steps, _moving_average(values, window), color=colour, linewidth=1.8, label=label)
    else:
        marker = "o" if panel.written_out or len(values) == 1 else None
        axis.plot(
            steps, values, color=colour, linewidth=1.8, marker=marker, markersize=4, label=label
        )
    if label == panel.written_out:
        for position in sorted({0, len(values) - 1}):
            axis.annotate(
                f"{values[position]:.2f}",
                (steps[position], values[position]),
                xytext=(0, 6),
                textcoords="offset points",
                ha="left" if position == 0 else "right",
                fontsize=9,
                fontweight="bold",
                color=colour,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )


def _moving_average(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and its neighbours, ``window`` of them away from the ends."""
    smoothed = []
    for center in range(len(values)):
        near = values[max(0, center - window // 2) : center + (window + 1) // 2]
        smoothed.append(sum(near) / len(near))
    return smoothed


def _style(panel: Panel, axis: Any, legend: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(panel.title, fontsize=10, color=INK, loc="left")
    axis.set_xlabel("optimizer step", fontsize=8, color=INK)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.tick_params(labelsize=8, colors=INK, length=3)
    axis.grid(color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#999999")
    axis.margins(x=0.04, y=0.12)
    low, high = axis.dataLim.intervaly
    if panel.share and low >= 0 and high <= 1:
        axis.set_ylim(0, 1.04)
    elif low >= 0:
        axis.set_ylim(0, None if high > 0 else 1)
    if legend:
        axis.legend(fontsize=8, frameon=False, labelcolor=INK)
