"""How long each check and each fact is planned to take on a GPU; no tensor is made for it."""

import torch

from benchmarks.gpu_run import calls, measured, smoke
from benchmarks.gpu_run.serving import Place

# Where nothing is made or run.
NOWHERE = Place(torch.device("meta"), ("cuda", "triton"))


def planned_items() -> dict[str, dict[str, float]]:
    """Step -> item -> seconds; the process's start is one of them."""
    starting = {"start of the process": smoke.STARTING}
    return {
        "smoke": starting | {x.name: x.planned for x in smoke.checks(calls.REAL, NOWHERE)},
        "facts": starting | {x.name: x.planned for x in measured.facts_of(measured.REAL, NOWHERE)},
    }
