"""Numbers beside points, so that no number covers another one, or a point."""

from collections.abc import Iterator, Sequence
from math import cos, pi, sin
from typing import Any

from benchmarks.pictures import style

_Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels
_WIDTH, _HEIGHT = 13.0, 9.0  # of two digits, in points


def put_numbers(figure: Any, axis: Any, points: Sequence[tuple[float, float]]) -> None:
    """Draw the points, numbered from 1; a line leads to a number that is far away."""
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    centres = [tuple(map(float, pair)) for pair in axis.transData.transform(points)]
    taken: list[_Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in centres]
    taken += [words.get_window_extent().extents for words in axis.texts]
    for index, (point, centre) in enumerate(zip(points, centres, strict=True), 1):
        axis.plot(*point, "o", color=style.COLOURS["ours"], markersize=6, alpha=0.8)
        right, up = next(
            offset for offset in _offsets() if _free(box := _box(centre, offset, pixels), taken)
        )
        taken.append(box)
        near = abs(right) + abs(up) < 20
        axis.annotate(
            f"{index}",
            point,
            xytext=(right, up),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=style.INK,
            fontweight="bold",
            arrowprops=None if near else {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6},
        )


def _offsets() -> Iterator[tuple[float, float]]:
    """Around a point, ever farther away, in points."""
    distance = 11.0
    while True:
        for step in range(12):
            angle = pi * (step / 6 - 0.25)
            yield distance * cos(angle), distance * sin(angle)
        distance += 5


def _box(centre: tuple[float, ...], offset: tuple[float, float], pixels: float) -> _Box:
    x, y = (at + pixels * far for at, far in zip(centre, offset, strict=True))
    wide, high = pixels * _WIDTH / 2, pixels * _HEIGHT / 2
    return x - wide, y - high, x + wide, y + high


def _free(box: _Box, taken: Sequence[_Box]) -> bool:
    left, bottom, right, top = box
    return all(
        right <= one[0] or one[2] <= left or top <= one[1] or one[3] <= bottom for one in taken
    )
