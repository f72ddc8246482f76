"""The report on the Triton kernels: its models, and that the committed page names the kernels.

Whether its figures are those of the kernels is not tested: that takes ten minutes of compilation.
`tests/test_triton_compile.py` holds the kernels to their budgets.
"""

import json
import re

import pytest

from tools.triton_report.compiled import BUDGETS
from tools.triton_report.models import CALLS, MODELS, Sizes, Work
from tools.triton_report.page import PAGE, work_part

UPDATE = "; run python -m tools.triton_report"
# After this line the page depends on no compiler.
WORK_PART = "\n## Work\n"


def parts_of_the_page():
    text = PAGE.read_text()
    at = text.index(WORK_PART)
    return text[:at], text[at:]


def test_the_committed_predictions_are_up_to_date():
    compiled, work = parts_of_the_page()
    assert work == work_part(), "the page is old" + UPDATE
    assert "**Compiled only: predicted, not measured.**" in compiled


def test_page_models_and_budgets_name_the_same_kernels():
    shown = set(re.findall(r"^\| `(\w+)` \|", parts_of_the_page()[0], re.M))
    assert shown == set(json.loads(BUDGETS.read_text())), "the page is old" + UPDATE
    assert set(MODELS) == set(CALLS) == shown


def test_a_prediction_is_the_largest_of_the_three_times():
    # 3 TB in a second; as many flops as take two; instructions for half a second.
    work = Work(3 * 10**12, 14 * 10**14, int(132 * 128 * 0.8e9))
    assert work.seconds() == pytest.approx({"bytes": 1.0, "flops": 2.0, "instructions": 0.5})
    assert work.bound() == "flops"


def test_a_mixture_reads_its_rows_of_the_table_once():
    # 3 rows, each of 2 entries: 3 rows of 8 bytes with the one that is written, and 12 per entry.
    assert MODELS["mix_kernel"](Sizes(3, 100, 2, 4)) == Work(3 * (3 * 8 + 24))


def test_sums_are_carried_from_chunk_to_chunk():
    # 256 MiB of scores are 32 ids of each row: the thinnest chunk is of 128, so there are three.
    # Each row of 2 columns has one part, written three times and read twice, beside 2 bytes for
    # each element of the head and of the gradient of the logits.
    rows = 1 << 21
    work = MODELS["hidden_gradient_kernel"](Sizes(rows, 300, width=2))
    assert work.bytes == 2 * (300 * 2 + 300 * rows) + 5 * rows * 2 * 4
