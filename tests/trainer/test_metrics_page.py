"""docs/metrics.md names what a run logs."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
NAMED = {
    name
    for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    for name in re.findall(r"`(.*?)`", row)
}
# What transformers logs beside the metrics of an update.
OTHERS = {"step"}


def test_every_logged_metric_is_on_the_page(make_trainer):
    trainer = make_trainer(logging_steps=1, beta=0.1, num_iterations=2, skip_nonfinite_updates=True)
    trainer.train()
    logged = {name for row in trainer.state.log_history if "loss" in row for name in row} - OTHERS
    logged = {name.replace("digits_reward", "NAME") for name in logged}
    assert logged - NAMED == set()
    # The page names nothing that there is not; this run's model is no mixture of experts.
    assert NAMED - logged == {"aux_loss"}
