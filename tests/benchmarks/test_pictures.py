"""Pictures: what is said in them, and that it can be read, few cases or many."""

from itertools import combinations

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks import plots
from benchmarks.pictures.places import put_numbers
from benchmarks.results import Result
from tests.benchmarks.saved import row, saved
from tests.benchmarks.wide import MODELS, wide


@pytest.fixture(scope="module")
def many():
    return Result.of(wide(saved()))


def words(figure):
    """All that is written, in one line each."""
    found = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
    return " ".join(" ".join(found).split()).replace("\N{NO-BREAK SPACE}", " ")


def not_drawn(figure):
    """Labels that matplotlib keeps for ticks outside of a panel, or of a panel without axes."""
    for axes in figure.get_axes():
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not (axes.axison and low <= tick.get_loc() <= high):
                    yield from (tick.label1, tick.label2)


def covered(figure):
    """Words that cover other words, or are cut off at the edge."""
    figure.draw_without_rendering()
    hidden = set(not_drawn(figure))
    texts = [x for x in figure.findobj(Text) if x.get_visible() and x.get_text().strip()]
    for text in texts:
        # Below a title there may be room for a legend.
        text.set_text(text.get_text().rstrip())
    # Without the line that leads to a number.
    boxes = {x: Text.get_window_extent(x) for x in texts if x not in hidden}
    for one, other in combinations(boxes, 2):
        # Boxes of letters touch where lines are close.
        if boxes[one].padded(-1.5).overlaps(boxes[other].padded(-1.5)):
            yield one.get_text(), other.get_text()
    for one, box in boxes.items():
        if box.x0 < -1 or box.y0 < -1 or box.x1 > figure.bbox.x1 + 1 or box.y1 > figure.bbox.y1 + 1:
            yield one.get_text(), "the edge"


def test_many_cases_of_several_models_have_a_picture_each_beside_the_overview(many):
    slugs = [*(model.lower().replace("-", "_").replace(".", "_") for model in MODELS)]
    slugs.append("qwen2_5_0_5b")
    kinds = ("summary", "roofline")
    want = [f"{kind}.png" for kind in kinds]
    want += [f"{kind}_{slug}.png" for kind in kinds for slug in slugs]
    assert list(plots.overview(many)) == want


def test_few_cases_of_several_models_share_a_picture():
    output = saved()
    rows = [row("op", f"{model}: [1]", "ours", "ours", 1.0) for model in MODELS]
    result = Result.of(output | {"benchmarks": rows})
    assert list(plots.overview(result)) == ["summary.png", "roofline.png"]
    assert "Gemma-2-2B: [1]" in words(plots.overview(result)["summary.png"]())


def test_an_op_with_very_many_bars_has_a_picture_for_each_model(monkeypatch, many):
    assert "bars_linear_log_probs.png" in plots.pictures(many)
    monkeypatch.setattr(plots, "BARS", 49)
    named = list(plots.pictures(many))
    assert "bars_linear_log_probs.png" not in named
    assert "bars_linear_log_probs_qwen2_5_3b.png" in named


# The overview, the model with the most cases, the one without a case that has no products.
@pytest.mark.parametrize("part", ["", "_qwen2_5_3b", "_qwen2_5_0_5b"])
@pytest.mark.parametrize("kind", ["summary", "roofline"])
def test_no_words_cover_others_in_a_wide_result(many, kind, part):
    figure = plots.overview(many)[f"{kind}{part}.png"]()
    assert list(covered(figure)) == []
    width, height = figure.get_size_inches() * figure.dpi
    assert 1200 < width < 1700
    assert height < 1100


def test_a_legend_names_ops_in_full(many):
    for name in ("roofline.png", "roofline_qwen2_5_3b.png"):
        found = words(plots.overview(many)[name]())
        assert "rollout, latent" in found
        assert "rollout, discrete" in found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_picture_names_torch_the_threads_and_the_day(device):
    output = saved(device)
    if device == "cuda":
        del output["machine_info"]["device"]["threads"]
    threads = "2 threads, " if device == "cpu" else ""
    for name, make in plots.pictures(Result.of(output)).items():
        assert f"torch 2.13, {threads}2026-11-23" in words(make()), name


def test_the_summary_marks_a_peer_that_does_less(many):
    (few, *_), (wide_one, *_) = (plots.overview(x).values() for x in (Result.of(saved()), many))
    assert "than a sampler * " in words(few())
    assert "than eager ours" not in words(few())
    assert "TRL selective_log_softmax * (5)" in words(wide_one())
    assert "torch.compile, 30 rows of E (5)" in words(wide_one())
    for make in (few, wide_one):
        assert "* does less than the case asks for" in words(make())


# With another case that has something beside it, and alone.
@pytest.mark.parametrize("rows", [("draw", "loss"), ("loss",)])
def test_a_case_with_nothing_beside_it_is_drawn(tmp_path, rows):
    output = saved()
    output["benchmarks"] = [
        one
        for one in output["benchmarks"]
        if one["extra_info"]["op"] in rows
        and (one["extra_info"]["op"] == "draw" or one["extra_info"]["kind"] == "ours")
    ]
    named = plots.pictures(Result.of(output))
    drawn = plots.draw(named, tmp_path)
    assert not drawn.failed
    assert [path.name for path in drawn.written] == list(named)
    assert "nothing beside it" in words(named["summary.png"]())


def test_numbers_of_points_in_one_place_are_apart():
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    axis.set(xlim=(0, 2), ylim=(0, 2))
    put_numbers(figure, axis, [(1.0, 1.0)] * 12)
    assert list(covered(figure)) == []
    assert [x.get_text() for x in axis.texts] == [f"{index}" for index in range(1, 13)]
