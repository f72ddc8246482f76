"""Many cases of several models at a glance: a line per op, and a point per case."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.pictures import limits, style
from benchmarks.results import Group, Result
from benchmarks.tables import number


def summary(groups: Sequence[Group], result: Result) -> Any:
    """How much faster, than what, how far from the limit."""
    ops = list(dict.fromkeys(group.op for group in groups))
    less = any(group.best_other is not None and group.best_other.lacks for group in groups)
    title = f"lepo_kernels on {result.device['name']}: a point is a case\n"
    note = style.LESS if less else ""
    figure = style.figure(12.5, 1.7 + 0.62 * len(ops), title, result, note)
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2.2, 1.8))
    style.title(left, "Times as fast as the fastest of the others")
    style.times_as_fast(left, (group.best_of_ours.speed for group in groups), room=0.02)
    _points(left, groups, ops, lambda group: group.best_of_ours.speed)
    words = {-i: _beside([x for x in groups if x.op == op]) for i, op in enumerate(ops)}
    style.words_beside(middle, "Than what (cases)", {float(i): x for i, x in words.items()}, 46)
    style.title(right, "Percent of the measured limit")
    _points(right, groups, ops, lambda group: group.best_of_ours.info["percent_of_limit"])
    right.axvline(100, color=style.INK, linewidth=1)
    right.set_xlim(0, max(110, 1.05 * right.dataLim.xmax))
    for axis in (left, right):
        style.clean(axis)
    left.set_ylim(0.5 - len(ops), 0.5)
    _models(figure, groups)
    return figure


def roofline(groups: Sequence[Group], result: Result) -> Any:
    """Bandwidths and rates of all cases under the limits."""
    plain = [group for group in groups if not group.flops]
    products = [group for group in groups if group.flops]
    title = f"Distance to the measured limits of {result.device['name']}: a point is a case\n"
    figure = style.figure(12.5, 5.4, title, result)
    shown = [part for part in (plain, products) if part]
    panels = iter(figure.subplots(1, len(shown), squeeze=False)[0])
    if plain:
        ops = list(dict.fromkeys(group.op for group in plain))
        axis = next(panels)
        _points(axis, plain, ops, lambda group: group.best_of_ours.info["gb_per_s"])
        limits.bandwidths(axis, result, 0.5)
        axis.set_ylim(0.5 - len(ops), 0.8)
    if products:
        axis = next(panels)
        names = _names(groups)
        ops = list(dict.fromkeys(group.op for group in products))
        found = limits.roofline(axis, products, result)
        for group, point in zip(products, found, strict=True):
            hue, marker = style.MANY[ops.index(group.op)], style.MARKERS[names.index(group.model)]
            axis.plot(*point, marker, color=hue, markersize=6, alpha=0.8, markeredgecolor="white")
        handles = style.dots(ops, markers=False)
        style.legend(axis, handles, 1, "lower right")
    _models(figure, groups)
    return figure


def _names(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(group.model for group in groups))


def _models(figure: Any, groups: Sequence[Group]) -> None:
    """A legend in a line of its own, for which the title has left room."""
    names = _names(groups)
    place = (0, 1 - 0.24 / figure.get_figheight())
    handles = style.dots(names, markers=True)
    style.legend(figure, handles, len(names), "upper left", bbox_to_anchor=place)


def _points(
    axis: Any,
    groups: Sequence[Group],
    ops: Sequence[str],
    value: Callable[[Group], float | None],
) -> None:
    """A line for each op, from the top; in it the models one below the other."""
    names = _names(groups)
    for group in groups:
        place = names.index(group.model)
        down = 0.6 * ((place + 0.5) / len(names) - 0.5)
        found = value(group)
        if found is not None:
            marker, hue = style.MARKERS[place], style.MANY[place]
            axis.plot(found, -ops.index(group.op) - down, marker, color=hue, markersize=5.5)
    axis.set_yticks([-i for i in range(len(ops))], ops)
    for i in range(1, len(ops)):
        axis.axhline(0.5 - i, color=style.PALE, linewidth=0.6)


def _beside(groups: Sequence[Group]) -> str:
    """From which to which speed, and the others with the number of cases they are the best in."""
    speeds = [x.best_of_ours.speed for x in groups if x.best_of_ours.speed is not None]
    if not speeds:
        return "nothing beside it"
    others = Counter(group.best_other.label for group in groups if group.best_other is not None)
    named = ", ".join(f"{name} ({count})" for name, count in others.most_common())
    return f"{number(min(speeds))} to {number(max(speeds))} x\n{named}"
