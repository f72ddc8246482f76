"""Deletes each barrier and fence in turn: a check must notice, or it is not needed or not tested.

    python -m tests.cuda_sim.mutants [words in the names of files]

prints which check caught the loss of which barrier.
"""

import dataclasses
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.cuda_sim import build, checks
from tests.cuda_sim.simulator import (
    MODULES,
    SCHEDULES,
    Module,
    SanitizerError,
    Schedule,
    SimulationError,
)

BARRIER = re.compile(r"__(?:syncthreads|syncwarp|threadfence)\([^()]*\);")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A file with barriers, and a test that reaches them all."""

    file: Path
    module: str
    exercise: Callable[[Module, Schedule], None]


SUBJECTS = (
    Subject(Path("csrc/cuda/block_reduce.cuh"), "block_reduce", checks.exercise_block_reduce),
    Subject(Path("csrc/cuda/bitonic_sort.cuh"), "radix_select", checks.exercise_radix_select),
    Subject(Path("csrc/cuda/radix_select.cuh"), "radix_select", checks.exercise_radix_select),
    Subject(Path("csrc/cuda/candidates.cuh"), "sample_latent", checks.exercise_sample_latent),
    Subject(Path("csrc/cuda/sample_latent.cuh"), "sample_latent", checks.exercise_sample_latent),
    Subject(MODULES / "features.cu", "features", checks.exercise_features),
)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """``subject`` without the barrier at ``start``."""

    subject: Subject
    start: int
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.subject.file.name}:{self.line} {self.text}"

    def written_to(self, root: Path) -> Path:
        """A copy of the sources in which the barrier is blank."""
        for folder in ("csrc/common", "csrc/cuda", str(MODULES)):
            shutil.copytree(build.ROOT / folder, root / folder)
        file = root / self.subject.file
        text = file.read_text()
        end = self.start + len(self.text)
        assert text[self.start : end] == self.text
        # An empty statement: the barrier may be all that an `if` governs.
        file.write_text(text[: self.start] + ";".ljust(len(self.text)) + text[end:])
        return root


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", lambda found: " " * len(found[0]), text)


def mutants_of(subject: Subject) -> list[Mutant]:
    text = (build.ROOT / subject.file).read_text()
    return [
        Mutant(subject, found.start(), found[0], text.count("\n", 0, found.start()) + 1)
        for found in BARRIER.finditer(without_comments(text))
    ]


def all_mutants() -> list[Mutant]:
    return [mutant for subject in SUBJECTS for mutant in mutants_of(subject)]


def race_check_reports(mutant: Mutant, root: Path) -> bool:
    """Whether the race check reports the mutant, for which the sources lie in ``root``."""
    try:
        mutant.subject.exercise(Module(mutant.subject.module, "thread", root), Schedule())
    except SanitizerError as error:
        return "data race" in str(error)
    except (SimulationError, AssertionError):
        return False
    return False


def values_differ(mutant: Mutant, root: Path) -> bool:
    """Whether results are wrong, or a rule is broken, in one of the schedules."""
    for schedule in SCHEDULES:
        try:
            mutant.subject.exercise(Module(mutant.subject.module, "plain", root), schedule)
        except (SimulationError, AssertionError):
            return True
    return False


def main() -> int:
    survivors = 0
    print(f"{'barrier':58}  race check  values")
    for mutant in all_mutants():
        if sys.argv[1:] and not any(word in str(mutant) for word in sys.argv[1:]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = mutant.written_to(Path(folder))
            race, values = race_check_reports(mutant, root), values_differ(mutant, root)
        survivors += not (race or values)
        words = ["caught" if caught else "-" for caught in (race, values)]
        print(f"{mutant!s:58}  {words[0]:10}  {words[1]}", flush=True)
    print(f"{survivors} survived")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
