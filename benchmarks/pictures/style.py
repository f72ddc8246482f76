"""What all pictures share: a figure with its title and its facts, colours, axes, words.

The colours can be told apart with colour blindness (Okabe and Ito).
"""

import textwrap
from collections.abc import Iterable
from typing import Any

from benchmarks.results import Result

COLOURS = {"ours": "#0072B2", "other": "#E69F00", "floor": "#999999"}
LABELS = {"ours": "ours", "other": "others", "floor": "floor: a part that nobody can leave out"}
# For things of one kind, such as models: no two share both the colour and the marker.
MANY = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPXp*"
INK, PALE = "#333333", "#DDDDDD"
LESS = "* does less than the case asks for"
_TOP = 0.32  # inches for the title


def facts(result: Result) -> str:
    """What a figure is worth nothing without: the version of torch, the threads, the day."""
    device = result.device
    found = [f"torch {result.machine['versions']['torch']}"]
    if "threads" in device:
        found.append(f"{device['threads']} thread{'' if device['threads'] == 1 else 's'}")
    return ", ".join([*found, result.date[:10]])


def figure(width: float, height: float, title: str, result: Result, note: str = "") -> Any:
    """Return a figure that is laid out by itself; ``height`` is that of what is below the title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height + _TOP), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(made)
    made.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left", fontweight="bold")
    words = "    ".join(filter(None, [facts(result), note]))
    made.supxlabel(words, fontsize=7.5, color=INK, x=0.01, ha="left")
    return made


def title(axis: Any, text: str) -> None:
    axis.set_title(text, fontsize=9, color=INK, loc="left")


def clean(axis: Any) -> None:
    axis.tick_params(labelsize=8, colors=INK, length=0)
    axis.tick_params(axis="y", labelsize=7.5)
    axis.grid(axis="x", color=PALE, linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#999999")


def logarithmic(axis: Any) -> None:
    """With plain numbers: 0.1, 1, 10."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def times_as_fast(axis: Any, speeds: Iterable[float | None], room: float) -> None:
    """Let a panel hold all ``speeds`` and 1, on a logarithmic axis, with a share of room beside."""
    known = [speed for speed in speeds if speed is not None]
    low, high = min([0.8, *known]) / 1.2, max([2.0, *known]) * 1.1
    logarithmic(axis.xaxis)
    axis.set_xlim(low, high * (high / low) ** room)
    axis.axvline(1, color=INK, linewidth=1)
    # Few and round, so that they do not touch: a panel may span four powers of ten.
    if high / low > 100:
        from matplotlib.ticker import LogLocator

        axis.xaxis.set_major_locator(LogLocator(10))


def words_beside(axis: Any, heading: str, words: dict[float, str], width: int) -> None:
    """Fill a panel with words, each at its height; no line is longer than ``width`` letters."""
    title(axis, heading)
    axis.set_axis_off()
    axis.set_xlim(0, 1)
    for position, text in words.items():
        # The mark of a peer stays in the line of its name.
        text = text.replace(" *", "\N{NO-BREAK SPACE}*")
        lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width)]
        axis.annotate(
            "\n".join(lines), (0, position), va="center", fontsize=7.5, color=INK, linespacing=1.1
        )


def legend(made: Any, handles: list[Any], columns: int, where: str, **more: Any) -> None:
    options = {"fontsize": 8, "frameon": False, "labelcolor": INK, "ncols": columns}
    made.legend(handles=handles, loc=where, **options, **more)


def kinds(names: Iterable[str]) -> list[Any]:
    """Return what a legend shows for these kinds of rows."""
    from matplotlib.patches import Patch

    return [Patch(color=COLOURS[name], label=LABELS[name]) for name in LABELS if name in names]


def dots(names: Iterable[str], markers: bool) -> list[Any]:
    """Return what a legend shows for points: the colour of each name, and its marker."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], linestyle="", label=name, marker=MARKERS[i] if markers else "o", color=hue)
        for i, (name, hue) in enumerate(zip(names, MANY * 2, strict=False))
    ]
