import pytest

from tools.check_lock import compare, installed_versions, locked_versions, main

LOCK = """\
# made by something
numpy==1.26.4 ; python_version < '3'
numpy==2.4.6 ; python_version >= '3'
Foo_Bar==1.0
    # via numpy
torch==2.13.0
"""


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "locked.txt"
    path.write_text(LOCK)
    return path


def test_markers_and_names_are_understood(lock):
    found = {name: str(wanted) for name, wanted in locked_versions(lock).items()}
    assert found == {
        "numpy": "==2.4.6",
        "foo-bar": "==1.0",
        "torch": "==2.13.0",
    }


def test_a_build_of_the_locked_release_passes(lock):
    installed = {"numpy": "2.4.6", "torch": "2.13.0+cpu", "pip": "23.0"}
    assert compare(locked_versions(lock), installed) == []


def test_other_versions_and_strangers_are_named(lock):
    installed = {"numpy": "2.4.7", "stranger": "1"}
    assert compare(locked_versions(lock), installed) == [
        "numpy is 2.4.7, ==2.4.6",
        "stranger is 1, not in the lock",
    ]


def test_it_fails_where_anything_differs(lock, capsys):
    # The packages of this Python are not those of the small lock.
    assert main([str(lock)]) == 1
    assert "pytest is " in capsys.readouterr().err
    everything = "".join(f"{name}=={v}\n" for name, v in installed_versions().items())
    lock.write_text(everything)
    assert main([str(lock)]) == 0
