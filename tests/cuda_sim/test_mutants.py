"""No barrier and no fence can be deleted unnoticed."""

import pytest

from tests.cuda_sim.mutants import (
    SUBJECTS,
    all_mutants,
    mutants_of,
    race_check_reports,
    values_differ,
)


def test_every_subject_has_barriers():
    assert all(mutants_of(subject) for subject in SUBJECTS)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", all_mutants(), ids=str)
def test_a_deleted_barrier_is_noticed(mutant, tmp_path):
    root = mutant.written_to(tmp_path)
    assert race_check_reports(mutant, root) or values_differ(mutant, root)
