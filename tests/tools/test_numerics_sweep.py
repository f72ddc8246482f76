"""The sweep counts what passed and failed per code path, and names the seeds of what failed."""

from pathlib import Path

from tests.seeds import VARIABLE
from tools import numerics_sweep

TESTS = f"""
import os

def test_odd_seeds_fail():
    assert int(os.environ["{VARIABLE}"]) % 2 == 0

def test_path():
    assert os.environ["MKL_CBWR"] == "AVX2"

def test_opcheck():
    assert False
"""


def test_the_files_that_it_runs_are_there():
    root = Path(__file__).parents[2]
    assert {file for file in numerics_sweep.FILES if not (root / file).is_file()} == set()


def test_the_table_has_every_seed_of_a_path(tmp_path, capsys):
    assert numerics_sweep.VARIABLE == VARIABLE
    file = tmp_path / "test_planted.py"
    file.write_text(TESTS)
    words = ["--seeds", "3", "--path", "mkl-avx2", "--logs", str(tmp_path)]
    assert numerics_sweep.main([*words, str(file)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["mkl-avx2", "3", "5", "1"]
    assert len(lines) == 3
    assert "test_odd_seeds_fail: mkl-avx2 [1]" in lines[2]
