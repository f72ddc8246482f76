"""How far from the limits: bandwidth of the cases without products, a roofline of the others."""

from collections.abc import Sequence
from typing import Any

from benchmarks.pictures import style
from benchmarks.pictures.places import put_numbers
from benchmarks.results import Group, Result
from benchmarks.tables import number


def draw(groups: Sequence[Group], result: Result, model: str) -> Any:
    """``model`` if all cases are of one, which is then said once; else empty."""
    plain = [group for group in groups if not group.flops]
    products = [group for group in groups if group.flops]
    # The roofline is as high as its key, which has two lines to a case.
    heights = [0.75 + 0.4 * len(plain)] * bool(plain)
    heights += [max(4.0, 0.9 + 0.31 * len(products))] * bool(products)
    note = "(%) of what the limits allow"
    title = f"Distance to the measured limits of {result.device['name']}"
    title += f": {model}" if model else ""
    figure = style.figure(12.5, 0.3 + sum(heights), title, result, note)
    parts = iter(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    labels = {
        group.name: f"{group.op}\n{group.sizes if model else group.shape}" for group in groups
    }
    if plain:
        axis = next(parts).subplots()
        _bars(axis, plain, labels)
        bandwidths(axis, result, len(plain) - 0.5)
    if products:
        axis, key = next(parts).subplots(1, 2, width_ratios=(1.3, 1))
        points = roofline(axis, products, result)
        _key(key, products, labels)
        put_numbers(figure, axis, points)
    return figure


def bandwidths(axis: Any, result: Result, top: float) -> None:
    """The measured limits, named at height ``top``: the lower one on its left, the other right."""
    found = {name: result.run["ceilings"][name] / 1e9 for name in ("read", "copy")}
    for name, side in zip(sorted(found, key=found.__getitem__), ("right", "left"), strict=True):
        limit = found[name]
        axis.axvline(limit, color=style.COLOURS["other"], linewidth=1.4)
        axis.annotate(
            f" {name} {limit:.0f} ",
            (limit, top),
            fontsize=8,
            color=style.INK,
            ha=side,
            va="bottom",
        )
    axis.set_ylim(-0.5, top + 0.5)
    axis.set_xlim(0, 1.15 * max([*axis.dataLim.intervalx, *found.values()]))
    axis.set_xlabel("least bytes of the case over its median, GB/s", fontsize=8, color=style.INK)
    style.title(axis, "Without products: effective GB/s")
    style.clean(axis)


def _bars(axis: Any, groups: Sequence[Group], labels: dict[str, str]) -> None:
    """With the share of the limit, as the summary has it."""
    infos = [group.best_of_ours.info for group in groups]
    values = [info["gb_per_s"] for info in infos]
    positions = list(range(len(groups)))[::-1]
    axis.barh(positions, values, color=style.COLOURS["ours"], height=0.6)
    for position, value, info in zip(positions, values, infos, strict=True):
        words = f" {number(value)} ({info['percent_of_limit']:.0f}%)"
        axis.annotate(words, (value, position), va="center", fontsize=8, color=style.INK)
    axis.set_yticks(positions, [labels[group.name] for group in groups])


def roofline(axis: Any, groups: Sequence[Group], result: Result) -> list[tuple[float, float]]:
    """The roofs, and room for the points: flops per byte and TFLOP/s of each case."""
    style.title(axis, "With products: TFLOP/s under the roofs")
    ceilings = result.run["ceilings"]
    bandwidth = max(ceilings["read"], ceilings["copy"])
    points = [
        (group.flops / group.rows[0].info["bytes"], group.best_of_ours.info["tflop_per_s"])
        for group in groups
    ]
    roofs = {name: ceilings["gemm"][name] for name in {x.rows[0].info["dtype"] for x in groups}}
    edges = [roof / bandwidth for roof in roofs.values()]
    low = min(x for x, _ in [*points, *((edge, 0) for edge in edges)]) / 2
    high = max(x for x, _ in [*points, *((edge, 0) for edge in edges)]) * 4
    for name, roof in sorted(roofs.items()):
        corners = [low, roof / bandwidth, high]
        heights = [min(roof, bandwidth * x) / 1e12 for x in corners]
        axis.plot(corners, heights, color=style.COLOURS["other"], linewidth=1.4)
        words = f"{name}: {roof / 1e12:.3g}"
        axis.annotate(
            words, (high, roof / 1e12), ha="right", va="bottom", fontsize=8, color=style.INK
        )
    style.logarithmic(axis.xaxis)
    style.logarithmic(axis.yaxis)
    axis.set_xlim(low, high)
    rates = [rate for _, rate in points]
    axis.set_ylim(min(rates) / 2, 1.6 * max([*rates, *(roof / 1e12 for roof in roofs.values())]))
    axis.set_xlabel("flops per byte of least traffic", fontsize=8, color=style.INK)
    style.clean(axis)
    return points


def _key(axis: Any, groups: Sequence[Group], labels: dict[str, str]) -> None:
    """What the numbers at the points mean."""
    axis.set_axis_off()
    lines = []
    for index, group in enumerate(groups, 1):
        op, sizes = labels[group.name].split("\n")
        info = group.best_of_ours.info
        rate = f"{number(info['tflop_per_s'])} TFLOP/s ({info['percent_of_limit']:.0f}%)"
        lines += [f"{index:>2}  {op}: {rate}", f"      {sizes}"]
    options = {"xycoords": "axes fraction", "va": "top", "annotation_clip": False}
    axis.annotate("\n".join(lines), (0, 1), fontsize=7.5, color=style.INK, **options)
