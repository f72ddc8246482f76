"""What is done in which order, and how much of the budget each part may take.

What matters most comes first: that the kernels are right, then how fast they are, then what
compute-sanitizer says of them; then more of the benchmarks. A part that ends early leaves its time
to those that follow, one that is late cannot take theirs.
"""

from dataclasses import replace
from pathlib import Path

from benchmarks import shapes
from benchmarks.gpu_run import left_out
from tools.gpu_check import steps as check
from tools.gpu_check.steps import SECONDS, Step

RESULTS = "results.json"
# The model whose kernels are timed first.
FIRST = "Qwen2.5-3B"
# The parts of the budget, by where each ends; the rest is the report's.
TESTS, KERNELS, END_TO_END, SANITIZERS, MORE = 0.5, 0.62, 0.8, 0.9, 0.96
# Tiny runs are short: each may take what it needs.
_ON_CPU = 0.95


def on_gpu(
    python: str, capability: tuple[int, ...], sanitizer: str | None, out: Path, work: Path
) -> list[Step]:
    """All steps, for a GPU of this compute capability."""
    major, minor = capability
    checks = check.steps(python, check.architecture_of((major, minor)), sanitizer)
    first = [step for step in checks if step.name not in check.SANITIZER_TOOLS]
    rest = ",".join(name for name in shapes.MODELS if name != FIRST)
    results = out / RESULTS

    def kernels(name: str, models: str, until: float, *words: str) -> Step:
        return record(python, results, name, until, "kernels", "--models", models, *words)

    # Short samples are enough: a kernel takes micro- or milliseconds there.
    short = ("--seconds", "1")
    # Of kernels that take some microseconds, Python's launches would be all there is to see.
    replayed = (*short, "--graphs")
    return [
        # Without a library there is little to check or to time: its build may take all of that.
        *(
            replace(usable(x), until=TESTS, share=1.0 if x.name == "build" else x.share)
            for x in first
        ),
        kernels("kernels", FIRST, KERNELS, *replayed, "--no-compile"),
        record(python, results, "end to end", END_TO_END, "end-to-end", *short),
        *(replace(step, until=SANITIZERS) for step in checks if step not in first),
        kernels("kernels, other models", rest, MORE, *replayed, "--no-compile"),
        # Once more, beside what torch.compile makes of the eager expressions.
        kernels("kernels, torch.compile", FIRST, MORE, *replayed),
        report(python, results, work),
    ]


def on_cpu(python: str, out: Path, work: Path) -> list[Step]:
    """A few tests, and everything else at tiny sizes."""
    results = out / RESULTS
    words = next(x for x in check.steps(python, "", None) if x.name == "philox words")
    tiny = ("--tiny", "--no-compile", "--device", "cpu")
    return [
        usable(words),
        record(python, results, "kernels", _ON_CPU, "kernels", *tiny),
        record(python, results, "end to end", _ON_CPU, "end-to-end", *tiny),
        report(python, results, work),
    ]


def usable(step: Step) -> Step:
    """The step; without its command if it takes packages that are not here."""
    missing = left_out.lacks(*left_out.TESTS)
    if "pytest" in step.command and missing:
        return replace(step, command=(), missing=f"{missing} is not installed")
    return step


def record(python: str, results: Path, name: str, until: float, suite: str, *words: str) -> Step:
    """A step that measures, and saves after each case."""
    command = (python, "-m", "benchmarks.record", str(results), "--suite", suite)
    return Step(
        name,
        (*command, "--within", SECONDS, *words),
        needs_library=False,
        share=1.0,
        until=until,
    )


def report(python: str, results: Path, work: Path) -> Step:
    """The page and the pictures; the tables are in its log, too."""
    command = (python, "-m", "benchmarks.report", str(results), "--out", str(work / "report"))
    return Step("report", command, needs_library=False, share=1.0)
