"""The predictions of a GPU run: of each fact, no less than its work, and in the notes."""

from pathlib import Path

import pytest
import torch

from benchmarks import predictions
from benchmarks.gpu_run.measured import REAL, facts_of
from benchmarks.gpu_run.serving import Place
from benchmarks.predictions import DEVICES, Piece, Prediction, Rates

NOTES = Path(predictions.__file__).with_name("NOTES.md")
ONE = Rates("one", 1.0, 1.0, 1.0)


def test_each_fact_has_a_prediction_of_at_least_its_work():
    facts = list(facts_of(REAL, Place(torch.device("cpu"), ("cuda", "triton"))))
    found = list(predictions.predictions())
    assert [x.fact for x in found] == [x.name for x in facts]
    for ours, fact in zip(found, facts, strict=True):
        assert ours.bytes >= fact.work.bytes
        assert ours.flops >= fact.work.flops
        assert ours.bytes > 0


def test_times_of_pieces_add_up_and_those_within_one_do_not():
    piece = Piece("a", bytes=2.0, flops=3.0, share=0.5, waits=1.0)
    assert piece.seconds(ONE) == 7
    assert Piece("a", bytes=2.0, host=5.0).seconds(ONE) == 5
    assert Piece("a", instructions=4.0).seconds(ONE) == 4
    both = Prediction("both", (piece, Piece("b", bytes=8.0)))
    assert (both.seconds(ONE), both.bytes, both.flops) == (15, 10, 3)
    assert both.bound(ONE) == "b"


def test_the_loss_beside_its_three_products():
    found = {x.fact: x for x in predictions.predictions()}
    h200 = DEVICES[0]
    bare = found["three products, D 4096"].seconds(h200)
    assert bare == pytest.approx(6 * 8192 * 151936 * 4096 / 775e12)
    # The float32 logits twice and their gradient; the epilogue's other half; the last scaling.
    rows = 8192 * 151936 * (4 + 4 + 2 + 2) / 4.3e12
    scaling = 4 * (8192 + 151936) * 4096 / 4.3e12 / 0.67
    loss = found["lepo_loss, D 4096"].seconds(h200)
    assert loss == pytest.approx(bare + rows + scaling + (71 + 8 * 46) * 1.5e-6)


def test_the_notes_have_the_table():
    assert predictions.table() in NOTES.read_text(encoding="utf-8")
