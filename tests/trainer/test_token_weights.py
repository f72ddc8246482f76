"""Each normalisation against its formula, written out in loops."""

import pytest
import torch

from lepo_kernels.trainer.token_weights import token_weights

# 2 micro-batches of 3 sequences of up to 4 steps; one sequence is left out whole.
MASK = torch.tensor(
    [
        [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]],
        [[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]],
    ],
    dtype=torch.bool,
)
LOSSES = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) + 1


def expected(loss_type: str) -> float:
    per_sequence = [
        [[float(LOSSES[a, b, t]) for t in range(4) if MASK[a, b, t]] for b in range(3)]
        for a in range(2)
    ]
    if loss_type == "grpo":
        means = [sum(s) / len(s) if s else 0.0 for batch in per_sequence for s in batch]
        return sum(means) / 6
    if loss_type == "bnpo":
        return sum(sum(map(sum, b)) / sum(map(len, b)) for b in per_sequence) / 2
    total = sum(sum(map(sum, batch)) for batch in per_sequence)
    if loss_type == "dr_grpo":
        return total / (6 * 7)
    return total / int(MASK.sum())


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_weights_give_the_formula(loss_type):
    weights = token_weights(MASK, loss_type, max_completion_length=7)
    assert float((weights * LOSSES).sum()) == pytest.approx(expected(loss_type))
    assert weights[~MASK].abs().max() == 0


def test_dapo_counts_the_tokens_it_is_told():
    weights = token_weights(MASK, "dapo", 7, total_tokens=torch.tensor(22.0))
    assert float((weights * LOSSES).sum()) == pytest.approx(expected("dapo") * int(MASK.sum()) / 22)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_nothing_to_train_on_gives_zeros(loss_type):
    weights = token_weights(torch.zeros(1, 2, 3, dtype=torch.bool), loss_type, 7)
    assert weights.tolist() == torch.zeros(1, 2, 3).tolist()
