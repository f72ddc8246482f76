"""Whole rollouts and updates: the sizes of their models, what fits, and what a check sees."""

import pytest
import torch

from benchmarks.end_to_end import FAMILIES, models, rollout, training
from benchmarks.plan import Plan

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 1 << 30


# As the models' authors count them, in millions: 134.5, 494 and 3090, norms and biases included.
@pytest.mark.parametrize(
    ("model", "millions"),
    [(models.SMOLLM2, 134.5), (models.QWEN_HALF, 494.0), (models.QWEN_3B, 3086.0)],
    ids=lambda x: getattr(x, "name", ""),
)
def test_models_have_their_published_sizes(model, millions):
    assert model.parameters / 1e6 == pytest.approx(millions, rel=1e-3)


def test_a_model_is_built_as_it_is_described_and_the_same_each_time():
    first, second = (models.TINY.build(CPU, torch.bfloat16) for _ in range(2))
    products = sum(p.numel() for p in first.parameters() if p.dim() == 2)
    assert products == models.TINY.parameters
    assert torch.get_default_dtype() == torch.float32
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, other)


def names(device, gib, **wanted):
    plan = Plan(device, int(gib * GIB), **wanted)
    return [(case.op, case.shape) for family in FAMILIES for case in family.timed(plan)]


def test_what_is_timed_fits_the_memory():
    roomy = names(CUDA, 0.4 * 80)
    assert {op for op, _ in roomy} == {"training step", "rollout, latent", "rollout, discrete"}
    assert sum("Qwen2.5-3B" in shape for _, shape in roomy) == 3
    assert any("8 rows of 128 + 64 + 448" in shape for _, shape in roomy)
    short = names(CUDA, 0.4 * 16)
    assert ("training step", "Qwen2.5-0.5B: bfloat16, 2 rows of 128 + 64 + 448 steps") in short
    # Its weights are there, but not five times.
    assert {op for op, shape in short if "Qwen2.5-3B" in shape} == {
        *("rollout, latent", "rollout, discrete")
    }
    assert names(CUDA, 0.1) == []
    assert all("SmolLM2-135M: float32" in shape for _, shape in names(CPU, 4))


def test_an_update_leaves_the_weights_and_no_gradients():
    inputs = training.FAMILY.tiny[0].make(CPU)
    before = [p.detach().clone() for p in inputs.model.parameters()]
    training.plain(inputs)
    for old, new in zip(before, inputs.model.parameters(), strict=True):
        assert torch.equal(old, new)
        assert new.grad is None


@pytest.mark.parametrize("one", [0, 1], ids=["latent", "discrete"])
def test_the_check_sees_an_id_that_the_filters_drop(one):
    inputs = rollout.FAMILY.tiny[one].make(CPU)
    result = rollout.plain(inputs)
    rollout.check(inputs, result)
    ids = result.ids.clone()
    ids[3, -1] = unlikely(inputs, result)
    with pytest.raises(AssertionError, match="drops"):
        rollout.check(inputs, result._replace(ids=ids))


def unlikely(inputs, result):
    """The least likely id at the last step of row 3."""
    table = inputs.model.get_input_embeddings().weight
    latent = result.soft_ids.shape[1]
    mixed = (result.soft_weights[3, ..., None] * table[result.soft_ids[3]]).sum(-2)
    # Row 3 is a sample of the first prompt, which has no padding.
    fed = torch.cat([table[inputs.prompt_ids[0]], mixed, table[result.ids[3, latent:]]])[:-1]
    with torch.no_grad():
        return int(inputs.model(inputs_embeds=fed[None]).logits[0, -1, 1:].argmin()) + 1
