"""What a step of the run is, and how what it said is read."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

# In a command: replaced by a whole number of seconds, and by the file where it counts.
SECONDS, COUNTS = "{seconds}", "{counts}"
# compute-sanitizer's exit status where it found something.
SANITIZER_FOUND = 66
_SUMMARY = re.compile(r"(ERROR|RACECHECK) SUMMARY: (\d+)")
# The first line of a finding: all there is of a sanitizer that was stopped before its summary.
_FINDING = re.compile(
    r"^={9} (?:Invalid|Misaligned|Uninitialized|Barrier error|(?i:error|warning): Race)", re.M
)


@dataclass(frozen=True)
class Step:
    """One command, run from the root of the repository.

    Attributes:
        part: of the budget. What the steps before it did not take comes on top; so no order of
            the steps lets one take the time of those after it.
        command: `SECONDS` in a word stands for the time that the step may take, `COUNTS` for the
            file where it counts; empty where it cannot be run.
        needs_library: whether it is not run without a usable library.
        gives_library: whether there is one only if it passes.
        missing: why it cannot be run.
    """

    name: str
    part: float
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    needs_library: bool = False
    gives_library: bool = False
    missing: str = ""


def counts(file: Path, output: str) -> dict[str, int]:
    """Tests by outcome and cases measured, or a sanitizer's findings, where there are any."""
    found: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    summaries = [int(number) for _, number in _SUMMARY.findall(output)]
    findings = len(_FINDING.findall(output))
    if summaries or findings:
        found["findings"] = sum(summaries) if summaries else findings
    return found
