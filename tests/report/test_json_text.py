import json

import numpy as np
import pytest
import torch

from lepo_kernels.report.json_text import json_text
from lepo_kernels.report.tables import completions_table


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (
            {"a": [1.5, float("inf")], "b": {"c": -float("inf")}},
            {"a": [1.5, None], "b": {"c": None}},
        ),
        ((np.float32(0.5), np.int64(3), np.bool_(True)), [0.5, 3, True]),
        (np.array([[1.0, np.nan]]), [[1.0, None]]),
        (torch.tensor([1, 2]), [1, 2]),
        ("é\ud800!", "é\ud800!"),
        ({3: object}, {"3": "<class 'object'>"}),
        (10**5000, hex(10**5000)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_written_can_be_read_by_any_reader(value, expected):
    text = json_text(value)
    assert "\n" not in text
    assert json.loads(text.encode("utf-8"), parse_constant=pytest.fail) == expected


def test_a_completion_without_a_reward_is_shown():
    record = {"completion": "x", "latent": [], "reward": None}
    column = completions_table(["q"], {"step 1": [record]}).columns[1]
    assert "no reward" in str(next(iter(column.cells)))
