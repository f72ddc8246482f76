"""Philox words are those committed in philox_vectors.json, on the device as everywhere."""

import json
from pathlib import Path

import pytest
import torch

from lepo_kernels import philox_words
from tests.gpu.calls import needs
from tests.ops.test_philox import scalar_word

VECTORS = json.loads(Path(__file__).with_name("philox_vectors.json").read_text())
ids_of = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])


@ids_of
@needs("philox_words")
def test_the_device_gives_the_committed_words(vector, device):
    words = philox_words(
        vector["seed"],
        torch.tensor(vector["row_keys"], device=device),
        torch.tensor(vector["steps"], device=device),
        torch.tensor(vector["ids"], device=device),
        draw=vector["draw"],
    )
    assert words.device.type == device.type
    assert words.tolist() == vector["words"]


@ids_of
def test_the_committed_words_follow_the_definition(vector):
    seed, draw = vector["seed"], vector["draw"]
    rows = zip(vector["row_keys"], vector["steps"], vector["words"], strict=True)
    for key, step, words in rows:
        assert words == [scalar_word(seed, key, step, i, draw) for i in vector["ids"]]
