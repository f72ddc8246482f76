"""``python -m benchmarks.report RESULTS.json [--out DIR]``: a page of tables, and pictures.

Prints the tables; with ``--out`` it writes ``report.md`` and the pictures there, without matplotlib
the page alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import plots
from benchmarks.results import Result
from benchmarks.tables import machine_lines, markdown, meaning, taken, text
from lepo_kernels.streams import forgiving_output

PAGE = "report.md"


def page(result: Result, pictures: Sequence[str], failed: Sequence[str] = ()) -> str:
    """The whole report; ``pictures`` as they are linked, and why others could not be drawn."""
    lines = ["# Benchmark results", "", f"{result.date}", ""]
    lines += [f"- {line}" for line in machine_lines(result)]
    lines += [f"- {taken(result)}", *(f"- not drawn: {line}" for line in failed)]
    lines += ["", *(f"![{Path(name).stem}]({name})" for name in pictures), ""]
    lines.append(sections(result, level=2))
    return "\n".join(lines)


def sections(result: Result, level: int) -> str:
    """A section for each op, in it a table for each shape."""
    lines = []
    for op in dict.fromkeys(group.op for group in result.groups):
        lines += [f"{'#' * level} {op}", ""]
        for group in result.groups:
            if group.op == op:
                lines += [f"{'#' * (level + 1)} {group.shape}", "", f"{meaning(group)}.", ""]
                lines += [markdown(group)]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, print, write."""
    with forgiving_output():
        _main(arguments)


def _main(arguments: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", type=Path, help="what --benchmark-json or -autosave wrote")
    parser.add_argument("--out", type=Path, help="the folder for the page and the pictures")
    wanted = parser.parse_args(arguments)
    try:
        result = Result.read(wanted.results)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(text(result))
    if wanted.out is not None:
        print(f"written to {wanted.out}: {', '.join(write(result, wanted.out))}")


def write(result: Result, folder: Path) -> list[str]:
    """Write the page, then the pictures, then the page with them; the names of all files."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / PAGE
    # At once: drawing takes a while, and may fail.
    file.write_text(page(result, []), encoding="utf-8")
    try:
        drawn = plots.draw(plots.pictures(result), folder)
    except ImportError as error:
        print(f"without pictures, which take matplotlib: {error}; run: pip install matplotlib")
        return [PAGE]
    names = [path.name for path in drawn.written]
    failed = [f"{name}: {error!r}" for name, error in drawn.failed.items()]
    file.write_text(page(result, names, failed), encoding="utf-8")
    return [PAGE, *names]


if __name__ == "__main__":
    main()
