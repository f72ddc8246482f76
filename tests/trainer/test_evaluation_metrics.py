import itertools

import pytest

from lepo_kernels.trainer.evaluation import pass_at_k, summarise


@pytest.mark.parametrize(("samples", "solved"), [(5, 0), (5, 2), (5, 5), (8, 1)])
def test_pass_at_k_is_the_share_of_subsets_with_a_solution(samples, solved):
    for k in range(1, samples + 1):
        subsets = list(itertools.combinations(range(samples), k))
        share = sum(any(i < solved for i in subset) for subset in subsets) / len(subsets)
        assert pass_at_k(samples, solved, k) == pytest.approx(share)


def test_pass_at_k_refuses_what_it_cannot_estimate():
    with pytest.raises(ValueError, match=r"\[1, 4\], got 5"):
        pass_at_k(4, 1, 5)
    with pytest.raises(ValueError, match=r"\[0, 4\], got 5"):
        pass_at_k(4, 5, 1)


def record(problem, reward, greedy=False, length=3):
    return {"problem": problem, "reward": reward, "greedy": greedy, "length": length}


def test_summary():
    records = [record(0, 1.0, True, 2), record(1, 0.0, True, 4)]
    records += [record(0, r) for r in (1.0, 0.0, 0.0)]
    records += [record(1, r) for r in (0.0, float("nan"), 0.0)]
    assert summarise(records) == pytest.approx(
        {
            "greedy_accuracy": 0.5,
            "greedy_length": 3.0,
            "mean@3": 1 / 6,
            "pass@1": 1 / 6,
            "pass@2": 1 / 3,
            "pass@3": 1 / 2,
        }
    )


def test_the_threshold_decides_what_is_solved():
    records = [record(0, 0.4), record(0, 0.6)]
    assert summarise(records, 0.5)["pass@1"] == 0.5
    assert summarise(records, 0.3)["pass@1"] == 1.0
