"""A small form of ``python -m tests.faults``: each fault once."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.scenarios import ALL, QUICK

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [pytest.param(list(QUICK), id="quick")]
    + [pytest.param([name], id=name) for name in ALL if name not in QUICK],
)
def test_runs_survive_faults(names: list[str], tmp_path: Path) -> None:
    words = [word for name in names for word in ("--only", name)]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--verbose", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for name in names:
        assert f"{name}: 1 passed, 0 failed" in ended.stdout
