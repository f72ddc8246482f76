"""Models inside peft, DDP, FSDP2 and torch.compile wrappers."""

import copy

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.lm_head import LmHead
from lepo_kernels.rollout.policy_log_probs import policy_log_probs
from lepo_kernels.rollout.policy_loss import policy_loss
from tests.rollout.models import prompts, settings, tiny_model, train_with_checkpointing
from tests.seeds import seeded

# Which modules an adapter sits on: only inside the layers, on the head, on the table, on both.
TARGETS = {
    "layers": ["q_proj", "v_proj"],
    "head": ["q_proj", "lm_head"],
    "embedding": ["q_proj", "embed_tokens"],
    "both": ["embed_tokens", "lm_head"],
}


def with_adapter(targets, family="llama", **options):
    """A LoRA whose B is not zero, so that it changes what the model computes."""
    config = LoraConfig(r=4, target_modules=TARGETS[targets], task_type="CAUSAL_LM", **options)
    model = get_peft_model(tiny_model(family, tie_word_embeddings=False), config)
    generator = torch.Generator().manual_seed(seeded(2))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("targets", TARGETS)
def test_an_adapter_equals_its_merged_model(targets, family):
    model = with_adapter(targets, family)
    merged = copy.deepcopy(model).merge_and_unload()
    config = settings(temperature=0.8, noise="soft", noise_scale=0.1)
    rollout = latent_generate(model, *prompts(), config)
    expected = latent_generate(merged, *prompts(), config)
    assert torch.equal(rollout.completion_ids, expected.completion_ids)
    torch.testing.assert_close(rollout.log_probs, expected.log_probs, atol=1e-4, rtol=0)
    assert LmHead(model).fused == (targets in ("layers", "embedding"))
    policy = policy_log_probs(model, rollout, rollout.action_mask, temperature=0.8)
    torch.testing.assert_close(
        policy.log_prob, rollout.log_probs[rollout.action_mask], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("targets", TARGETS)
def test_an_adapter_gets_the_gradients_of_plain_torch(targets):
    model = with_adapter(targets)
    rollout = latent_generate(model, *prompts(), settings(latent_length=0))
    reference = copy.deepcopy(model)
    train_with_checkpointing(model.get_base_model())
    model.enable_input_require_grads()
    rows = rollout.action_mask
    policy_log_probs(model, rollout, rows).log_prob.sum().backward()
    ids = torch.cat([rollout.prompt_ids, rollout.completion_ids], dim=1)
    mask = torch.cat([rollout.prompt_mask, rollout.completion_mask], dim=1).long()
    logits = reference(
        input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)
    ).logits[:, 5:-1]
    log_pi = logits.log_softmax(dim=-1).gather(2, rollout.completion_ids[..., None])[..., 0]
    log_pi[rows].sum().backward()
    trained = 0
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if q.grad is not None:
            trained += 1
            torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-3, msg=name)
    assert trained > 0


def test_the_adapter_of_an_embedding_learns_from_mixtures():
    model = with_adapter("embedding")
    rollout = latent_generate(model, *prompts(), settings(latent_suffix_ids=()))
    # The step after the mixtures, whose only way to the table is through them and the prompt.
    rows = torch.zeros_like(rollout.action_mask)
    rows[:, 4] = True
    policy_log_probs(model, rollout, rows).log_prob.sum().backward()
    lora_a = model.get_input_embeddings().lora_embedding_A["default"].grad
    mixed_in = rollout.latent_ids[rollout.latent_weights > 0].unique()
    assert (lora_a[:, mixed_in].abs().sum(dim=0) > 0).all()


def test_prompt_learning_is_refused():
    config = PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model("llama"), config)
    with pytest.raises(ValueError, match="prompt learning is not supported"):
        latent_generate(model, *prompts(), settings())


def test_a_compiled_model_is_served():
    model = tiny_model("llama")
    # The eager backend: what the compiler makes of the layers is not the question here.
    compiled = torch.compile(model, backend="eager")
    rollout = latent_generate(compiled, *prompts(), settings())
    assert torch.equal(
        rollout.completion_ids, latent_generate(model, *prompts(), settings()).completion_ids
    )


class DeepSpeedEngine(torch.nn.Module):
    """Like DeepSpeed's: the model inside, and a config that is not the model's but a dict."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.config = {"zero_optimization": {"stage": 2}}

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_a_deepspeed_engine_is_unwrapped():
    model = tiny_model("llama")
    engine = DeepSpeedEngine(model)
    rollout = latent_generate(engine, *prompts(), settings())
    expected = latent_generate(model, *prompts(), settings())
    assert torch.equal(rollout.completion_ids, expected.completion_ids)
    got = policy_log_probs(engine, rollout, rollout.action_mask).log_prob
    assert torch.equal(got, policy_log_probs(model, rollout, rollout.action_mask).log_prob)


def test_weights_partitioned_by_zero_3_are_refused():
    model = tiny_model("llama")
    head = model.lm_head.weight
    head.ds_id, head.data = 0, torch.empty(0)
    with pytest.raises(ValueError, match=r"lm_head\.weight is partitioned by DeepSpeed ZeRO-3"):
        latent_generate(model, *prompts(), settings())


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """A process group of one: hooks, views and flat parameters are those of many."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def sum_of_log_probs(model, rollout):
    return policy_log_probs(model, rollout, rollout.action_mask).log_prob.sum()


def loss(model, rollout):
    rows = rollout.action_mask
    advantages = torch.linspace(-1, 1, int(rows.sum()))
    return policy_loss(model, rollout, rows, advantages, torch.ones_like(advantages)).loss


# A gradient that is formed after the forward, and one that is formed in it.
each_result = pytest.mark.parametrize("result", [sum_of_log_probs, loss])


def gradients(model, base, rollout, result):
    result(model, rollout).backward()
    full = {name: p.grad for name, p in base.named_parameters()}
    return {n: g.full_tensor() if hasattr(g, "full_tensor") else g for n, g in full.items()}


@each_result
def test_ddp_gives_the_same_gradients(one_rank, result):
    plain = tiny_model("gemma2")
    rollout = latent_generate(plain, *prompts(), settings())
    wrapped = DistributedDataParallel(copy.deepcopy(plain))
    assert torch.equal(
        latent_generate(wrapped, *prompts(), settings()).completion_ids, rollout.completion_ids
    )
    expected = gradients(plain, plain, rollout, result)
    got = gradients(wrapped, wrapped.module, rollout, result)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, msg=name)


@each_result
@pytest.mark.parametrize("apart", [False, True])
def test_fsdp2_gives_the_same_gradients(one_rank, apart, result):
    """Table and head in the root's group, or each in a group of its own."""
    plain = tiny_model("llama", tie_word_embeddings=False)
    rollout = latent_generate(plain, *prompts(), settings())
    sharded = copy.deepcopy(plain)
    groups = [*sharded.model.layers]
    if apart:
        groups += [sharded.model.embed_tokens, sharded.lm_head]
    mesh = dist.init_device_mesh("cpu", (1,))
    for group in groups:
        fully_shard(group, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    with pytest.raises(ValueError, match=r"weights are sharded .* is a DTensor, as of FSDP2"):
        latent_generate(sharded, *prompts(), settings())
    expected = gradients(plain, plain, rollout, result)
    got = gradients(sharded, sharded, rollout, result)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, msg=name)
