"""The tables and the picture of evaluations."""

import copy
import io

import pytest
from rich.console import Console

from lepo_kernels.report.evaluation_picture import plot_evaluations
from lepo_kernels.report.evaluation_tables import (
    ablation_rows,
    markdown_table,
    metric_rows,
    rich_table,
)

SPREAD = {"mean": 3.0, "std": 1.5, "quantiles": {"0.05": 1.0, "0.5": 3.0, "0.95": 5.0}}
EFFECT = {
    "value": 0.25,
    "interval": [0.0, 0.5],
    "difference": -0.25,
    "difference_interval": [-0.5, 0.125],
}
RESULT = {
    "name": "sums, L=2",
    "task": "sums",
    "latent_length": 2,
    "problems": 4,
    "metrics": {"greedy_accuracy": 0.5, "mean@2": 0.5, "pass@1": 0.5, "pass@2": 0.75, "own": 7.0},
    "intervals": {
        name: [0.25, 0.875] for name in ("greedy_accuracy", "mean@2", "pass@1", "pass@2")
    },
    "spread": {"length": SPREAD},
    "ablations": {"blank": {"greedy_accuracy": EFFECT, "mean@2": EFFECT}},
    "seconds": 12.34,
    "peak_memory_bytes": 3 * 2**29,
}


def other(**changes):
    return {**copy.deepcopy(RESULT), "ablations": {}, **changes}


def test_a_row_per_metric_and_a_column_per_evaluation():
    plain = other(name="sums, L=0", latent_length=0, metrics={"greedy_accuracy": 1.0})
    rows = {row[0]: row[1:] for row in metric_rows([plain, RESULT])}
    assert rows["metric"] == ["sums, L=0", "sums, L=2"]
    assert rows["greedy_accuracy"] == ["1.000 [0.250, 0.875]", "0.500 [0.250, 0.875]"]
    assert rows["own"] == ["", "7.000"]
    assert rows["length: mean ± sd (5, 50, 95 %)"] == ["3.000 ± 1.500 (1, 3, 5)"] * 2
    assert rows["peak memory (GiB)"] == ["1.50", "1.50"]


def test_ablations_stand_below_what_they_are_compared_with():
    assert ablation_rows([other()]) == []
    rows = ablation_rows([other(), RESULT])[1:]
    assert rows == [
        ["sums, L=2", "greedy_accuracy", "as sampled", "0.500", ""],
        ["sums, L=2", "greedy_accuracy", "blank", "0.250", "-0.250 [-0.500, +0.125]"],
        ["sums, L=2", "mean@2", "as sampled", "0.500", ""],
        ["sums, L=2", "mean@2", "blank", "0.250", "-0.250 [-0.500, +0.125]"],
    ]


def test_names_are_no_markup():
    rows = metric_rows([other(name="[red]a|b\x1b[31m")])
    console = Console(file=io.StringIO(), width=200)
    console.print(rich_table("Evaluation", rows))
    assert "[red]a|b\\x1b[31m" in console.file.getvalue()
    assert markdown_table(rows).splitlines()[0] == r"| metric | [red]a\|b\x1b[31m |"


@pytest.mark.parametrize(
    "results",
    [
        [RESULT],
        [other(name="sums, L=0", latent_length=0), RESULT],  # a sweep
        [RESULT, other(name="x$y", task="x$y")],
        [other(metrics={"greedy_accuracy": 0.5})],  # no samples
    ],
)
def test_pictures_can_be_drawn(results, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "eval.png"
    picture.write_bytes(b"before")
    plot_evaluations(results, picture, title="a $model")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [picture]
