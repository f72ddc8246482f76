import itertools

import pytest

from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.trainer.evaluation import evaluate_policy
from lepo_kernels.trainer.evaluation_metrics import pass_at_k, summarise
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainer.conftest import problems


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
            "greedy_reward": 0.5,
            "greedy_length": 3.0,
            "mean@3": 1 / 6,
            "reward@3": 1 / 6,
            "pass@1": 1 / 6,
            "pass@2": 1 / 3,
            "pass@3": 1 / 2,
        }
    )


def test_accuracy_is_a_share_whatever_the_rewards_are():
    got = summarise([record(0, 2.0, True), record(0, 2.0), record(0, 0.4)])
    assert (got["greedy_accuracy"], got["greedy_reward"]) == (1.0, 2.0)
    assert (got["mean@2"], got["pass@1"], got["reward@2"]) == (0.5, 0.5, 1.2)


def test_the_threshold_decides_what_is_solved():
    records = [record(0, 0.4), record(0, 0.6)]
    assert summarise(records, 0.5)["pass@1"] == 0.5
    assert summarise(records, 0.3)["pass@1"] == 1.0


def test_the_batch_size_changes_nothing():
    dataset = problems(3)
    config = LatentGenerationConfig(
        eos_token_ids=(1,), pad_token_id=0, latent_length=2, max_new_tokens=6, top_k=8
    )
    runs = []
    for batch_size in (1, 4, 100):  # below the draws of a problem, uneven, everything at once
        seen = []
        result = evaluate_policy(
            tiny_model(),
            tiny_tokenizer(),
            dataset,
            lambda completions, answer, **_: [
                len(c) + float(a) for c, a in zip(completions, answer, strict=True)
            ],
            config,
            num_samples=3,
            batch_size=batch_size,
            progress=lambda done, total, seen=seen: seen.append((done, total)),
        )
        assert seen[-1] == (12, 12)
        runs.append(
            sorted(result.records, key=lambda r: (r["greedy"], r["problem"], r["completion"]))
        )
    assert len(runs[0]) == 3 * (1 + 3)
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert (a["problem"], a["completion"], a["reward"]) == (
                b["problem"],
                b["completion"],
                b["reward"],
            )


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(ValueError, match="num_samples: expected at least 1 when greedy is off"):
        evaluate_policy(None, None, problems(1), len, None, num_samples=0, greedy=False)
