"""The report on the CUDA kernels: its models, and that the committed page is up to date."""

import fnmatch
import re

import pytest

from lepo_kernels import dispatch
from tests.test_cuda_compile import needs_disassembler
from tools.cuda_report import traffic
from tools.cuda_report.budgets import read_budgets
from tools.cuda_report.compiler import find_nvcc, nvcc_version
from tools.cuda_report.kernels import SHIPPED
from tools.cuda_report.occupancy import blocks_per_multiprocessor, occupancy
from tools.cuda_report.page import PAGE, current_page, traffic_part
from tools.cuda_report.traffic import Sizes, total

UPDATE = "; run python -m tools.cuda_report"
# After this line the page depends on no compiler.
TRAFFIC_PART = "\n## Traffic\n"


def kernels_of_the_page():
    table = PAGE.read_text().split(TRAFFIC_PART)[0]
    return {"lepo::" + name for name in re.findall(r"^\| `(\S.*?)` \|", table, re.M)}


def test_the_committed_traffic_is_up_to_date():
    text = PAGE.read_text()
    assert text[text.index(TRAFFIC_PART) :] == traffic_part(), "the page is old" + UPDATE
    assert "**Compiled only: predicted, not measured.**" in text


def test_a_unit_is_what_the_kernels_take_at_once():
    header = (SHIPPED / "linear_log_probs.h").read_text()
    (entries,) = re.findall(r"kStateEntries = (\d+);", header)
    assert int(entries) == traffic.UNIT_ENTRIES


def test_every_kernel_is_in_the_committed_page():
    files = [*SHIPPED.glob("*.cuh"), *SHIPPED.glob("*.cu")]
    # A name stands before its parameters; the bounds of the launch may stand before the name.
    kernel = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^()]*\)\s*)?(\w+)\(")
    texts = [file.read_text() for file in files]
    names = {name for text in texts for name in kernel.findall(text)}
    assert len(names) == len({*re.findall(r"__global__[^{;]*?(\w+_kernel)\(", "".join(texts))})
    shown = {name.removeprefix("lepo::").split("<")[0] for name in kernels_of_the_page()}
    assert {name.split("::")[-1] for name in shown} == names, "the page is old" + UPDATE


def test_the_page_and_the_budgets_name_the_same_kernels():
    shown, patterns = kernels_of_the_page(), read_budgets(SHIPPED)
    for pattern in patterns:
        assert fnmatch.filter(shown, pattern), f"{pattern} is in no row{UPDATE}"
    for kernel in shown:
        assert any(fnmatch.fnmatchcase(kernel, p) for p in patterns), f"{kernel}{UPDATE}"


@pytest.mark.slow
@needs_disassembler
def test_the_committed_numbers_are_those_of_this_compiler():
    if find_nvcc() is None or f"Compiled with nvcc {nvcc_version()}." not in PAGE.read_text():
        pytest.skip("the committed page is of another compiler")
    assert PAGE.read_text() == current_page(), "the page is old" + UPDATE


def test_every_op_of_the_backend_has_a_model():
    served = {op for op, (_, backends) in dispatch.KERNELS.items() if "cuda" in backends}
    assert served - traffic.MODELS.keys() == set(), "write the op's model into traffic.py" + UPDATE
    assert {op for op, _ in traffic.CASES} <= traffic.MODELS.keys()


# By hand, from the shapes of the tensors.
@pytest.mark.parametrize(
    ("op", "sizes", "expected"),
    [
        ("philox_words", Sizes(2, kept=5), 2 * (5 * 8 + 5 * 8 + 16)),
        # ids 24, three float32 each 12; lse, kept_lse, entropy, count; shadow, token; key, step
        ("sample_latent", Sizes(2, 10, 3), 2 * (20 + 24 + 3 * 12 + 4 * 4 + 2 * 8 + 2 * 8)),
        ("mix_embeddings", Sizes(2, 100, 3, 8), 2 * (3 * 16 + 3 * 8 + 3 * 4 + 16)),
        # weights: rows, gradient, ids, out; table: gradient, rows, ids, weights; zeros
        (
            "mix_embeddings_backward",
            Sizes(2, 100, 3, 8),
            2 * ((48 + 16 + 24 + 12) + (16 + 48 + 24 + 12)) + 1600,
        ),
        ("latent_step", Sizes(1, 10, 3, 8), 20 + 24 + 36 + 16 + 16 + 16 + 48 + 24 + 12 + 16),
        # one whole unit and a rest
        ("gather_log_probs", Sizes(1, 513, 3), 1026 + 2 * 24 + 3 * 12 + 8),
        ("gather_log_probs_backward", Sizes(1, 10, 3, element=4), 80 + 3 * 12 + 16),
    ],
)
def test_models_count_every_tensor_once(op, sizes, expected):
    assert total(op, sizes) == expected


# As a calculator says that others checked against NVIDIA's. Limited by: registers, where a
# scheduler's share is no whole number of warps; the same with three warps a block; blocks; blocks
# and warps of a smaller multiprocessor; shared memory with the system's 1 KiB a block; more
# registers, and more shared memory, than there are.
@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks"),
    [
        ("sm_90", 64, 100, 5000, 8),
        ("sm_90", 96, 96, 0, 6),
        ("sm_80", 32, 40, 100, 32),
        ("sm_120", 32, 20, 0, 24),
        ("sm_120", 96, 48, 0, 13),
        ("sm_100", 160, 65, 40000, 5),
        ("sm_80", 1024, 128, 0, 0),
        ("sm_120", 128, 32, 100 << 10, 0),
    ],
)
def test_blocks_per_multiprocessor(architecture, threads, registers, shared, blocks):
    assert blocks_per_multiprocessor(architecture, threads, registers, shared) == blocks


def test_occupancy_counts_warps():
    assert occupancy("sm_90", 96, 6) == 18 / 64
    assert occupancy("sm_120", 33, 4) == 8 / 48
