import io
from typing import Any

from rich.console import Console

from lepo_kernels.report import tables


def render(table: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_evaluation_table_shows_the_change() -> None:
    text = render(
        tables.evaluation_table(
            {"before": {"greedy_accuracy": 0.125}, "after": {"greedy_accuracy": 0.5, "new": 1.0}}
        )
    )
    row = next(line for line in text.splitlines() if "greedy_accuracy" in line)
    assert row.split("│")[1:5] == [" greedy_accuracy ", "  0.125 ", " 0.500 ", " +0.375 "]
    assert "new" in text


def test_single_evaluation_has_no_change() -> None:
    assert "change" not in render(tables.evaluation_table({"now": {"greedy_accuracy": 0.1}}))


def test_completions_side_by_side_keep_brackets() -> None:
    record = {
        "completion": "[7]",
        "reward": 1.0,
        "latent": [[{"token": " soft", "weight": 0.5}], []],
    }
    columns = {"before": [record] * 2, "after": [record] * 2}
    text = render(tables.completions_table(["[b]What?[/b]"] * 2, columns))
    assert text.count("[b]What?[/b]") == 2
    assert text.count("[ soft] [7]") == 4


def test_soft_steps_have_bars_of_their_weights() -> None:
    steps = [
        [{"token": "\n", "weight": 0.75}, {"token": "[x]", "weight": 0.25}],
        [{"token": "y", "weight": 0.9}],
    ]
    text = render(tables.soft_steps_table(steps))
    for shown in (r"'\n'", "'[x]'", "0.750", "█" * 18):
        assert shown in text
    others = [line for line in text.splitlines() if "others" in line]
    assert len(others) == 1
    assert "0.100" in others[0]
    assert tables.bar(0.0) == ""
    assert tables.bar(1.0) == "█" * tables.BAR_WIDTH
    assert tables.bar(1.5 / tables.BAR_WIDTH) == "█▌"
