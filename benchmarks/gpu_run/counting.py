"""``python -m benchmarks.gpu_run.counting COUNTS WORD ...``: pytest, and a file of its outcomes.

The file is up to date after each test, so that one that is stopped has counted, too.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Counts:
    """A plugin of pytest; with pytest-xdist it hears of all processes' tests."""

    def __init__(self, file: Path) -> None:
        self.file = file
        # One process may go on for another.
        self.found: Counter[str] = Counter(json.loads(file.read_text()) if file.exists() else {})

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test has the outcome of its call; or what kept it from one, or went wrong after it."""
        if report.when == "call" or not report.passed:
            failed_around = report.failed and report.when != "call"
            self.add("error" if failed_around else report.outcome)

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported is an error, too."""
        if report.failed:
            self.add("error")

    def add(self, name: str, number: int = 1) -> None:
        self.found[name] += number
        fresh = self.file.with_suffix(".new")
        fresh.write_text(json.dumps(self.found))
        fresh.replace(self.file)


def main(words: Sequence[str]) -> int:
    """Run pytest in this process; its exit status."""
    import pytest

    file, *rest = words
    return int(pytest.main(rest, plugins=[Counts(Path(file))]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
