"""gpu_run.json: what was run, on what, and how it ended; what failed comes first."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# The verdict on the whole, and the exit status that goes with it.
EXIT_STATUS = {"passed": 0, "failed": 1, "incomplete": 3}
FILE = "gpu_run.json"


@dataclass
class Outcome:
    """How a step ended."""

    step: str
    outcome: str  # passed, failed, out of time, not run
    reason: str = ""
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    log: str = ""  # file beside the report

    def line(self) -> str:
        """The same for people."""
        numbers = ", ".join(f"{number} {what}" for what, number in self.counts.items())
        parts = [f"{self.outcome:<11} {self.step:<24} {self.seconds:6.1f} s"]
        return "  ".join([*parts, *filter(None, (numbers, self.reason))])


@dataclass
class Report:
    """Everything that goes into the file."""

    started: str
    budget_seconds: float
    facts: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def status(self) -> str:
        """One of ``EXIT_STATUS``."""
        ends = {outcome.outcome for outcome in self.outcomes}
        if "failed" in ends:
            return "failed"
        return "passed" if ends == {"passed"} else "incomplete"

    @property
    def failed(self) -> list[Outcome]:
        """The steps that failed."""
        return [outcome for outcome in self.outcomes if outcome.outcome == "failed"]

    def write(self, path: Path) -> None:
        """Write the file anew, at once or not at all."""
        content = {
            "status": self.status,
            "exit_status": EXIT_STATUS[self.status],
            "failed": [outcome.step for outcome in self.failed],
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
        found = [f"{self.status}: {self.facts['device'].get('name', 'no GPU')}"]
        found += filter(None, [self.facts.get("not_used")])
        found += [outcome.line() for outcome in self.failed]
        return found + [x.line() for x in self.outcomes if x.outcome != "failed"]
