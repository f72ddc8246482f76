"""What the package returns can be saved, and loaded again without trusting the file."""

import inspect

import pytest
import torch

import lepo_kernels
from lepo_kernels import LatentRollout, LatentSample, LatentStep
from lepo_kernels.rollout.policy_log_probs import PolicyLogProbs
from lepo_kernels.rollout.policy_loss import PolicyLoss


def results():
    """One of every type of result."""
    logits = torch.tensor([[0.5, -1.0, 2.0]])
    table = torch.eye(3)
    ids = torch.tensor([[2, 0]])
    sample = lepo_kernels.sample_latent(logits, top_k=2)
    scored = lepo_kernels.gather_log_probs(logits, ids)
    row = torch.ones(1)
    rollout = LatentRollout(
        prompt_ids=torch.ones(1, 2, dtype=torch.int64),
        prompt_mask=torch.ones(1, 2, dtype=torch.bool),
        completion_ids=torch.ones(1, 3, dtype=torch.int64),
        completion_mask=torch.ones(1, 3, dtype=torch.bool),
        latent_mask=torch.zeros(1, 3, dtype=torch.bool),
        action_mask=torch.ones(1, 3, dtype=torch.bool),
        latent_ids=torch.zeros(1, 1, 2, dtype=torch.int64),
        latent_weights=torch.zeros(1, 1, 2),
        latent_count=torch.zeros(1, 1, dtype=torch.int64),
        latent_scores=torch.zeros(1, 1, 0),
        log_probs=torch.zeros(1, 3),
        entropy=torch.zeros(1, 3),
        row_keys=torch.zeros(1, dtype=torch.int64),
        truncated=torch.zeros(1, dtype=torch.bool),
        seed=7,
    )
    return (
        sample,
        lepo_kernels.latent_step(logits, table, top_k=2),
        scored,
        lepo_kernels.gumbel_softmax_embedding(logits, table, tau=0.5),
        lepo_kernels.lepo_objective(
            scored.logits, scored.lse, torch.tensor([[0.7, 0.3]]), row > 0, row, row
        ),
        rollout,
        PolicyLoss(torch.tensor(0.5), row, row, row, row.to(torch.int8), None, "plain", 0.0),
        PolicyLogProbs(
            ids, torch.ones(1, 2), scored.logits, scored.lse, scored.entropy, torch.ones(1) > 0
        ),
    )


@pytest.mark.parametrize("result", results(), ids=lambda result: type(result).__name__)
def test_a_result_is_loaded_without_trust(result, tmp_path):
    torch.save(result, tmp_path / "result.pt")
    again = torch.load(tmp_path / "result.pt", weights_only=True)
    assert type(again) is type(result)
    assert_equal(result, again)


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif hasattr(a, "__dict__"):
        assert a.__dict__.keys() == b.__dict__.keys()
        for name in a.__dict__:
            assert_equal(getattr(a, name), getattr(b, name))
    else:
        assert a == b


def test_every_public_result_is_among_them():
    public = {getattr(lepo_kernels, name) for name in lepo_kernels.__all__}
    tuples = {x for x in public if inspect.isclass(x) and issubclass(x, tuple)}
    assert {LatentSample, LatentStep} <= tuples
    assert tuples | {LatentRollout} <= {type(result) for result in results()}
