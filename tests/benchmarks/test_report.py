"""Tables, pictures and the page that is made of committed results."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from benchmarks import performance, plots, report, tables
from benchmarks.pictures import summary
from benchmarks.results import Result
from tests.benchmarks.saved import row, saved
from tests.benchmarks.wide import wide


@pytest.fixture
def result():
    return Result.of(saved())


def test_rows_are_ours_first_and_then_by_time(result):
    draw, loss = result.groups
    assert [row.name for row in draw.rows] == ["ours (cpu)", "a sampler", "eager", "floor: amax"]
    assert [row.name for row in loss.rows][:3] == [
        "ours, hard (cpu)",
        "ours (cpu)",
        "ours (reference)",
    ]
    # With hard targets it does less than the case asks for.
    assert loss.best_of_ours.name == "ours (cpu)"
    assert draw.best_of_ours.speed == pytest.approx(4.0)


def test_the_text_answers_how_much_faster_than_what_how_far_from_the_limit(result):
    text = tables.text(result)
    assert "speed 1 is a sampler, the fastest of the others" in text
    assert re.search(r"ours \(cpu\) +1\.00 +0\.900 to 1\.20 +4\.00 +10\.0 +50% +12\n", text)
    # A rate only where there are products, extra memory only where it was measured.
    assert re.search(r"eager +500 +450 to 600 +1\.00 +0\.0200 +0\.200 +50%\n", text)
    assert "a sampler: one hard token" in text
    assert "not run: a peer: it is not installed" in text
    assert "measured limits: read 10 GB/s, copy 20 GB/s, products in TFLOP/s: float32 0.2" in text


def test_markdown_has_a_line_per_row_and_as_many_cells_as_headings(result):
    for group in result.groups:
        lines = [x for x in tables.markdown(group).splitlines() if x.startswith("|")]
        assert len(lines) == 2 + len(group.rows)
        assert len({line.count("|") for line in lines}) == 1


def test_the_competitor_is_the_fastest_of_the_others_and_ours_the_op_itself():
    output = saved()
    variants = [("ours, kept logits", 0.0002), ("ours, kept logits (cpu)", 0.0003)]
    output["benchmarks"] += [row("draw", "[4, 8]", name, "ours", time) for name, time in variants]
    draw, loss = Result.of(output).groups
    assert draw.best_other.name == "a sampler"
    assert draw.best_of_ours.name == "ours (cpu)"
    assert {x.name: x.speed for x in draw.rows}["ours, kept logits"] == pytest.approx(20.0)
    # Where no row is the op itself, the fastest variant stands for it.
    output["benchmarks"] = [x for x in output["benchmarks"] if "| ours (" not in x["name"]]
    assert Result.of(output).groups[0].best_of_ours.name == "ours, kept logits"
    assert loss.best_other.name == "eager"


def test_a_competitor_that_does_less_is_said_to(result):
    draw, loss = result.groups
    assert tables.meaning(draw).endswith("the fastest of the others, though it does less")
    assert tables.meaning(loss).endswith("the fastest of the others")


def test_what_other_cases_of_the_op_are_compared_with_is_missed_and_explained_if_known():
    output = saved()
    for shape, names in (("[1]", ("eager", "torch.compile", "a peer")), ("[2]", ("eager",))):
        rows = [row("op", shape, "ours", "ours", 1.0), row("op", shape, "floor: x", "floor", 1.0)]
        rows += [row("op", shape, name, "other", 1.0) for name in names]
        # A floor says nothing of how much faster ours is.
        output["benchmarks"] += rows if shape == "[1]" else [rows[0], *rows[2:]]
    output["run"]["skipped"] += [{"group": "op [2]", "name": "a peer", "reason": "too large"}]
    text = tables.markdown(Result.of(output).groups[-1])
    assert "- not run: a peer: too large\n" in text
    assert "- not run: torch.compile: in other cases of the op, not measured in this one\n" in text
    assert "floor" not in text
    # Other ops are compared with other things.
    assert "torch.compile" not in tables.markdown(Result.of(output).groups[0])


def test_numbers_have_three_digits():
    values = (None, 1234.5, 99.94, 0.0123456, 0.00001)
    assert [tables.number(x) for x in values] == ["", "1234", "99.9", "0.0123", "0.0000"]


def test_the_command_writes_a_page_and_pictures(tmp_path, capsys):
    file = tmp_path / "results.json"
    file.write_text(json.dumps(saved()))
    report.main([str(file), "--out", str(tmp_path / "out")])
    assert "ours (cpu)" in capsys.readouterr().out
    page = (tmp_path / "out" / report.PAGE).read_text()
    linked = re.findall(r"\]\((\w+\.png)\)", page)
    assert linked == ["summary.png", "roofline.png", "bars_draw.png", "bars_loss.png"]
    for name in linked:
        image = imread(tmp_path / "out" / name)
        assert image.shape[1] > 800
        assert image[..., :3].min() < 0.5


def test_the_command_prints_to_any_stream(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    file.write_text(json.dumps(saved()).replace("a sampler", "a s\u00e4mpler"))
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    report.main([str(file)])
    assert b"a s?mpler" in stream.buffer.getvalue()


def test_the_page_is_there_before_any_picture_and_outlives_one_that_fails(tmp_path, monkeypatch):
    seen = []

    def broken(*_):
        seen.append((tmp_path / report.PAGE).read_text())
        raise ZeroDivisionError("no height")

    monkeypatch.setattr(summary, "draw", broken)
    names = report.write(Result.of(saved()), tmp_path)
    assert "ours (cpu)" in seen[0]
    assert names == [report.PAGE, "roofline.png", "bars_draw.png", "bars_loss.png"]
    page = (tmp_path / report.PAGE).read_text()
    assert "- not drawn: summary.png: ZeroDivisionError('no height')" in page
    assert re.findall(r"\]\((\w+\.png)\)", page) == names[1:]


def test_without_matplotlib_there_is_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report.write(Result.of(saved()), tmp_path) == [report.PAGE]
    assert "ours (cpu)" in (tmp_path / report.PAGE).read_text()
    assert "pip install matplotlib" in capsys.readouterr().out


def test_other_files_are_refused_in_one_line(tmp_path, capsys):
    file = tmp_path / "other.json"
    file.write_text("{}")
    for path in (file, tmp_path / "nowhere.json"):
        with pytest.raises(SystemExit):
            report.main([str(path)])
        assert "error:" in capsys.readouterr().err


def test_without_ours_there_is_nothing_to_draw():
    output = saved()
    output["benchmarks"] = [
        one for one in output["benchmarks"] if one["extra_info"]["kind"] != "ours"
    ]
    assert plots.pictures(Result.of(output)) == {}


def test_the_page_of_committed_results_is_up_to_date():
    assert performance.files(), "no results are committed"
    assert performance.PAGE.read_text() == performance.page(), (
        "run: python -m benchmarks.performance"
    )
    for name in re.findall(r"\(images/(\S+)\)", performance.page()):
        assert (performance.PICTURES / name).is_file(), "run: python -m benchmarks.performance"


def test_the_page_says_whether_there_are_figures_of_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(performance, "RESULTS", tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(saved()))
    assert "no GPU figures yet" in performance.page()
    assert "taken 2026-11-23, commit 0123456789ab" in performance.page()
    assert "torch 2.13" in performance.page()
    (tmp_path / "b.json").write_text(json.dumps(saved("cuda")))
    assert "no GPU figures yet" not in performance.page()
    assert [file.stem for file in performance.files()] == ["b", "a"]


def test_the_pages_say_that_the_tree_had_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(performance, "RESULTS", tmp_path)
    output = saved()
    for dirty in (False, True):
        output["commit_info"]["dirty"] = dirty
        (tmp_path / "a.json").write_text(json.dumps(output))
        for page in (performance.page(), report.page(Result.of(output), [])):
            changed = "commit 0123456789ab, with changes that were not committed" in page
            assert changed == dirty


def test_the_page_links_the_pictures_that_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(performance, "RESULTS", tmp_path)
    (tmp_path / "a.json").write_text(json.dumps(wide(saved())))
    linked = re.findall(r"\(images/performance_a_(\S+)\)", performance.page())
    assert linked == list(plots.overview(Result.of(wide(saved()))))
    assert len(linked) == 14


def test_no_committed_result_names_its_host():
    for file in performance.files():
        text = Path(file).read_text()
        assert '"node"' not in text
        assert '"branch"' not in text
