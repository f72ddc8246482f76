"""What compares checkpoints: a metric that the run's evaluations will have, known at the start."""

from typing import Any

from lepo_kernels.suggest import did_you_mean
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.evaluation_metrics import metric_names

_PREFIX = "eval_"


def choose_best_metric(args: LEPOConfig, eval_dataset: Any) -> None:
    """Check ``args.metric_for_best_model``, and complete it where there is one choice.

    A metric is named as in the log, with or without ``eval_``: ``eval_greedy_accuracy``, or with a
    dict of evaluation sets ``eval_SET_greedy_accuracy``. Without the set's name it means the only
    set. Metrics that reward functions log cannot be chosen: they are not known at the start.

    Args:
        args: the trainer's settings; a completed name is written back.
        eval_dataset: as given to the trainer.

    Raises:
        ValueError: no evaluation of this run has such a metric.
    """
    chosen = args.metric_for_best_model
    if chosen is None:
        return
    if eval_dataset is None:
        raise ValueError(
            f"metric_for_best_model: {chosen} needs evaluations, and there is no eval_dataset"
        )
    metrics = metric_names(args.eval_greedy, args.eval_num_samples)
    sets = list(eval_dataset) if isinstance(eval_dataset, dict) else None
    stems = [""] if sets is None else [f"{name}_" for name in sets]
    known = [f"{_PREFIX}{stem}{metric}" for stem in stems for metric in metrics]
    # As transformers looks it up.
    full = chosen if chosen.startswith(_PREFIX) else f"{_PREFIX}{chosen}"
    if full in known:
        return
    bare = full.removeprefix(_PREFIX)
    if sets is None or bare not in metrics:
        raise ValueError(
            f"metric_for_best_model: there will be no metric {chosen!r} in this run; "
            f"{did_you_mean(full, known)}"
        )
    if len(sets) > 1:
        candidates = ", ".join(f"{_PREFIX}{stem}{bare}" for stem in stems)
        raise ValueError(
            f"metric_for_best_model: eval_dataset has several sets; choose one of {candidates}"
        )
    args.metric_for_best_model = f"{_PREFIX}{stems[0]}{bare}"
