"""From trainer settings to the rollout's own configuration."""

from typing import Any

from lepo_kernels.methods import method_named
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
    method = method_named(args.method)
    method.check(args)
    return LatentGenerationConfig(
        **sampling_settings(args),
        latent_suffix_ids=tuple(suffix),
        latent_end_ids=_end_of_latents(args.latent_end, tokenizer),
        record_scores=method.records if args.latent_length > 0 else None,
        **end_tokens(tokenizer, model),
    )


def _end_of_latents(text: str, tokenizer: Any) -> tuple[int, ...]:
    """The token whose likelihood ends the latent phase; none without a text."""
    if not text:
        return ()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(
            f"latent_end: expected the text of one token, but the tokenizer makes {len(ids)} of "
            f"{text!r}"
        )
    return tuple(ids)
