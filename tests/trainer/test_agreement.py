"""Every run compares its rollouts with their first training forward, and acts on it."""

import pytest
import torch

from lepo_kernels.trainer.agreement import BOUNDS, METRIC, SamplingAgreement
from lepo_kernels.trainer.metrics import MetricMeans
from tests.rollout.families import tiny_causal_lm
from tests.tiny import tiny_model
from tests.trainer.conftest import digits_reward

MEAN, MAX = f"{METRIC}/mean", f"{METRIC}/max"


def moving(model, factor):
    """A reward that moves the head between rollout and training, so that they disagree."""

    def reward(completions, **_):
        with torch.no_grad():
            model.get_output_embeddings().weight *= factor
        return [float(len(set(c))) for c in completions]

    return reward


@pytest.mark.parametrize("changes", [
    {},
    {"num_iterations": 2},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    {"beta": 0.1},
    {"latent_length": 0},
])  # fmt: skip
def test_every_run_measures_it(make_trainer, changes):
    trainer = make_trainer(**changes)
    trainer.train()
    logs = [log for log in trainer.state.log_history if MEAN in log]
    assert logs
    for log in logs:
        assert 0 <= log[MEAN] <= log[MAX]
        # Two kernels' roundings of float32 logits below 32, a few layers deep.
        assert log[MAX] < 1e-4


def test_half_precision_is_within_its_bounds(make_trainer):
    trainer = make_trainer(model=tiny_model(dtype=torch.bfloat16), max_steps=1)
    trainer.train()
    log = next(log for log in trainer.state.log_history if MEAN in log)
    assert log[MEAN] < BOUNDS["half"][0]


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_large_difference_ends_the_run_before_an_update(make_trainer, iterations):
    model = tiny_model()
    trainer = make_trainer(model, moving(model, 1.5), num_iterations=iterations)
    table = model.model.embed_tokens.weight.detach().clone()
    match = r"rollout and of the first training forward .* differ by .* nats on average"
    with pytest.raises(ValueError, match=match):
        trainer.train()
    assert torch.equal(model.model.embed_tokens.weight, table)


def test_a_small_difference_is_warned_of_once(make_trainer):
    model = tiny_model()
    trainer = make_trainer(model, moving(model, 1.01), max_steps=3)
    with pytest.warns(UserWarning, match="sampling_logp_difference_warning") as seen:
        trainer.train()
    assert len([w for w in seen if "sampling_logp" in str(w.message)]) == 1


def test_the_bounds_are_settings(make_trainer):
    model = tiny_model()
    apart = {"sampling_logp_difference_warning": 9.0, "sampling_logp_difference_error": 9.0}
    make_trainer(model, moving(model, 1.5), max_steps=1, **apart).train()
    with pytest.raises(ValueError, match="sampling_logp_difference_error: expected a number"):
        make_trainer(sampling_logp_difference_error=0)


def test_with_dropout_nothing_follows(make_trainer):
    # Two forwards of one model then differ, and neither is wrong.
    model = tiny_model(attention_dropout=0.5)
    trainer = make_trainer(model, max_steps=1, disable_dropout=False)
    trainer.train()
    log = next(log for log in trainer.state.log_history if MEAN in log)
    assert log[MAX] > 1e-3


def test_nan_is_above_every_bound():
    agreement = SamplingAgreement(MetricMeans(), None, None)
    with pytest.raises(ValueError, match="nan"):
        agreement.add(tiny_model(), torch.zeros(2), torch.tensor([0.0, torch.nan]))


def test_no_step_is_no_measure():
    means = MetricMeans()
    SamplingAgreement(means, None, None).add(tiny_model(), torch.zeros(0), torch.zeros(0))
    assert means.pop() == {}


def test_maxima_are_of_everything_since_the_last_log():
    means = MetricMeans()
    for value in (1.0, 3.0, 2.0):
        means.add_max("most", value)
    assert means.pop() == {"most": 3.0}
    assert means.pop() == {}


def test_a_model_that_cannot_be_served_is_refused_at_the_start(make_trainer):
    model = tiny_causal_lm("falcon_h1")
    with pytest.raises(ValueError, match=r"FalconH1ForCausalLM cannot be served: .* inputs_embeds"):
        make_trainer(model)


def test_prompts_past_the_original_context_are_refused_at_the_start(make_trainer):
    # The longest prompt has 10 tokens, its completion 6.
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    with pytest.raises(ValueError, match="up to its original context of 12 positions"):
        make_trainer(tiny_model(max_position_embeddings=12, rope_parameters=rope))
    make_trainer(tiny_model(max_position_embeddings=64, rope_parameters=rope))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_routers_loss_is_trained_on_and_logged(make_trainer, accumulation):
    losses = []
    for coefficient in (0.0, 100.0):
        model = tiny_causal_lm(
            "qwen3_moe",
            vocab_size=102,
            output_router_logits=True,
            router_aux_loss_coef=coefficient,
            pad_token_id=0,
            eos_token_id=1,
        )
        trainer = make_trainer(
            model,
            max_steps=1,
            learning_rate=0.0,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        log = next(log for log in trainer.state.log_history if "aux_loss" in log)
        losses.append((log["loss"], log["aux_loss"]))
    (plain, router), (whole, again) = losses
    assert router == again > 0
    # The log rounds to four digits behind the point.
    assert whole - plain == pytest.approx(100 * router, abs=2e-4, rel=1e-5)


def test_ids_without_a_token_are_never_sampled(make_trainer):
    seen = []

    def spy(completions, completion_ids, **_):
        seen.extend(i for ids in completion_ids for i in ids)
        return digits_reward(completions)

    trainer = make_trainer(tiny_model(vocab_size=164), spy, max_steps=4, eval_rows=4, top_k=None)
    trainer.train()
    trainer.evaluate()
    assert len(seen) > 100
    assert max(seen) < 102


def test_a_tokenizer_larger_than_the_model_is_refused_at_the_start(make_trainer):
    with pytest.raises(ValueError, match="processing_class: the tokenizer has 102 tokens"):
        make_trainer(tiny_model(vocab_size=64))
