"""Every family that transformers lists: right, or refused before the first rollout."""

import pytest
import torch

from lepo_kernels.rollout import shared_prompts
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.policy_log_probs import policy_log_probs
from lepo_kernels.trainer.agreement import BOUNDS
from tests.rollout.families import CannotBuildError, families, tiny_causal_lm
from tests.rollout.models import prompts, settings

# Families whose tiny models must be served, whatever becomes of others.
SERVED = (
    *("llama", "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "mixtral", "gpt_oss", "gpt2", "bloom"),
    *("gemma", "gemma2", "gemma3_text", "phi", "phi3", "olmo2", "olmoe", "deepseek_v3"),
    *("jamba", "bamba", "nemotron_h", "lfm2", "granitemoehybrid", "falcon", "mpt", "opt"),
)
LAYOUTS = (
    {"share_prompts": False, "packing": False},
    {"share_prompts": True, "packing": False},
    {"share_prompts": False, "packing": True},
)
REFUSED = ("falcon_h1", "mamba", "falcon_mamba", "rwkv", "openai-gpt", "recurrent_gemma", "roberta")


@pytest.mark.slow
# Of families that warn of themselves.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", families())
def test_a_family_is_right_or_refused(family, monkeypatch):
    try:
        model = tiny_causal_lm(family)
    except CannotBuildError as reason:
        assert family not in SERVED
        pytest.skip(str(reason)[:200])
    ids, mask = prompts()
    greedy = settings(latent_length=0, latent_suffix_ids=(), do_sample=False)
    try:
        rollout = latent_generate(model, ids, mask, greedy)
    except ValueError as refusal:
        if family in SERVED or not str(refusal).startswith("model: "):
            raise
        return
    assert family not in REFUSED
    expected = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=14, do_sample=False
    )[:, 6:]
    steps = min(expected.shape[1], rollout.completion_ids.shape[1])
    there = rollout.completion_mask[:, :steps]
    assert torch.equal(rollout.completion_ids[:, :steps][there], expected[:, :steps][there])
    rollout = latent_generate(model, ids, mask, settings(), num_return_sequences=2, seed=1)
    drawn = rollout.log_probs[rollout.action_mask]
    # At these sizes a pass costs more than all of its tokens: every layout shall be tried.
    monkeypatch.setattr(shared_prompts, "_PASS", 0)
    for layouts in LAYOUTS:
        try:
            policy = policy_log_probs(model, rollout, rollout.action_mask, **layouts)
        except ValueError as refusal:
            if "changes its logits after the head" not in str(refusal):
                raise
            return
        assert (policy.log_prob - drawn).abs().mean() <= BOUNDS["full"][0], layouts
