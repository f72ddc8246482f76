"""Runs the numerical tests on several code paths of the libraries below, each with many seeds.

A tolerance that only fits one processor, or one draw of numbers, fails here. Each code path is a
process of its own, since what a library reads from its environment it reads once; seeds are run one
after another in it (`tests/seeds.py`). Tests marked large get fewer seeds. Prints a table of code
paths and their counts, and every test that failed with the seeds that it failed with. Run it from
the root of the repository:

    python -m tools.numerics_sweep --seeds 20 --large-seeds 1 --path default --path mkl-avx2
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

VARIABLE = "LEPO_NUMERIC_SEED"
FILES = (
    "tests/formulas/test_lepo_gradient.py",
    "tests/formulas/test_lepo_objective.py",
    "tests/formulas/test_scores.py",
    "tests/ops/test_cpu_products.py",
    "tests/ops/test_gumbel_softmax_embedding.py",
    "tests/ops/test_gumbel_softmax_embedding_cpu.py",
    "tests/ops/test_latent_step.py",
    "tests/ops/test_lepo_loss.py",
    "tests/ops/test_lepo_loss_gpu.py",
    "tests/ops/test_lepo_loss_kernels.py",
    "tests/ops/test_linear_gumbel_softmax_embedding.py",
    "tests/ops/test_linear_log_probs.py",
    "tests/ops/test_linear_log_probs_cpu.py",
    "tests/ops/test_mix_embeddings.py",
    "tests/ops/test_mix_embeddings_cpu.py",
    "tests/ops/test_sample_latent.py",
    "tests/ops/test_sample_latent_cpu.py",
    "tests/parallel/test_one_rank.py",
    "tests/rollout/test_lm_head.py",
    "tests/rollout/test_policy_log_probs.py",
    "tests/rollout/test_policy_loss.py",
    "tests/rollout/test_soft_embedding.py",
)
# Simulated GPUs, and tests of other things than numbers or that start processes of their own.
LEFT_OUT = (
    "triton cuda opcheck compile errors instruction_set refused gradcheck distribution checked"
)
PATHS: dict[str, dict[str, str]] = {
    "default": {},
    "two threads": {"OMP_NUM_THREADS": "2"},
    "aten-default": {"ATEN_CPU_CAPABILITY": "default"},
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "aten-avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},
    "mkl-avx2": {"MKL_CBWR": "AVX2"},
    "onednn-sse41": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "onednn-avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "onednn-avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "own-baseline": {"LEPO_CPU_CAPABILITY": "baseline"},
    "own-avx2": {"LEPO_CPU_CAPABILITY": "avx2"},
    "own-avx512": {"LEPO_CPU_CAPABILITY": "avx512"},
    "own-avx512-bf16": {"LEPO_CPU_CAPABILITY": "avx512_bf16"},
}


class Counts(NamedTuple):
    """Of one code path: tests that passed and failed, and the seeds each failed one did with."""

    passed: int
    failed: dict[str, list[int]]


class Recorder:
    """A plugin of pytest that keeps the outcomes."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep how a test, or its preparation, went."""
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call":
            self.outcomes[report.outcome] += 1


def run_seeds(seeds: int, large_seeds: int, files: list[str], out: Path) -> None:
    """Run the tests with every seed in this process and write the counts to ``out``."""
    passed, failed = 0, defaultdict(list)
    for seed in range(seeds):
        os.environ[VARIABLE] = str(seed)
        marks = "not slow" if seed < large_seeds else "not slow and not large"
        names = " and ".join(f"not {word}" for word in LEFT_OUT.split())
        recorder = Recorder()
        words = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=line", "-m", marks]
        code = pytest.main([*words, "-k", names, *files], plugins=[recorder])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise SystemExit(f"pytest: {code!r}")
        passed += recorder.outcomes["passed"]
        for test in recorder.failed:
            failed[test].append(seed)
    out.write_text(json.dumps([passed, failed]))


def run_path(path: str, seeds: int, large_seeds: int, files: list[str], log: Path) -> Counts:
    """Run the tests on one code path, in a process of its own; its output goes to ``log``.

    Raises:
        RuntimeError: the tests could not be run.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder) / "counts.json"
        command = [sys.executable, "-m", "tools.numerics_sweep", "--write", str(out)]
        command += ["--seeds", str(seeds), "--large-seeds", str(large_seeds), *files]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **PATHS[path]}
        with log.open("w") as sink:
            subprocess.run(command, env=environment, stdout=sink, stderr=subprocess.STDOUT)
        if not out.exists():
            raise RuntimeError(f"{path}: the tests could not be run; see {log}")
        return Counts(*json.loads(out.read_text()))


def main(arguments: list[str] | None = None) -> int:
    """Run the sweep; 1 if a test failed anywhere."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("files", nargs="*", default=list(FILES), help="test files")
    parser.add_argument("--seeds", type=int, default=20, help="how many, from 0 on")
    parser.add_argument("--large-seeds", type=int, default=1, help="of them, for large tests")
    parser.add_argument("--path", action="append", choices=list(PATHS), help="only these")
    parser.add_argument("--logs", type=Path, default=Path("build/numerics"), help="their folder")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.write is not None:
        run_seeds(options.seeds, options.large_seeds, options.files, options.write)
        return 0
    options.logs.mkdir(parents=True, exist_ok=True)
    print(f"{'code path':<16}{'seeds':>6}{'passed':>8}{'failed':>8}")
    failed: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for path in options.path or PATHS:
        log = options.logs / f"{path.replace(' ', '-')}.log"
        counts = run_path(path, options.seeds, options.large_seeds, options.files, log)
        failures = sum(len(seeds) for seeds in counts.failed.values())
        print(f"{path:<16}{options.seeds:>6}{counts.passed:>8}{failures:>8}", flush=True)
        for test, seeds in counts.failed.items():
            failed[test][path] = seeds
    for test, seeds_of in failed.items():
        print(f"FAILED {test}: " + "; ".join(f"{path} {seeds}" for path, seeds in seeds_of.items()))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
