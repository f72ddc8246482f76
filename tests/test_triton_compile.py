"""Triton takes every kernel for GPUs that need not be here, and each stays within its budget.

Budgets are in `budgets.json` beside the kernels, one entry per kernel: the most registers a thread
and bytes of shared memory a program may use, and the fewest loads of 16 bytes (and, where it
multiplies matrices, tensor-core products) in its code, on any NVIDIA architecture. Registers and
loads of AMD's are others: there shared memory, products and spills are checked. A stack frame, so
any spill, is not within budget, unless an entry names it: what one release of Triton makes worse
than others is under ``triton`` and that release, with ``uneven_stack`` for shapes that nothing
divides. What is compiled are the launches that a call makes
(`tests/triton_sim/launches.py`), in a process of its own that is ended when it takes too long: a
kernel that spills compiles for minutes.
"""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from lepo_kernels import dispatch
from tests.triton_sim.cases import CASES, COMPOSED, UNEVEN

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = ROOT / "lepo_kernels" / "backends" / "triton" / "budgets.json"
# Ampere, Ada, Hopper, Blackwell, and AMD's MI300.
TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")
# The most that a program may use where budgets, which are for datacenter GPUs, allow more: Ada (as
# workstation Ampere and Blackwell) lends a block no more of its shared memory, and AMD's local data
# share is smaller.
MOST_SHARED = {"sm_89": 101376, "gfx942": 65536}
DTYPES = ("bfloat16", "float16", "float32")
# float16 takes the tiles of bfloat16 where products take halves as they are, and other ones where
# these are of float32: those spill on Ampere first, which keeps all operands in registers. float32
# has the same tiles on all of NVIDIA's, and other products from Hopper on.
TARGETS_OF = {"float16": ("sm_80",), "float32": ("sm_80", "sm_90")}
# Where GPUs without a family of their own have other tiles; elsewhere sm_80 stands for them.
OTHER_TILES = ("gumbel_softmax_embedding", "linear_gumbel_softmax_embedding", "linear_log_probs")
# No tile depends on the dtype, and all but loads is float32: a minute of compilation less for each.
ONE_DTYPE = ("sample_latent",)
# A few seconds are usual, also for a process to start.
SECONDS_PER_CASE = 240

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


class CompileError(Exception):
    """What Triton said."""


def compiled(case: str, dtype: str, target: str, folder: Path) -> list[tuple[str, dict[str, int]]]:
    """(kernel, what it uses) of every launch of a case."""
    words = [sys.executable, "-m", "tests.triton_sim.compiling", case, dtype, target]
    options = {"TRITON_CACHE_DIR": str(folder), "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=os.environ | options,
            capture_output=True,
            text=True,
            timeout=SECONDS_PER_CASE,
        )
    except subprocess.TimeoutExpired as late:
        raise CompileError(f"{last_of(late.stdout, case)} for {target}: not in time") from late
    if done.returncode != 0:
        raise CompileError(f"{last_of(done.stdout, case)} for {target}:\n{done.stderr}")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [(start["kernel"], used) for start, used in zip(lines[::2], lines[1::2], strict=True)]


def last_of(output: str | bytes | None, case: str) -> str:
    """The kernel that was being compiled, once there was one."""
    lines = (output or "").splitlines()
    return str(json.loads(lines[-1])["kernel"]) if lines else case


def over_budget(
    report: list[tuple[str, dict[str, int]]], target: str, table: dict[str, dict[str, int]]
) -> list[str]:
    """A line for each kernel and resource that is not within its budget."""
    lines = []
    for kernel, used in report:
        if kernel not in table:
            lines.append(f"{kernel} for {target}: no entry in the table of budgets")
            continue
        budget = {"stack": 0, "wide_loads": 0, "products": 0} | table[kernel]
        if target.startswith("gfx"):
            budget |= {"registers": 512, "shared": MOST_SHARED[target], "wide_loads": 0}
        elif target in MOST_SHARED:
            budget["shared"] = min(budget["shared"], MOST_SHARED[target])
        lines += [
            f"{kernel} for {target}: {used[what]} {what}, the budget is {budget[what]}"
            for what in ("registers", "stack", "shared")
            if used[what] > budget[what]
        ]
        lines += [
            f"{kernel} for {target}: {used[what]} {what}, at least {budget[what]} are meant"
            for what in ("wide_loads", "products")
            if used[what] < budget[what]
        ]
    return lines


def budgets(release: str | None = None) -> dict[str, dict[str, int]]:
    """The table for a release of Triton, such as 3.7; None takes the installed one."""
    if release is None:
        release = ".".join(version("triton").split(".")[:2])
    return budgets_for(json.loads(BUDGETS.read_text()), release)


def budgets_for(table: dict[str, dict[str, Any]], release: str) -> dict[str, dict[str, int]]:
    return {
        kernel: entry | entry.get("triton", {}).get(release, {}) for kernel, entry in table.items()
    }


def compilation(case, dtype, target):
    # One small compilation a day shows that the tools and the budgets work.
    everyday = (case, dtype, target) == ("mix_embeddings", "bfloat16", "sm_90")
    return pytest.param(case, dtype, target, marks=() if everyday else pytest.mark.slow)


@pytest.mark.parametrize(
    ("case", "dtype", "target"),
    [
        compilation(case, dtype, target)
        for case in CASES
        for dtype in (DTYPES[:1] if case in ONE_DTYPE else DTYPES)
        for target in TARGETS_OF.get(dtype, TARGETS)
        if target != "sm_89" or case in OTHER_TILES
    ],
)
def test_kernels_compile_within_their_budgets(case, dtype, target, tmp_path):
    assert over_budget(compiled(case, dtype, target, tmp_path), target, budgets()) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", UNEVEN)
# Where tiles are largest, and where registers are scarcest.
@pytest.mark.parametrize("target", ["sm_90", "sm_80"])
def test_uneven_shapes_spill_nothing(case, target, tmp_path):
    report, table = compiled(case, "bfloat16", target, tmp_path), budgets()
    spilled = [k for k, used in report if used["stack"] > table[k].get("uneven_stack", 0)]
    assert spilled == []


def test_every_family_has_a_case():
    families = {family for family, backends in dispatch.KERNELS.values() if "triton" in backends}
    assert set(CASES) | COMPOSED == families


# --- The checks see what they should see --------------------------------------------------------


def test_the_budget_names_the_kernel_and_the_architecture():
    used = {"registers": 40, "stack": 0, "shared": 100, "wide_loads": 2, "products": 1}
    table = {"kernel": {"registers": 40, "shared": 100, "wide_loads": 2, "products": 1}}
    assert over_budget([("kernel", used)], "sm_90", table) == []
    spilling = {"registers": 41, "stack": 8, "shared": 101, "wide_loads": 1, "products": 0}
    assert over_budget([("kernel", spilling)], "sm_90", table) == [
        "kernel for sm_90: 41 registers, the budget is 40",
        "kernel for sm_90: 8 stack, the budget is 0",
        "kernel for sm_90: 101 shared, the budget is 100",
        "kernel for sm_90: 1 wide_loads, at least 2 are meant",
        "kernel for sm_90: 0 products, at least 1 are meant",
    ]
    assert over_budget([("kernel", spilling)], "gfx942", table) == [
        "kernel for gfx942: 8 stack, the budget is 0",
        "kernel for gfx942: 0 products, at least 1 are meant",
    ]
    large = {"kernel": {**table["kernel"], "shared": 1 << 17}}
    assert over_budget([("kernel", {**used, "shared": 1 << 17})], "sm_90", large) == []
    assert over_budget([("kernel", {**used, "shared": 1 << 17})], "sm_89", large) == [
        "kernel for sm_89: 131072 shared, the budget is 101376"
    ]
    assert over_budget([("other", used)], "sm_80", table) == [
        "other for sm_80: no entry in the table of budgets"
    ]


def test_a_release_of_triton_may_have_a_budget_of_its_own():
    table = {"kernel": {"registers": 40, "shared": 0, "triton": {"3.7": {"stack": 8}}}}
    used = {"registers": 40, "stack": 8, "shared": 0, "wide_loads": 0, "products": 0}
    spilled = ["kernel for sm_90: 8 stack, the budget is 0"]
    assert over_budget([("kernel", used)], "sm_90", budgets_for(table, "3.7")) == []
    assert over_budget([("kernel", used)], "sm_90", budgets_for(table, "3.9")) == spilled


def test_what_does_not_compile_is_named(tmp_path):
    with pytest.raises(CompileError, match=r"^broken for sm_90:\n[\s\S]*nothing_of_the_kind"):
        compiled("broken", "float32", "sm_90", tmp_path)


@pytest.mark.slow
def test_a_compilation_that_takes_too_long_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SECONDS_PER_CASE", 10)
    with pytest.raises(CompileError, match=r"^endless for sm_90: not in time"):
        compiled("endless", "float32", "sm_90", tmp_path)


@pytest.mark.slow
def test_a_spill_is_seen(tmp_path):
    ((_, used),) = compiled("spilling", "float32", "sm_90", tmp_path)
    assert used["stack"] > 0
