"""Ops over a vocabulary that three processes share, or two of them, against the whole op."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lepo_kernels import dispatch
from tests import triton_backend

ROOT = Path(__file__).parents[2]
RANKS = 3


def assert_all_checks_pass(folder: Path, *backends: str) -> None:
    """Start the processes once for all checks: each takes seconds to import torch."""
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.parallel.ranks",
                str(rank),
                str(RANKS),
                folder,
                *backends,
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    errors = [process.communicate(timeout=500)[1] for process in processes]
    failures = []
    for rank, (process, error) in enumerate(zip(processes, errors, strict=True)):
        assert process.returncode == 0, error
        failed = json.loads((folder / f"{rank}.json").read_text())
        failures += [f"rank {rank}, {check}:\n{text}" for check, text in failed.items()]
    assert not failures, "\n".join(failures)


def test_three_ranks(tmp_path):
    native = [] if "cpu" in dispatch.MISSING else ["cpu"]
    assert_all_checks_pass(tmp_path, "reference", *native)


# Some minutes of interpreting.
@pytest.mark.slow
@pytest.mark.skipif(triton_backend.why_not() is not None, reason="triton is not installed")
def test_three_ranks_with_triton(tmp_path):
    assert_all_checks_pass(tmp_path, "triton")
