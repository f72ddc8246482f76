"""What a run measures follows from the device, its memory and the options."""

import pytest
import torch

from benchmarks import shapes
from benchmarks.plan import Plan

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def test_models_are_found_by_name_whatever_its_case():
    assert [model.vocab for model in shapes.find("qwen2.5-7b, SMOLLM2-135M")] == [152064, 49152]
    assert shapes.find("all") == tuple(shapes.MODELS.values())
    with pytest.raises(ValueError, match="no model 'gpt-2'; known: all, SmolLM2-135M"):
        shapes.find("gpt-2")


def test_a_gpu_takes_all_models_and_a_cpu_small_ones():
    assert len(Plan(GPU, 1 << 40).heavy_models()) == len(shapes.MODELS)
    assert [x.name for x in Plan(CPU, 1 << 40).heavy_models()] == ["SmolLM2-135M"]
    asked = shapes.find("Gemma-2-2B")
    assert Plan(CPU, 1 << 40, asked).heavy_models() == asked


def test_rows_are_halved_until_they_fit_unless_they_were_asked_for():
    assert Plan(GPU, 1 << 40).training_rows(1 << 20) == 8192
    assert Plan(GPU, 5 << 30).training_rows(1 << 20) == 4096
    assert Plan(GPU, 1).training_rows(1 << 20) == 1
    assert Plan(GPU, 1, rows=100).training_rows(1 << 20) == 100
    assert Plan(GPU, 1, rows=100).rollout_rows() == 100
