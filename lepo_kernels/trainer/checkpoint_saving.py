"""Writing a checkpoint: whole, with its manifest last, or not at all."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.trainer import TRAINING_ARGS_NAME

from lepo_kernels.trainer.checkpoint import last_complete_checkpoint, remove_checkpoint
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.manifest import write_manifest
from lepo_kernels.trainer.model_settings import write_settings

EVALUATION_DUE = "evaluation_due"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the message says why, and which is the last good one."""


@contextlib.contextmanager
def complete_checkpoint(
    folder: Path,
    args: LEPOConfig,
    accelerator: Any,
    settings: Callable[[], dict[str, Any]],
    **facts: Any,
) -> Iterator[None]:
    """A block in which all processes write a checkpoint's files.

    The first process empties the folder before it and writes the manifest after it, when every
    process is done. Older checkpoints stay until then.

    Args:
        folder: the checkpoint.
        args: the run's settings.
        accelerator: waits for the other processes.
        settings: gives the sections of `model_settings`, on the first process.
        **facts: what the manifest says besides.

    Raises:
        CheckpointError: it could not be written.
    """
    with _errors_explained(folder, args.should_save):
        if args.should_save:
            remove_checkpoint(folder)
        accelerator.wait_for_everyone()
        with _without_save_limit(args):
            yield
        accelerator.wait_for_everyone()
        if args.should_save:
            # Again: in the block, save_total_limit had another value.
            torch.save(args, folder / TRAINING_ARGS_NAME)
            write_settings(folder, settings())
            write_manifest(
                folder,
                processes=accelerator.num_processes,
                save_only_model=args.save_only_model,
                **facts,
            )


@contextlib.contextmanager
def _without_save_limit(args: LEPOConfig) -> Iterator[None]:
    """transformers removes older checkpoints before the new one is known to be complete."""
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        yield
    finally:
        args.save_total_limit = limit


@contextlib.contextmanager
def _errors_explained(folder: Path, first_process: bool) -> Iterator[None]:
    """Turn whatever goes wrong while a checkpoint is written into a `CheckpointError`.

    What was written of it is removed: it is of no use, and may be what fills the disk.
    """
    try:
        yield
    # torch and safetensors have errors of their own for a full disk.
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = _cause(folder, error)
        if first_process:
            shutil.rmtree(folder, ignore_errors=True)
        last = last_complete_checkpoint(folder.parent, contents=False)
        raise CheckpointError(
            f"{folder} could not be written: {cause} "
            f"({shutil.disk_usage(folder.parent).free / 1e6:.1f} MB are free there); "
            f"the last complete checkpoint is {last or 'none'}"
        ) from error


def _cause(folder: Path, error: Exception) -> str:
    """The error, and what the system says to writing there where the error does not tell."""
    if isinstance(error, OSError):
        return str(error)
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(1 << 20))
    except OSError as refusal:
        return f"{refusal.strerror} ({error})"
    finally:
        probe.unlink(missing_ok=True)
    return str(error)
