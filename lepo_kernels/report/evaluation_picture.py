"""The picture of evaluations: accuracy by latent length or task, Pass@k, and ablated latents."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lepo_kernels.report.curves import COLOURS, INK, draw_title, save_picture

Result = Mapping[str, Any]
_PASS = re.compile(r"pass@(\d+)")


def plot_evaluations(results: Sequence[Result], picture: Path | str, title: str = "") -> None:
    """Draw evaluations with their 95 % intervals.

    Panels: accuracy against the latent length, where a task was evaluated with several, else per
    task; Pass@k against k, where there is more than one k; and the change of accuracy under each
    ablation.

    Args:
        results: entries of "evaluations" in the JSON of ``lepo eval``.
        picture: the PNG to write; replaced in one go.
        title: stands above all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [_draw_accuracy]
    if any(len(_passes(result)) > 1 for result in results):
        panels.append(_draw_passes)
    if any(result["ablations"] for result in results):
        panels.append(_draw_ablations)
    figure = Figure(figsize=(5.0 * len(panels), 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        draw_title(figure, title)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for draw, axis in zip(panels, axes, strict=True):
        draw(results, axis)
        axis.tick_params(labelsize=8, colors=INK, length=3)
        axis.grid(color="#DDDDDD", linewidth=0.6)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        # Below: among the points it would hide some.
        axis.legend(
            fontsize=7, frameon=False, labelcolor=INK, loc="upper left", bbox_to_anchor=(0, -0.14)
        )
    save_picture(figure, picture)


def _draw_accuracy(results: Sequence[Result], axis: Any) -> None:
    """A line per task over its latent lengths, or a point per task."""
    tasks = list(dict.fromkeys(result["task"] for result in results))
    swept = len(results) > len(tasks)
    for number, name in enumerate(_accuracies(results)):
        for task in tasks if swept else [None]:
            some = [r for r in results if task in (None, r["task"]) and name in r["metrics"]]
            at = [r["latent_length"] if swept else tasks.index(r["task"]) for r in some]
            points = [(r["metrics"][name], r["intervals"][name]) for r in some]
            label = name if task is None or len(tasks) == 1 else f"{task}: {name}"
            colour = COLOURS[(number if task is None else 2 * tasks.index(task) + number) % 4]
            _draw_points(axis, at, points, label, colour, joined=swept)
    axis.set_title("Accuracy", fontsize=10, color=INK, loc="left")
    axis.set_ylim(0, 1.04)
    if swept:
        axis.set_xlabel("latent length", fontsize=8, color=INK)
        axis.set_xticks(sorted({result["latent_length"] for result in results}))
    else:
        axis.set_xticks(range(len(tasks)), [_plain(task) for task in tasks], fontsize=8)
        axis.set_xlim(-0.5, len(tasks) - 0.5)


def _draw_passes(results: Sequence[Result], axis: Any) -> None:
    for number, result in enumerate(results):
        ks = _passes(result)
        points = [(result["metrics"][name], result["intervals"][name]) for name in ks.values()]
        colour = COLOURS[number % len(COLOURS)]
        _draw_points(axis, list(ks), points, str(result["name"]), colour, joined=True)
    axis.set_xscale("log", base=2)
    marked = sorted({k for result in results for k in _passes(result)})
    axis.set_xticks(marked, list(map(str, marked)))
    axis.minorticks_off()
    axis.set_title("Pass@k", fontsize=10, color=INK, loc="left")
    axis.set_xlabel("k", fontsize=8, color=INK)
    axis.set_ylim(0, 1.04)


def _draw_ablations(results: Sequence[Result], axis: Any) -> None:
    """The change of accuracy, grouped by ablation."""
    series = [
        (result, name) for result in results for name in _names_of(result["ablations"].values())
    ]
    kinds = _names_of(result["ablations"] for result in results)
    for number, (result, name) in enumerate(series):
        effects = [result["ablations"][kind][name] for kind in kinds]
        points = [(effect["difference"], effect["difference_interval"]) for effect in effects]
        # Beside one another, within 0.6 of the unit that an ablation has.
        shift = 0.6 * ((number + 0.5) / len(series) - 0.5)
        at = [place + shift for place in range(len(kinds))]
        label = name if len(results) == 1 else f"{result['name']}: {name}"
        _draw_points(axis, at, points, label, COLOURS[number % len(COLOURS)], joined=False)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set_xticks(range(len(kinds)), kinds, fontsize=8)
    axis.set_title("Change of accuracy with ablated latents", fontsize=10, color=INK, loc="left")


def _draw_points(
    axis: Any,
    at: Sequence[float],
    points: Sequence[tuple[float, Sequence[float]]],
    label: str,
    colour: str,
    *,
    joined: bool,
) -> None:
    """Values with the ends of their intervals."""
    values = [value for value, _ in points]
    # A value lies within its interval, but for the last bits of two sums.
    below = [max(0.0, value - ends[0]) for value, ends in points]
    above = [max(0.0, ends[1] - value) for value, ends in points]
    axis.errorbar(
        at,
        values,
        yerr=[below, above],
        label=_plain(label),
        color=colour,
        marker="o",
        markersize=4,
        linestyle="-" if joined else "none",
        linewidth=1.8,
        elinewidth=1.0,
        capsize=3,
    )


def _accuracies(results: Sequence[Result]) -> list[str]:
    names = _names_of(result["metrics"] for result in results)
    return [name for name in names if name == "greedy_accuracy" or name.startswith("mean@")]


def _passes(result: Result) -> dict[int, str]:
    """k -> the name of Pass@k."""
    found = [_PASS.fullmatch(name) for name in result["metrics"]]
    return {int(match[1]): match[0] for match in found if match}


def _names_of(mappings: Any) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _plain(text: str) -> str:
    """A dollar sign in a name starts no formula."""
    return text.replace("$", r"\$")
