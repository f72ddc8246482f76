"""``python -m benchmarks.performance`` writes ``docs/performance.md`` from committed results."""

from pathlib import Path

from benchmarks import plots, report
from benchmarks.results import Result
from benchmarks.tables import machine_lines, taken

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "images"

_HEAD = """# Performance

Written by `python -m benchmarks.performance` from the files in `benchmarks/results`; do not edit.
`lepo bench` takes the same figures on your machine;
[benchmarks/README.md](../benchmarks/README.md) says how they are taken and how to read them. In
short: a table is one case, whose implementations were checked against a float64 oracle and then
timed in turn; `speed` is how many times as fast a row is as the fastest of the others (eager
PyTorch, torch.compile, and peers that are installed), and `of limit` the share of what the measured
bandwidth and rate of products allow.
"""

_NO_GPU = """**There are no GPU figures yet**: no committed result was taken on a GPU. The kernels
for CUDA and Triton are simulated or interpreted, and compiled
([cuda-kernels.md](cuda-kernels.md), [triton-kernels.md](triton-kernels.md)).
"""


def files() -> list[Path]:
    """The committed results, GPUs' first."""
    found = sorted(RESULTS.glob("*.json"))
    return sorted(found, key=lambda file: Result.read(file).device["type"] != "cuda")


def page() -> str:
    """The page's text."""
    results = {file.stem: Result.read(file) for file in files()}
    lines = [_HEAD]
    if not any(result.device["type"] == "cuda" for result in results.values()):
        lines.append(_NO_GPU)
    for stem, result in results.items():
        lines += [f"## {result.device['name']}: {stem}", ""]
        lines += [f"- {line}" for line in machine_lines(result)]
        lines += [f"- {taken(result)}", ""]
        for name in plots.overview(result):
            lines += [f"![{Path(name).stem} of {stem}](images/{prefix(stem)}{name})", ""]
        lines.append(report.sections(result, level=3))
    return "\n".join(lines)


def prefix(stem: str) -> str:
    return f"performance_{plots.slug(stem)}_"


def main() -> None:
    """Write the page and its pictures."""
    PAGE.write_text(page(), encoding="utf-8")
    for file in files():
        drawn = plots.draw(plots.overview(Result.read(file)), PICTURES, prefix(file.stem))
        if drawn.failed:
            raise SystemExit(f"not drawn of {file.name}: {', '.join(drawn.failed)}")
    print(f"written: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
