"""What this Python lacks, and what cannot be done for want of it."""

import importlib.util

# Without these, no test runs.
TESTS = ("pytest", "hypothesis", "scipy")

# Without these, nothing is measured.
BENCHMARKS = ("pytest", "pytest_benchmark")

_WITHOUT = {
    **dict.fromkeys(TESTS, "tests"),
    "pytest": "tests and benchmarks",
    "pytest_benchmark": "benchmarks (pytest-benchmark)",
    "xdist": "tests in several processes: the contract takes longer (pytest-xdist)",
    "triton": "the triton backend, its strategies, and torch.compile",
    "transformers": "end-to-end benchmarks",
    "accelerate": "the benchmark of a training step",
    "matplotlib": "pictures",
}


def here() -> list[str]:
    """A line for each package that is missing."""
    return [f"{what}: no {name}" for name, what in _WITHOUT.items() if lacks(name)]


def lacks(*names: str) -> str:
    """The first of the packages that is not installed; empty if all are."""
    return next((name for name in names if importlib.util.find_spec(name) is None), "")
