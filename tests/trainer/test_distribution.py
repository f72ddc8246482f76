"""What spreads a model over devices is refused before any work, with what works."""

import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType

from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.distribution import check_model, check_trainer
from tests.tiny import tiny_model

WORKS = "works today: one process, or one process per GPU"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deepspeed", {"zero_optimization": {"stage": 3}}),
        ("deepspeed", "zero3.json"),
        ("fsdp", "full_shard"),
        ("fsdp", True),
    ],
)
def test_sharding_settings_are_refused_by_name(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"^{name}: not supported yet; {WORKS}"):
        LEPOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: value})


@pytest.mark.parametrize("name", ["dp_shard_size", "tp_size"])
def test_a_parallelism_config_is_refused_by_its_part(make_trainer, monkeypatch, name):
    trainer = make_trainer()
    monkeypatch.setattr(trainer.args, "parallelism_config", ParallelismConfig(**{name: 2}))
    with pytest.raises(ValueError, match=rf"parallelism_config\.{name}: not supported yet"):
        type(trainer)(tiny_model(), len, trainer.args)


@pytest.mark.parametrize(
    "variable", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM"]
)
def test_the_launchers_wish_is_refused(tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=f"{variable}: the launcher asks for"):
        LEPOConfig(output_dir=str(tmp_path), use_cpu=True)


def test_the_launchers_parallelism_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "2")
    LEPOConfig(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "2")
    with pytest.raises(ValueError, match=r"parallelism_config\.cp_size: not supported yet"):
        LEPOConfig(output_dir=str(tmp_path), use_cpu=True)


class DeepSpeedEngine(torch.nn.Module):
    pass


def test_a_model_in_pieces_is_refused(make_trainer):
    with pytest.raises(ValueError, match="without its wrapper, got DeepSpeedEngine"):
        make_trainer(model=DeepSpeedEngine())
    model = tiny_model()
    model.lm_head.weight.ds_id = 0
    check_model(model)  # gathered
    model.lm_head.weight.data = torch.empty(0)
    with pytest.raises(ValueError, match=r"weights are sharded .*ZeRO-3.*works today"):
        make_trainer(model=model)


def test_whatever_told_accelerate_is_refused(make_trainer):
    trainer = make_trainer()

    class Accelerator:
        distributed_type = DistributedType.FSDP

    with pytest.raises(ValueError, match="distributed_type: FSDP is not supported yet"):
        check_trainer(trainer.args, Accelerator())
    Accelerator.distributed_type = DistributedType.MULTI_GPU
    check_trainer(trainer.args, Accelerator())
    trainer.args._n_gpu = 2
    with pytest.raises(ValueError, match=r"one process sees 2 GPUs.*nproc_per_node 2"):
        check_trainer(trainer.args, Accelerator())


@pytest.mark.parametrize("optim", ["lomo", "adalomo", "galore_adamw_layerwise"])
def test_optimizers_that_run_ahead_of_the_gradients_check_are_refused(tmp_path, optim):
    with pytest.raises(ValueError, match=r"optim: .* applies each gradient as soon as it is there"):
        LEPOConfig(output_dir=str(tmp_path), use_cpu=True, optim=optim)
