"""Proofs, of the PTX that nvcc makes, that kernels are free of races and deadlocks.

SentryWard proves a kernel for one launch and its sizes, in every order of threads, for any data and
any pointers that do not overlap. Where control flow depends on data it proves nothing and says so.
So this is a list of what it can prove, and not every kernel is on it; tests/cuda_sim checks those
that are not, too.
"""

import functools
import importlib.util
import json
import re
from dataclasses import dataclass, field

import pytest

from tests.test_cuda_compile import needs_disassembler
from tools.cuda_report.compiler import PTX_ARCHITECTURE, compile_source, find_nvcc, kernel_name
from tools.cuda_report.disassembly import entries, read_ptx
from tools.cuda_report.kernels import SHIPPED, TESTED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_nvcc() is None, reason="no CUDA toolkit: there is no PTX to prove"),
    pytest.mark.skipif(
        importlib.util.find_spec("sentryward") is None, reason="sentryward is not installed"
    ),
    needs_disassembler,
]
BARRIER = re.compile(r"^\s*(bar|barrier)\.sync.*$", re.M)


@dataclass(frozen=True)
class Launch:
    source: str
    kernel: str
    blocks: int
    threads: int
    # Position of a parameter -> its value; what is not here may have any.
    numbers: dict[int, int] = field(default_factory=dict)

    def __str__(self):
        return self.kernel


# Both blocks of a scan would write the same sums. The rows are three rounds and a rest; the words
# are more than the threads of the grid.
SCAN = Launch("block_reduce", "reductions::scan_kernel<256>", 1, 256)
STATISTICS = Launch("block_reduce", "reductions::row_statistics_kernel<64>", 2, 64, {1: 200})
PHILOX = Launch("philox", "lepo::philox_words_kernel", 2, 256, {3: 1, 5: 300, 6: 0, 7: 3, 8: 300})
PROVEN = [SCAN, STATISTICS, PHILOX]


@pytest.fixture(scope="module")
def ptx(tmp_path_factory):
    @functools.cache
    def compiled(stem):
        folder = SHIPPED if (SHIPPED / f"{stem}.cu").is_file() else TESTED
        output = tmp_path_factory.mktemp("ptx") / f"{stem}.o"
        compile_source(folder / f"{stem}.cu", output, (PTX_ARCHITECTURE,))
        listing = read_ptx(output)
        # cuobjdump's heading is no PTX.
        return listing[listing.index(".version") :]

    return compiled


def entry_of(text, kernel):
    """Symbol and text of a kernel."""
    return next(entry for entry in entries(text) if kernel_name(entry[0]) == kernel)


def verdict(text, launch, folder):
    from sentryward import verify

    symbol, entry = entry_of(text, launch.kernel)
    parameters = re.findall(r"\.param \.(\w+) (?:\.ptr )?(?:\.align \d+ )?(\w+)", entry)
    arguments = [
        {"parameter": parameters[i][1], "type": parameters[i][0], "value": value}
        for i, value in launch.numbers.items()
    ]
    request = {
        "schema": "spverify.kernel-input/v1",
        "entry": symbol,
        "launch": {
            "grid_dim": [launch.blocks, 1, 1],
            "block_dim": [launch.threads, 1, 1],
            "cluster_dim": [1, 1, 1],
            "dynamic_shared_bytes": 0,
        },
        "arguments": arguments,
    }
    (folder / "kernel.ptx").write_text(text)
    (folder / "input.json").write_text(json.dumps(request))
    result = verify(folder / "kernel.ptx", input=folder / "input.json", timeout_seconds=60)
    return result["result"], result["diagnostics"]


@pytest.mark.parametrize("launch", PROVEN, ids=str)
def test_kernels_are_proven_free_of_races(launch, ptx, tmp_path):
    assert verdict(ptx(launch.source), launch, tmp_path) == ("race_free", [])


# A block function's last barrier frees its scratch for the next call: not needed where that comes
# with another scratch (the third of the statistics), or never.
@pytest.mark.parametrize(
    ("launch", "needed"),
    [(SCAN, [True, True, True, False]), (STATISTICS, [True, True, True, False, True, False])],
    ids=str,
)
def test_the_loss_of_a_barrier_is_seen(launch, needed, ptx, tmp_path):
    text = ptx(launch.source)
    _, entry = entry_of(text, launch.kernel)
    verdicts = []
    for barrier in BARRIER.finditer(entry):
        without = entry[: barrier.start()] + entry[barrier.end() :]
        verdicts.append(verdict(text.replace(entry, without), launch, tmp_path)[0])
    assert verdicts == ["potential_race" if x else "race_free" for x in needed]


def test_what_depends_on_data_is_not_called_proven(ptx, tmp_path):
    launch = Launch("radix_select", "selection::top_k_kernel<64, float>", 1, 64, {1: 200, 2: 5})
    assert verdict(ptx(launch.source), launch, tmp_path)[0] == "unsupported"
