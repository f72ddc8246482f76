"""The lane over all toolkits: its table, what it does with failures, and the committed one."""

import re

import pytest

from tools import wheels_matrix
from tools.native_build import BuildError
from tools.toolkits import PUBLISHED
from tools.wheel_checks.kernels import Usage
from tools.wheels_matrix import BEGIN, END, Row

USAGE = {
    "lepo::a_kernel<float>": {"sm_80": Usage(48, 0, 0), "sm_90": Usage(102, 8, 0)},
    "lepo::b_kernel": {"sm_80": Usage(40, 0, 0), "sm_90": Usage(40, 0, 4)},
}
FINE = Row("13.4", "ok", "13.4.92", 61.6, 1_880_000, "102: `a`, sm_80", "none")


def test_a_row_of_the_table():
    assert wheels_matrix.most_registers(USAGE) == "102: `a_kernel<float>`, sm_90"
    assert wheels_matrix.worst(USAGE) == "2, at most 8 bytes"
    assert wheels_matrix.worst({"a": {"sm_80": Usage(1, 0, 0)}}) == "none"
    assert str(FINE) == "| 13.4 | 13.4.92 | 62 s | 1.88 MB | 102: `a`, sm_80 | none | ok |"
    assert str(Row("13.1", "failed: pip")) == "| 13.1 |  |  |  |  |  | failed: pip |"


def test_a_row_replaces_that_of_its_toolkit():
    page = f"before\n{BEGIN}{END}behind\n"
    other = Row("13.1", "failed: pip")
    for row in (FINE, other, Row("13.4", "old"), FINE):
        page = wheels_matrix.with_row(page, row)
    before, table = page.split(wheels_matrix.HEADING)
    assert before == f"before\n{BEGIN}"
    assert table.startswith(f"{other}\n{FINE}\n\nBuilt and checked on ")
    assert table.endswith(f".\n{END}behind\n")
    # A toolkit that is no longer published leaves the table.
    assert wheels_matrix.with_row(page.replace("| 13.1 ", "| 12.9 "), FINE).count("12.9") == 0
    for spoilt in (page + BEGIN, page.replace(END, "")):
        with pytest.raises(ValueError, match="does not hold"):
            wheels_matrix.with_row(spoilt, FINE)


@pytest.fixture
def lane(monkeypatch, tmp_path):
    """The lane without builds: 13.1 cannot be fetched; the page that it writes."""
    page = tmp_path / "wheels.md"
    page.write_text(BEGIN + END)
    monkeypatch.setattr(wheels_matrix, "PAGE", page)
    monkeypatch.setattr(wheels_matrix, "find_tool", lambda name: name)
    monkeypatch.setattr(wheels_matrix, "unlisted", lambda: ["13.6"])

    def fetch(name):
        if name == "13.1":
            raise BuildError("no 13.1\nbecause")
        return tmp_path

    def row(name, toolkit, folder, dist):
        return Row(name, "ok")

    monkeypatch.setattr(wheels_matrix, "fetch_toolkit", fetch)
    monkeypatch.setattr(wheels_matrix, "find_toolkit", lambda: None)
    monkeypatch.setattr(wheels_matrix, "_row_of_wheel", row)
    # What the lane sets.
    monkeypatch.setenv("LEPO_CUDA_HOME", "")
    monkeypatch.setenv("LEPO_FAIL_ON_SPILL", "reference")
    return page


def test_one_failure_stops_no_other_toolkit(lane, capsys):
    assert wheels_matrix.main([]) == 1
    rows = re.findall(r"^\| (13\.\d) .* \| (.+) \|$", lane.read_text(), re.M)
    assert [name for name, _ in rows] == list(PUBLISHED)
    assert dict(rows)["13.1"] == "lepo_kernels: no 13.1"
    assert dict(rows)["13.5"] == "ok"
    assert "tools/toolkits.py lacks CUDA 13.6" in capsys.readouterr().err


def test_a_part_of_the_matrix(lane):
    assert wheels_matrix.main(["13.0"]) == 0
    assert re.findall(r"^\| (13\.\d) ", lane.read_text(), re.M) == ["13.0"]
    with pytest.raises(BuildError, match=r"no packages of CUDA 13\.9"):
        wheels_matrix.main(["13.0", "13.9"])


def test_the_committed_table_is_of_all_toolkits_and_all_pass():
    table = wheels_matrix.PAGE.read_text().split(BEGIN)[1].split(END)[0]
    rows = re.findall(r"^\| (13\.\d+) .* \| (.+) \|$", table, re.M)
    assert rows == [(name, "ok") for name in PUBLISHED]
