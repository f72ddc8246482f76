"""No barrier and no fence can be deleted unnoticed."""

import pytest

from tests.cuda_sim import build
from tests.cuda_sim.mutants import (
    BARRIER,
    SUBJECTS,
    all_mutants,
    mutants_of,
    race_check_reports,
    values_differ,
)


def test_every_file_with_barriers_is_a_subject():
    assert all(mutants_of(subject) for subject in SUBJECTS)
    kernels = (build.ROOT / "csrc" / "cuda").glob("*.cu*")
    with_barriers = {file.name for file in kernels if BARRIER.search(file.read_text())}
    assert with_barriers <= {subject.file.name for subject in SUBJECTS}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", all_mutants(), ids=str)
def test_a_deleted_barrier_is_noticed(mutant, tmp_path):
    root = mutant.written_to(tmp_path)
    assert race_check_reports(mutant, root) or values_differ(mutant, root)
