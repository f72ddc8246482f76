"""A run destroys its process group at its end, and not where other processes may wait in it."""

import signal

import pytest
import torch.distributed as dist
import yaml

from lepo_kernels.trainer.processes import process_group_ends
from lepo_kernels.trainer.stopping import RunEnded
from tests.cli.conftest import SETTINGS
from tests.tiny import tiny_model, tiny_tokenizer
from tests.torchrun import run_processes


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_the_group_is_destroyed_at_the_end(group):
    with process_group_ends():
        assert dist.is_initialized()
    assert not dist.is_initialized()


def test_without_a_group_nothing_happens():
    with process_group_ends():
        pass


def test_a_signal_that_all_processes_agree_on_is_an_end(group):
    with pytest.raises(RunEnded), process_group_ends():
        raise RunEnded(signal.SIGTERM)
    assert not dist.is_initialized()


def test_a_process_that_fails_leaves_the_group_alone(group):
    with pytest.raises(OSError, match="of one process"), process_group_ends():
        raise OSError("of one process")
    assert dist.is_initialized()


LEPO_TRAIN = """
import sys
import torch.distributed as dist
from lepo_kernels.cli.main import main
assert main(["train", *sys.argv[1:]]) == 0
# Both ran as one run, which has ended.
assert dist.is_available() and not dist.is_initialized()
"""


@pytest.mark.slow
def test_lepo_train_ends_its_group(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    config = tmp_path / "config.yaml"
    folders = {"model": str(tmp_path / "model"), "output_dir": str(tmp_path / "run")}
    config.write_text(yaml.safe_dump({**SETTINGS, **folders}))
    script = tmp_path / "run.py"
    script.write_text(LEPO_TRAIN)
    assert "Done in" in run_processes(script, str(config))


@pytest.mark.slow
def test_the_error_of_one_process_is_shown(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import os\nif os.environ['RANK'] == '1':\n    raise ValueError('of the second process')\n"
    )
    with pytest.raises(AssertionError, match=r"run.py.*(?s:.*)ValueError: of the second process"):
        run_processes(script)
