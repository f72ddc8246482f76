"""Training runs on a tiny model: that they learn, and that every way of running them works."""

import copy
import json
import math
import time

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tensorboard.backend.event_processing import event_accumulator

from lepo_kernels.rollout.engine import TransformersEngine
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.dataset_checks import check_dataset
from lepo_kernels.trainer.evaluation_batches import EVALUATION_KEYS
from lepo_kernels.trainer.rewards import RewardError
from lepo_kernels.trainer.trainer import LEPOTrainer
from tests.tiny import tiny_model
from tests.trainer.conftest import digits_reward, problems

# Newer transformers call it by another name, and warn of the old one.
CHECKPOINTING = (
    "activation_checkpointing"
    if "activation_checkpointing" in LEPOConfig.__dataclass_fields__
    else "gradient_checkpointing"
)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def train_logs(trainer):
    return [log for log in trainer.state.log_history if "reward" in log]


@pytest.mark.parametrize("latent_length", [0, 2])  # GRPO and LEPO
def test_the_reward_rises(make_trainer, latent_length):
    trainer = make_trainer(
        max_steps=25,
        latent_length=latent_length,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        rows=20,
    )
    trainer.train()
    rewards = [log["reward"] for log in train_logs(trainer)]
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert last > first + 0.3, rewards


def test_a_run_logs_trls_names_and_its_own(make_trainer, tmp_path):
    trainer = make_trainer(eval_rows=3, eval_num_samples=4, eval_strategy="steps", eval_steps=2)
    trainer.train()
    log = train_logs(trainer)[0]
    expected = {
        "loss",
        "grad_norm",
        "learning_rate",
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "rewards/digits_reward/mean",
        "rewards/digits_reward/std",
        "completions/mean_length",
        "completions/clipped_ratio",
        "entropy",
        "clip_ratio/region_mean",
        "latent/entropy",
        "latent/support_size",
        "latent/single_survivor",
        "latent/mean_length",
        "frac_zero_advantage_rows",
        "step_time",
        "rollout_time",
    }
    assert expected <= log.keys()
    assert all(math.isfinite(log[name]) for name in expected)
    assert 1 <= log["latent/support_size"] <= 8
    assert log["latent/mean_length"] == 2
    evaluation = next(log for log in trainer.state.log_history if "eval_greedy_accuracy" in log)
    assert {"eval_mean@4", "eval_pass@1", "eval_pass@2", "eval_pass@4"} <= evaluation.keys()
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 8
    assert len(rows[0]["latent"]) == 2
    assert rows[0]["latent"][0][0].keys() == {"token", "weight"}
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * (1 + 4)


def test_grpo_has_no_latent_metrics(make_trainer):
    trainer = make_trainer(latent_length=0, max_steps=1)
    trainer.train()
    assert not any(name.startswith("latent/") for name in train_logs(trainer)[0])


def test_the_same_seed_gives_the_same_bits(make_trainer):
    runs = []
    for seed in (1, 1, 2):
        trainer = make_trainer(seed=seed)
        trainer.train()
        runs.append(state(trainer.model))
    assert_same_bits(runs[0], runs[1])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_micro_batches_sum_to_the_whole_batch(make_trainer):
    """Gradient accumulation is invisible: one batch of 8 or four of 2, in every normalisation
    that does not speak of micro-batches."""
    for loss_type in ("grpo", "dr_grpo", "dapo"):
        runs = []
        for size, accumulation in ((8, 1), (2, 4)):
            trainer = make_trainer(
                per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation,
                loss_type=loss_type,
                max_steps=1,
                optim="sgd",
                max_grad_norm=0.0,
                learning_rate=1.0,
            )
            trainer.train()
            runs.append(state(trainer.model))
        for name in runs[0]:
            torch.testing.assert_close(runs[0][name], runs[1][name], rtol=1e-4, atol=1e-5)


def test_clipping_acts_with_several_iterations(make_trainer):
    trainer = make_trainer(num_iterations=4, max_steps=4, epsilon=0.01, learning_rate=5e-3)
    trainer.train()
    logs = train_logs(trainer) or trainer.state.log_history
    clipped = [log["clip_ratio/region_mean"] for log in trainer.state.log_history if "loss" in log]
    ratios = [log["ratio"] for log in trainer.state.log_history if "loss" in log]
    assert clipped[0] == 0.0
    assert ratios[0] == pytest.approx(1.0, abs=1e-5)
    assert max(clipped[1:]) > 0.0
    assert len(logs) == 1, "one rollout serves the four updates"


def test_rollouts_serve_several_updates(make_trainer):
    trainer = make_trainer(
        per_device_train_batch_size=4,
        steps_per_generation=2,
        max_steps=4,
        rows=8,
    )
    trainer.train()
    assert len(train_logs(trainer)) == 2


def test_gradient_checkpointing_changes_nothing(make_trainer):
    runs = []
    for checkpointing in (False, True):
        trainer = make_trainer(**{CHECKPOINTING: checkpointing}, max_steps=1)
        trainer.train()
        runs.append(state(trainer.model))
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=1e-5, atol=1e-7)


def test_decoding_in_parts_gives_the_same_run(make_trainer):
    runs = []
    for size in (None, 4):
        trainer = make_trainer(rollout_batch_size=size, max_steps=1)
        trainer.train()
        runs.append(train_logs(trainer)[0])
    for name in ("reward", "entropy", "completions/mean_length", "grad_norm"):
        assert runs[0][name] == pytest.approx(runs[1][name], rel=1e-4)


def test_kl_holds_the_policy_near_the_reference(make_trainer):
    drift = {}
    for beta in (0.0, 5.0):
        model = tiny_model()
        start = copy.deepcopy(model)
        trainer = make_trainer(model=model, beta=beta, max_steps=8, learning_rate=3e-3)
        trainer.train()
        drift[beta] = sum(
            float((a - b).detach().square().sum())
            for a, b in zip(model.parameters(), start.parameters(), strict=True)
        )
        if beta:
            kl = [log["kl"] for log in train_logs(trainer)]
            assert kl[0] == pytest.approx(0.0, abs=1e-6)
            assert max(kl) > 0
            for a, b in zip(trainer.reference.model.parameters(), start.parameters(), strict=True):
                assert torch.equal(a, b)
    assert drift[5.0] < drift[0.0]


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_lora_trains_the_adapter_alone(make_trainer, beta):
    model = tiny_model()
    start = state(model)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(model=model, peft_config=lora, beta=beta, max_steps=3)
    assert trainer.reference is None or trainer.reference.model is None  # no copy
    trainer.train()
    trained = state(trainer.model)
    for name, tensor in start.items():
        wrapped = f"base_model.model.{name}"
        kept = trained.get(wrapped, trained.get(wrapped.replace(".weight", ".base_layer.weight")))
        assert torch.equal(kept, tensor), name
    assert any("lora_B" in name and bool(tensor.any()) for name, tensor in trained.items())
    if beta:
        assert train_logs(trainer)[-1]["kl"] > 0


def test_mask_truncated_completions_leaves_them_out(make_trainer):
    trainer = make_trainer(mask_truncated_completions=True)
    experience = trainer._prepare_inputs([trainer.train_dataset[0], trainer.train_dataset[1]])
    truncated = experience.rollout.truncated
    assert truncated.any()
    assert experience.token_weights[truncated].abs().max() == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"noise": "gaussian"},
        {"noise": "dirichlet"},
        {"noise": "soft", "noise_scale": 0.33},
        {"noise": "none"},
        {"noise": "categorical", "num_draws": 3},
        {"noise_clamp": [-1.5, 3.0]},
        {"tau": 0.0},
        {"cache_implementation": "static"},
        {"latent_eos": "stop"},
        {"latent_suffix": "=", "temperature": 0.7},
        {"scale_rewards": "none", "loss_type": "bnpo"},
        {"latent_kl": "exact", "beta": 0.1},
        {"cold_stop_entropy": 10.0, "cold_stop_steps": 1},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_setting_trains(make_trainer, settings):
    trainer = make_trainer(max_steps=1, **settings)
    before = state(trainer.model)
    trainer.train()
    assert any(not torch.equal(before[name], t) for name, t in trainer.model.state_dict().items())


def test_async_and_missing_rewards(make_trainer):
    async def sometimes(completions, **_):
        return [None if i % 4 == 0 else float(len(c)) for i, c in enumerate(completions)]

    trainer = make_trainer(reward=[digits_reward, sometimes], reward_weights=[1.0, 0.1])
    trainer.train()
    log = train_logs(trainer)[0]
    assert math.isfinite(log["reward"])
    assert {"rewards/digits_reward/mean", "rewards/sometimes/mean"} <= log.keys()


def test_no_reward_at_all_trains_on_nothing(make_trainer):
    trainer = make_trainer(reward=lambda completions, **_: [None] * len(completions), max_steps=1)
    before = state(trainer.model)
    trainer.train()
    assert_same_bits(before, state(trainer.model))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda n: [0.0] * (n - 1), "expected 8 rewards, got 7"),
        (lambda n: [float("nan")] * n, "reward 0 is nan"),
        (lambda n: None, "got NoneType"),
        (lambda n: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_a_bad_reward_function_stops_the_run_by_name(make_trainer, returned, message):
    def broken(completions, **_):
        return returned(len(completions))

    with pytest.raises(RewardError, match=rf"'broken'.*{message}"):
        make_trainer(reward=broken).train()


def test_bad_arguments_are_refused_before_work_starts(make_trainer, tmp_path):
    trainer = make_trainer()
    good = {"model": tiny_model(), "reward_funcs": digits_reward, "args": trainer.args}
    tokenizer = trainer.processing_class
    with pytest.raises(ValueError, match="train_dataset: rows need a column 'prompt'"):
        LEPOTrainer(
            **good, train_dataset=Dataset.from_dict({"text": ["a"]}), processing_class=tokenizer
        )
    with pytest.raises(ValueError, match="eval_dataset: has no rows"):
        LEPOTrainer(
            **good, eval_dataset=Dataset.from_dict({"prompt": []}), processing_class=tokenizer
        )
    with pytest.raises(TypeError, match="args: expected a LEPOConfig, got NoneType"):
        LEPOTrainer(**{**good, "args": None})
    with pytest.raises(TypeError, match="expected functions"):
        LEPOTrainer(**{**good, "reward_funcs": ["accuracy"]})
    with pytest.raises(ValueError, match="the dataset has 1"):
        make_trainer(rows=1).train()
    with pytest.raises(ValueError, match="train_dataset: training needs one"):
        LEPOTrainer(**good, processing_class=tokenizer).train()
    with pytest.raises(ValueError, match="eval_dataset: evaluation needs one"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        make_trainer().train(resume_from_checkpoint=True)


def test_too_long_a_prompt_is_named_before_work_starts(make_trainer):
    with pytest.raises(ValueError, match="train_dataset: the prompt of row 1 has 7 tokens, max"):
        make_trainer(max_prompt_length=6)


def test_prompts_are_cut_from_the_left(make_trainer, caplog, monkeypatch):
    asked = []
    generate = TransformersEngine.generate

    def spy(self, request, **arguments):
        asked.append(request.input_ids)
        return generate(self, request, **arguments)

    monkeypatch.setattr(TransformersEngine, "generate", spy)
    trainer = make_trainer(max_prompt_length=6, truncate_prompts=True, max_steps=6)
    assert "train_dataset: " in caplog.text
    assert "prompts are cut from the left to max_prompt_length = 6 tokens" in caplog.text
    trainer.train()
    ends = {text[-6:] for text in problems(12)["prompt"]}
    texts = trainer.processing_class.batch_decode(torch.cat(asked), skip_special_tokens=True)
    # All prompts have six characters or more; each is a token.
    assert set(texts) == ends


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{"prompt": "a"}, {"prompt": None}], TypeError, "prompt of row 1 is neither a str"),
        ([{"prompt": "a"}, {"prompt": ["b"]}], TypeError, "prompt of row 1 is neither a str"),
        ([{"prompt": "a"}, {"text": "b"}], ValueError, "row 1 has other columns than row 0"),
        ([{"prompt": "a", "completions": "x"}], ValueError, "column 'completions' would hide"),
    ],
)
def test_bad_rows_are_named_before_work_starts(rows, error, message):
    with pytest.raises(error, match=f"train_dataset: .*{message}"):
        check_dataset("train_dataset", rows)


def test_a_suffix_must_leave_room_for_an_answer(make_trainer):
    with pytest.raises(ValueError, match="latent_suffix: 2 latent steps and 4 tokens of suffix"):
        make_trainer(latent_suffix="xxxx")


def test_a_model_named_is_loaded_in_float32(make_trainer, tmp_path):
    tiny_model(dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    trainer = make_trainer(model=str(tmp_path / "half"))
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    chosen = make_trainer(model=str(tmp_path / "half"), model_init_kwargs={"dtype": torch.bfloat16})
    assert {p.dtype for p in chosen.model.parameters()} == {torch.bfloat16}


def test_ratios_compare_the_policy_without_dropout(make_trainer):
    trainer = make_trainer(
        model=tiny_model(attention_dropout=0.5), num_iterations=2, learning_rate=0.0
    )
    trainer.train()
    ratios = [log["ratio"] for log in trainer.state.log_history if "loss" in log]
    assert ratios == pytest.approx([1.0, 1.0], abs=1e-5)


def test_evaluate_takes_a_key_and_refuses_what_it_cannot_use(make_trainer):
    trainer = make_trainer(eval_num_samples=0)
    trainer.eval_dataset = {"small": problems(2)}
    assert "eval_greedy_accuracy" in trainer.evaluate("small")
    assert "eval_small_greedy_accuracy" in trainer.evaluate()
    with pytest.raises(ValueError, match="eval_dataset: has no rows"):
        trainer.evaluate([])
    with pytest.raises(NotImplementedError, match="predict: not offered"):
        trainer.predict(problems(2))


def test_rewards_missing_for_a_whole_group_do_not_count_as_zero(make_trainer):
    def first_group_only(completions, **_):
        return [1.0] * 4 + [None] * (len(completions) - 4)

    trainer = make_trainer(reward=first_group_only, max_steps=1)
    trainer.train()
    assert train_logs(trainer)[0]["reward"] == 1.0


def test_evaluation_never_draws_trainings_noise(make_trainer):
    trainer = make_trainer()
    experience = trainer._prepare_inputs([trainer.train_dataset[0], trainer.train_dataset[1]])
    # 2^40 samples are more than any run draws.
    assert int(experience.rollout.row_keys.max()) < 2**40 <= EVALUATION_KEYS


def test_settings_of_the_noise_reach_the_rollout(make_trainer):
    trainer = make_trainer(noise="gaussian", noise_scale=0.25, min_p=0.1, noise_clamp=None)
    assert (trainer.generation.noise_scale, trainer.generation.min_p) == (0.25, 0.1)
    clamped = make_trainer(noise_clamp=[-1.5, 3.0])
    assert clamped.generation.noise_clamp == (-1.5, 3.0)


def test_the_datas_seed_orders_the_prompts(make_trainer):
    orders = []
    for data_seed in (1, 1, 2):
        loader = make_trainer(data_seed=data_seed).get_train_dataloader()
        orders.append([[row["answer"] for row in batch] for batch in loader])
    assert orders[0] == orders[1] != orders[2]


def test_time_spent_evaluating_is_not_a_training_steps(make_trainer, monkeypatch):
    clock = {"now": 0.0}
    trainer = make_trainer(eval_rows=2, eval_num_samples=0, eval_strategy="steps", eval_steps=1)
    plain = trainer._evaluate_shard

    def slow(dataset):
        clock["now"] += 100.0
        return plain(dataset)

    monkeypatch.setattr(trainer, "_evaluate_shard", slow)
    # A clock on which nothing but an evaluation takes time.
    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])
    trainer.train()
    assert clock["now"] == 200.0
    assert [log["step_time"] for log in train_logs(trainer)] == [0.0, 0.0]


def test_epochs_take_the_prompts_in_different_orders(make_trainer):
    seen = []

    def reward(prompts, completions, answer, **_):
        seen.append(answer[::4])
        return digits_reward(completions)

    # 4 prompts, 2 per rollout: two rollouts per epoch, four epochs.
    make_trainer(reward=reward, rows=4, max_steps=8).train()
    epochs = [seen[i] + seen[i + 1] for i in range(0, 8, 2)]
    assert all(sorted(epoch) == ["0", "1", "2", "3"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_tensorboard_sees_the_reward(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    make_trainer(report_to="tensorboard").train()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/reward", "train/latent/support_size"} <= set(events.Tags()["scalars"])


def test_every_rollout_draws_its_own_noise(make_trainer):
    seen = []

    def reward(completions, **_):
        seen.append(list(completions))
        return digits_reward(completions)

    # One prompt, a policy that stands still: only the noise can make a difference.
    settings = {"per_device_train_batch_size": 4, "rows": 1, "learning_rate": 0.0, "max_steps": 3}
    make_trainer(reward=reward, **settings).train()
    assert len({tuple(completions) for completions in seen}) == 3
