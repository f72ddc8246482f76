"""Which ways of spreading a run over devices work, and refusing the others before any work.

A rollout reads the whole model at every step, and ranks end it after different numbers of steps:
weights that are spread over ranks would be asked for by some ranks and not by others.
"""

import os
from typing import Any

from lepo_kernels.rollout._modules import sharding_of

WORKS = (
    "works today: one process, or one process per GPU that each hold the whole model "
    "(DistributedDataParallel: torchrun or accelerate launch without these settings)"
)
# What `accelerate launch` tells its processes.
_LAUNCHER = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
# Parts of accelerate's ParallelismConfig that spread a model, or a sequence.
_PARALLELISM = ("dp_shard_size", "tp_size", "cp_size", "sp_size")


def check_settings(args: Any) -> None:
    """Check that neither the settings nor the launcher spread the model over devices.

    Args:
        args: the trainer's settings, perhaps not complete yet.

    Raises:
        ValueError: naming the setting, and what works.
    """
    for name in ("deepspeed", "fsdp"):
        if getattr(args, name, None):
            raise ValueError(f"{name}: not supported yet; {WORKS}")
    for variable, what in _LAUNCHER.items():
        if _asked(variable):
            raise ValueError(
                f"{variable}: the launcher asks for {what}, which is not supported yet; {WORKS}"
            )
    for name in _PARALLELISM:
        if _parallelism(args, name) > 1:
            raise ValueError(f"parallelism_config.{name}: not supported yet; {WORKS}")


def _asked(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("1", "true", "yes")


def _parallelism(args: Any, name: str) -> int:
    """A size of the settings' parallelism, or of the launcher's."""
    chosen = getattr(args, "parallelism_config", None)
    if chosen is None and _asked("ACCELERATE_USE_PARALLELISM_CONFIG"):
        return int(os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}", "1"))
    return getattr(chosen, name, None) or 1


def check_model(model: Any) -> None:
    """Check that every process holds the whole model.

    Raises:
        ValueError: it is in an engine's or a sharding wrapper, or its weights are sharded.
    """
    wrapper = type(model).__name__
    if wrapper in ("DeepSpeedEngine", "FullyShardedDataParallel", "DataParallel"):
        raise ValueError(f"model: expected it without its wrapper, got {wrapper}; {WORKS}")
    sharding = sharding_of(model)
    if sharding is not None:
        raise ValueError(f"model: its weights are sharded ({sharding}); {WORKS}")


def check_trainer(args: Any, accelerator: Any) -> None:
    """Check how accelerate distributes the run, whatever told it to.

    Raises:
        ValueError: not one process, nor DistributedDataParallel.
    """
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(f"distributed_type: {kind} is not supported yet; {WORKS}")
    if args.n_gpu > 1:
        raise ValueError(
            f"n_gpu: one process sees {args.n_gpu} GPUs, which DataParallel would share; start one "
            f"process per GPU (torchrun --nproc_per_node {args.n_gpu}), or show this one a single "
            "GPU (CUDA_VISIBLE_DEVICES=0)"
        )
