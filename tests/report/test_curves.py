from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lepo_kernels.report import curves
from lepo_kernels.report.run_folder import RunFolder


def make_run(folder: Path, steps: int, **metrics: float) -> RunFolder:
    run = RunFolder(folder)
    for step in range(steps):
        row: dict[str, Any] = {"step": step, **metrics}
        if step % 4 == 0:
            row["eval_greedy_accuracy"] = step / steps
        run.append_metrics(row)
    return run


@pytest.fixture
def drawn_titles(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Title of each panel drawn -> the labels of its lines."""
    found: dict[str, list[str]] = {}
    savefig = Figure.savefig

    def spy(figure: Figure, *args: Any, **kwargs: Any) -> None:
        for axis in figure.axes:
            labels = [str(line.get_label()) for line in axis.lines]
            if labels:
                found[axis.get_title(loc="left")] = [
                    label for label in labels if not label.startswith("_")
                ]
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    return found


@pytest.mark.parametrize("steps", [1, 30])  # a single point; enough for a moving average
def test_picture_is_drawn(tmp_path: Path, steps: int) -> None:
    run = make_run(tmp_path, steps, reward=0.5, entropy=1.0)
    assert curves.plot_curves(run.metrics_file, tmp_path / "curves.png", "a title")
    picture = imread(tmp_path / "curves.png")
    assert picture.shape[0] > 200
    assert picture.std() > 0.01
    assert not list(tmp_path.glob("*.new"))


def test_panels_without_values_are_left_out(
    tmp_path: Path, drawn_titles: dict[str, list[str]]
) -> None:
    run = make_run(tmp_path, 8, reward=0.5, entropy=1.0)
    run.append_metrics({"step": 8, "eval_mean@4": 0.3, "eval_pass@2": 0.4, "eval_pass@4": 0.5})
    curves.plot_curves(run.metrics_file, tmp_path / "curves.png")
    assert drawn_titles == {
        "Reward (training)": ["mean"],
        "Accuracy (held out)": ["greedy", "mean@4", "pass@4"],
        "Entropy (nats)": ["discrete steps"],
    }


def test_nothing_to_draw(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 1, "loss": 0.1})
    assert not curves.plot_curves(run.metrics_file, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
    with pytest.raises(FileNotFoundError):
        curves.plot_curves(tmp_path / "no.jsonl", tmp_path / "curves.png")


def test_moving_average_is_centred() -> None:
    assert curves._moving_average([0.0, 3.0, 6.0, 9.0], 3) == [1.5, 3.0, 6.0, 7.5]


@pytest.mark.parametrize(("clipped", "drawn"), [(0.0, False), (0.1, True)])
def test_clipping_is_drawn_once_it_acts(
    tmp_path: Path, drawn_titles: dict[str, list[str]], clipped: float, drawn: bool
) -> None:
    run = make_run(tmp_path, 4, reward=0.0, **{"clip_ratio/low_mean": 0.0})
    run.append_metrics({"step": 4, "clip_ratio/low_mean": clipped})
    curves.plot_curves(run.metrics_file, tmp_path / "curves.png")
    assert ("Clip ratio" in drawn_titles) is drawn
    assert "Reward (training)" in drawn_titles


# A dollar sign starts no formula, and a letter that the font does not have is no warning.
@pytest.mark.parametrize("title", ["a $\\frac$ b", "100$ and 200$", "\u65e5\u672c", "x[/y]\nz\x00"])
def test_any_title_is_drawn(tmp_path: Path, title: str) -> None:
    run = make_run(tmp_path, 2, reward=0.5)
    assert curves.plot_curves(run.metrics_file, tmp_path / "curves.png", title)


def test_what_is_no_number_is_left_out(tmp_path: Path, drawn_titles: dict[str, list[str]]) -> None:
    run = make_run(tmp_path, 2, entropy=1.0)
    with run.metrics_file.open("a") as file:
        file.write('{"step": 2, "reward": "high", "entropy": NaN, "completions/mean_length": []}\n')
        file.write('{"step": 3, "reward": Infinity, "eval_pass@hard_greedy_accuracy": 1}\n')
        file.write(
            '{"step": 4, "reward": 1%s, "eval_mean@x": 0.5, "eval_pass@": 1}\n' % ("0" * 400)
        )
    assert curves.plot_curves(run.metrics_file, tmp_path / "curves.png")
    assert drawn_titles.keys() == {"Entropy (nats)", "Accuracy (held out)"}


def test_a_picture_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Figure, file: Path, **_: Any) -> None:
        Path(file).write_text("half")
        raise OSError("no room")

    monkeypatch.setattr(Figure, "savefig", fail)
    run = make_run(tmp_path, 2, reward=0.5)
    with pytest.raises(OSError, match="no room"):
        curves.plot_curves(run.metrics_file, tmp_path / "curves.png")
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
