"""What compares checkpoints must be a metric that the run's evaluations have."""

import pytest

from lepo_kernels.trainer.evaluation_metrics import metric_names, summarise
from lepo_kernels.trainer.trainer import LEPOTrainer
from tests.trainer.conftest import problems

BEST = {
    "load_best_model_at_end": True,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "max_steps": 1,
}


def trainer(make_trainer, eval_dataset, **changes):
    """A trainer with these evaluation sets; the fixture makes one set at most."""
    plain = make_trainer(eval_rows=1)
    settings = {**BEST, "output_dir": plain.args.output_dir, **changes}
    template = {
        name: getattr(plain.args, name)
        for name in ("per_device_train_batch_size", "num_generations", "latent_length", "top_k")
    }
    args = type(plain.args)(
        **template, max_completion_length=6, report_to="none", use_cpu=True, **settings
    )
    return LEPOTrainer(
        model=plain.model,
        reward_funcs=plain.rewards.functions,
        args=args,
        train_dataset=plain.train_dataset,
        eval_dataset=eval_dataset,
        processing_class=plain.processing_class,
    )


@pytest.mark.parametrize(("greedy", "samples"), [(True, 0), (False, 5), (True, 8)])
def test_the_names_are_those_of_an_evaluation(greedy, samples):
    records = [{"problem": 0, "reward": 1.0, "greedy": True, "length": 3}] * greedy
    records += [{"problem": 0, "reward": 1.0, "greedy": False, "length": 3}] * samples
    assert metric_names(greedy, samples) == list(summarise(records))


def test_several_sets_leave_the_choice_to_the_user(make_trainer):
    sets = {"easy": problems(1), "hard": problems(2)}
    with pytest.raises(
        ValueError, match=r"metric_for_best_model: .*several.*eval_easy_greedy_accuracy"
    ):
        trainer(make_trainer, sets, eval_num_samples=0)
    chosen = trainer(
        make_trainer, sets, eval_num_samples=0, metric_for_best_model="hard_greedy_accuracy"
    )
    chosen.train()
    assert chosen.state.best_metric is not None


def test_a_single_named_set_is_the_choice(make_trainer):
    only = trainer(make_trainer, {"easy": problems(1)}, eval_num_samples=0)
    assert only.args.metric_for_best_model == "eval_easy_greedy_accuracy"
    only.train()
    assert only.state.best_metric is not None


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        ("eval_accuracy", None),
        ("eval_mean@4", None),  # there are 8 samples
        ("eval_greedy_acuracy", None),
        ("reward", None),
        ("eval_greedy_accuracy", ["easy", "hard"]),
        ("eval_medium_greedy_accuracy", ["easy", "hard"]),
        ("eval_hard_loss", ["easy", "hard"]),
    ],
)
def test_a_name_that_cannot_exist_is_refused_before_the_model_loads(make_trainer, name, sets):
    datasets = problems(1) if sets is None else {key: problems(1) for key in sets}
    with pytest.raises(ValueError, match=r"metric_for_best_model: .*eval_"):
        trainer(make_trainer, datasets, metric_for_best_model=name)


def test_without_an_evaluation_set_there_is_nothing_to_compare(make_trainer):
    with pytest.raises(ValueError, match="eval_dataset"):
        trainer(make_trainer, None)
    # Also where nothing needs the metric yet: it can never exist.
    with pytest.raises(ValueError, match=r"metric_for_best_model: .*eval_dataset"):
        make_trainer(metric_for_best_model="eval_greedy_accuracy")
