"""The sampling settings of the trainer, which its rollouts share and check."""

from dataclasses import fields
from typing import Any

from lepo_kernels.rollout.config import LatentGenerationConfig


def sampling_settings(args: Any) -> dict[str, Any]:
    """The settings of a `LatentGenerationConfig` that ``args`` has, under the names it has there.

    Args:
        args: the trainer's settings, or any object with a part of them.
    """
    names = [setting.name for setting in fields(LatentGenerationConfig)]
    shared = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return {**shared, "max_new_tokens": args.max_completion_length}


def check_sampling(args: Any, suffix_tokens: int = 0) -> None:
    """Check the settings of ``args`` that say how it samples.

    Args:
        args: the trainer's settings, or any object with a part of them.
        suffix_tokens: tokens of ``latent_suffix``, as far as there is a tokenizer.

    Raises:
        TypeError, ValueError: see `LatentGenerationConfig`; or no column is left for an answer.
    """
    try:
        # Which ids end a row is known once there is a tokenizer.
        LatentGenerationConfig(eos_token_ids=(0,), pad_token_id=0, **sampling_settings(args))
    except (TypeError, ValueError) as error:
        named = str(error).replace("max_new_tokens", "max_completion_length")
        raise type(error)(named) from None
    if args.latent_length + suffix_tokens >= args.max_completion_length:
        cause = f"latent_length: {args.latent_length} leaves"
        if suffix_tokens:
            cause = (
                f"latent_suffix: {args.latent_length} latent steps and {suffix_tokens} tokens of "
                "suffix leave"
            )
        raise ValueError(
            f"{cause} no room for an answer within max_completion_length = "
            f"{args.max_completion_length}"
        )
