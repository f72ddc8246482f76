"""Whole rollouts and updates: the sizes of their models, what fits, and what a check sees."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

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
    rollouts = {"rollout, latent", "rollout, discrete", "decoding, latent beside discrete"}
    assert {op for op, _ in roomy} == {"training step", *rollouts}
    # Decoding is measured at three sizes of a batch.
    assert sum("Qwen2.5-3B" in shape for _, shape in roomy) == 6
    assert any("8 rows of 128 + 64 + 448" in shape for _, shape in roomy)
    # The activations and logits of eight rows, beside six times its weights, are more than 80 GB.
    assert ("training step", "Qwen2.5-3B: bfloat16, 4 rows of 128 + 64 + 448 steps") in roomy
    short = names(CUDA, 0.4 * 16)
    assert ("training step", "Qwen2.5-0.5B: bfloat16, 2 rows of 128 + 64 + 448 steps") in short
    # Its weights are there, but not six times.
    assert {op for op, shape in short if "Qwen2.5-3B" in shape} == rollouts
    assert names(CUDA, 0.1) == []
    assert all("SmolLM2-135M" in shape and "float32" in shape for _, shape in names(CPU, 4))


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


def products(run):
    """Flops of a run's matrix products; attention and mixtures, which go by other names, aside."""
    with FlopCounterMode(display=False) as counter:
        run()
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if str(op) in {"aten.mm", "aten.addmm"})


def test_the_flops_of_an_update_are_those_of_a_pass_without_padding():
    case = training.FAMILY.tiny[0]
    inputs = case.make(CPU)
    assert products(lambda: inputs.exact) == case.flops


def test_the_flops_of_a_rollout_are_those_of_ours_and_plain_forms_no_logits_of_prompts():
    model, prompts, length, steps = models.TINY, 2, 5, 4
    rows = prompts * rollout.SAMPLES
    case = rollout.case(model, prompts, length, 0, steps, torch.float32)
    inputs = case.make(CPU)
    inputs = replace(inputs, prompt_mask=torch.ones_like(inputs.prompt_mask))
    decoded = model.flops(rows * (steps - 1), rows * (steps - 1))
    # The case counts prompts of 5 and of 2 tokens; here both have 5.
    padding = model.flops(3, 0)
    rollout.ours(inputs)  # a model's first rollout begins with a probe
    assert products(lambda: rollout.ours(inputs)) == case.flops + padding
    assert products(lambda: rollout.plain(inputs)) == model.flops(rows * length, rows) + decoded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activations_are_what_a_forward_keeps(dtype):
    # Wide enough that what does not grow with it is small.
    model = models.Model("wide", "Qwen2", 64, 256, 3, 1024, 4, 2)
    policy, tokens, kept = model.build(CPU, dtype), 32, {}
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            # The tensor stays, lest another takes its place.
            kept[storage.data_ptr()] = (storage.nbytes(), x)
        return x

    ids = torch.ones(1, tokens, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        policy.model(input_ids=ids, use_cache=False)
    each = sum(size for size, _ in kept.values()) / tokens
    assert 0.9 * each < model.activations(dtype) < 1.25 * each


# As deep as Qwen2.5-0.5B, of its family, and narrow: it takes a second. In such a model single
# entries of a right gradient are off by more than 3 % of the largest.
DEEP = models.Model("deep", "Qwen2", 500, 64, 24, 128, 4, 2)


@pytest.fixture(scope="module", params=["tiny, float32", "tiny, bfloat16", "deep, bfloat16"])
def updating(request):
    """Inputs of a training step, and an update of each implementation with its check."""
    deep = training.case(DEEP, 4, 8, 4, 12, torch.bfloat16)
    case = dict(zip(("tiny, float32", "tiny, bfloat16"), training.FAMILY.tiny, strict=True)).get(
        request.param, deep
    )
    inputs = case.make(CPU)
    pairs = ((training.ours, training.check_ours), (training.plain, training.check_plain))
    return inputs, [(run, run(inputs), check) for run, check in pairs]


def test_updates_are_right_in_deep_models_too(updating):
    inputs, made = updating
    for _, result, check in made:
        check(inputs, result)


# Its block holds the last norm, too.
TABLE = "tensor .*embed_tokens|block model:"


def refused(check, inputs, result, what):
    with pytest.raises(AssertionError, match=what):
        check(inputs, result)


# The first layer, whose gradients went through all others, and the last.
@pytest.mark.parametrize("layer", [0, -1])
def test_a_layer_whose_gradient_is_a_tenth_too_large_is_seen(updating, layer):
    inputs, made = updating
    layers = inputs.model.config.num_hidden_layers
    named = [name for name, _ in inputs.model.named_parameters() if "embed_tokens" not in name]
    wrong = f"model.layers.{layer % layers}."
    for _, result, check in made:
        gradients = tuple(
            1.1 * x if name.startswith(wrong) else x
            for name, x in zip(named, result.layers, strict=True)
        )
        refused(check, inputs, result._replace(layers=gradients), rf"(tensor|block) {wrong}")


def test_a_table_loss_or_norm_that_is_off_by_a_tenth_is_seen(updating):
    inputs, made = updating
    for _, result, check in made:
        refused(check, inputs, result._replace(table=1.1 * result.table), TABLE)
        refused(check, inputs, result._replace(norm=1.1 * result.norm), "norm")
        # Of the mean absolute term: the loss itself may be near 0.
        refused(check, inputs, result._replace(loss=result.loss + 0.1 * inputs.exact.size), "loss")


def test_a_gradient_of_a_key_that_is_missing_is_seen(updating):
    # It is a hundredth of its block's, and vanishes there.
    inputs, made = updating
    named = [name for name, _ in inputs.model.named_parameters() if "embed_tokens" not in name]
    at = named.index("model.layers.1.self_attn.k_proj.weight")
    for _, result, check in made:
        layers = [0 * x if i == at else x for i, x in enumerate(result.layers)]
        refused(check, inputs, result._replace(layers=tuple(layers)), "tensor .*k_proj")


@pytest.mark.parametrize("fault", ["no advantage", "a row less"])
def test_an_update_of_other_advantages_is_seen(updating, fault):
    inputs, made = updating
    advantages = torch.ones_like(inputs.experience.advantages)
    if fault == "a row less":
        # The one that weighs the least.
        advantages = inputs.experience.advantages.clone()
        advantages[advantages.abs().argmin()] = 0
    other = replace(inputs, experience=replace(inputs.experience, advantages=advantages))
    for run, right, check in made:
        wrong = run(other)
        refused(check, inputs, wrong, "loss|norm")
        # The gradients alone tell, too.
        refused(check, inputs, wrong._replace(loss=right.loss, norm=right.norm), "tensor|block")


def test_a_wrong_plain_update_excuses_none_of_ours(updating):
    inputs, ((_, result, check), _) = updating
    inputs = replace(inputs)
    inputs.usual = dict.fromkeys(updating[0].usual, float("inf"))
    check(inputs, result)
    refused(check, inputs, result._replace(table=2 * result.table), TABLE)
