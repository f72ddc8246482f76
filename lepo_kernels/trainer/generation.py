"""From trainer settings to the rollout's own configuration."""

from typing import Any

from lepo_kernels.rollout.config import LatentGenerationConfig, end_tokens
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.sampling import check_sampling, sampling_settings


def generation_config(args: LEPOConfig, model: Any, tokenizer: Any) -> LatentGenerationConfig:
    """How ``args`` has the policy sample.

    Args:
        args: the trainer's settings.
        model: the policy; its generation config names further end-of-sequence ids.
        tokenizer: names pad and end of sequence, and tokenises ``args.latent_suffix``.

    Raises:
        ValueError: the settings contradict each other; see `LatentGenerationConfig`.
    """
    suffix: list[int] = []
    if args.latent_suffix and args.latent_length > 0:
        suffix = tokenizer(args.latent_suffix, add_special_tokens=False)["input_ids"]
    check_sampling(args, len(suffix))
    return LatentGenerationConfig(
        **sampling_settings(args),
        latent_suffix_ids=tuple(suffix),
        **end_tokens(tokenizer, model),
    )
