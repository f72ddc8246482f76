"""gpu_check.json: what was run, on what, and how it ended."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# The verdict on the whole, and the exit status that goes with it.
EXIT_STATUS = {"passed": 0, "failed": 1, "no GPU": 2, "incomplete": 3}


@dataclass
class Outcome:
    """How a step ended."""

    step: str
    outcome: str  # passed, failed, out of time, not run
    reason: str = ""
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    log: str = ""  # file beside the report


@dataclass
class Report:
    """Everything that goes into the file."""

    started: str
    budget_seconds: float
    facts: dict[str, Any]
    has_gpu: bool
    outcomes: list[Outcome] = field(default_factory=list)
    file: str = "gpu_check.json"
    # Whether something was run without a GPU, too.
    runs_anywhere: bool = False

    @property
    def status(self) -> str:
        """One of ``EXIT_STATUS``."""
        ends = {outcome.outcome for outcome in self.outcomes}
        if not (self.has_gpu or self.runs_anywhere):
            return "no GPU"
        if "failed" in ends:
            return "failed"
        return "passed" if ends == {"passed"} else "incomplete"

    def write(self, path: Path) -> None:
        """Write the file anew, at once or not at all."""
        content = {
            "status": self.status,
            "exit_status": EXIT_STATUS[self.status],
            "started": self.started,
            "budget_seconds": self.budget_seconds,
            **self.facts,
            "steps": [asdict(outcome) for outcome in self.outcomes],
        }
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(content, indent=2) + "\n")
        fresh.replace(path)

    def lines(self) -> list[str]:
        """The same for people."""
        without = "no GPU" if self.runs_anywhere else "nothing could be run"
        found = [f"{self.status}: {self.facts['device'].get('name', without)}"]
        for outcome in self.outcomes:
            numbers = ", ".join(f"{number} {what}" for what, number in outcome.counts.items())
            parts = [f"{outcome.outcome:<11} {outcome.step:<24} {outcome.seconds:6.1f} s"]
            found.append("  ".join([*parts, *filter(None, (numbers, outcome.reason))]))
        return found
