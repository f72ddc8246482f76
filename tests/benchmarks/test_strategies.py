"""The tool that fills the table of strategies, with tiny shapes and without a GPU."""

import json

import pytest
import torch

from tests import triton_backend

pytestmark = pytest.mark.skipif(triton_backend.why_not() is not None, reason="no triton")
CPU = torch.device("cpu")


def test_a_family_is_measured_and_entered(monkeypatch, tmp_path, capsys):
    from benchmarks import strategies as tool
    from lepo_kernels.backends.triton.head import strategies

    rows = {torch.bfloat16: 3, torch.float32: 2}
    with triton_backend.serving(monkeypatch):
        monkeypatch.setattr("benchmarks.timing._SHORTEST_SAMPLE", 0)
        monkeypatch.setattr(strategies, "WIDTHS", (8,))
        monkeypatch.setattr(strategies, "VOCABS", (16,))
        family = tool.measured(CPU, rows, (8, 9), (16, 17), rounds=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert all("chunks" in x and "tiles" in x and "products" in x for x in lines)
    assert family["basis"].startswith("measured on no GPU, torch ")
    for size in ("half", "float"):
        assert set(family[size]) == {"D <= 8", "D > 8"}
        for line in family[size].values():
            assert set(line) == {"V <= 16", "V > 16"}
            assert set(line.values()) <= {"chunks", "tiles"}
    path = tmp_path / "strategies.json"
    path.write_text(strategies.TABLE.read_text())
    tool.enter(path, "sm_90", family)
    table = json.loads(path.read_text())
    assert table["sm_90"] == family
    assert table["sm_80"] == json.loads(strategies.TABLE.read_text())["sm_80"]


def test_strategies_that_differ_are_not_timed(monkeypatch):
    from benchmarks import strategies as tool

    right = tool.passes

    def wrong(name, *inputs):
        results = right(name, *inputs)
        return (*results[:-1], 1.2 * results[-1]) if name == "tiles" else results

    with triton_backend.serving(monkeypatch):
        monkeypatch.setattr(tool, "passes", wrong)
        with pytest.raises(AssertionError, match="result 4 of tiles, beside chunks"):
            tool.measure(CPU, 2, 8, 16, torch.float32, 1)


def test_the_table_is_kept_as_the_tool_writes_it():
    from benchmarks import strategies as tool
    from lepo_kernels.backends.triton.head import strategies

    text = strategies.TABLE.read_text()
    assert tool.text_of(json.loads(text)) == text


# A shape for each class of the table.
def test_every_class_is_measured():
    from benchmarks import strategies as tool
    from lepo_kernels.backends.triton.head import strategies

    for name, sizes, limits in (
        ("D", tool._WIDTHS, strategies.WIDTHS),
        ("V", tool._VOCABS, strategies.VOCABS),
    ):
        assert len({strategies.class_of(name, x, limits) for x in sizes}) == len(limits) + 1


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    from benchmarks import strategies as tool

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tool.main([])
    assert "needs a GPU" in capsys.readouterr().err
