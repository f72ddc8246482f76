"""From trainer settings to the rollout's own configuration."""

from typing import Any

from lepo_kernels.rollout.config import LatentGenerationConfig, end_tokens
from lepo_kernels.trainer.config import LEPOConfig


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
    if args.latent_length + len(suffix) >= args.max_completion_length:
        raise ValueError(
            f"latent_suffix: {args.latent_length} latent steps and {len(suffix)} tokens of suffix "
            f"leave no room for an answer within max_completion_length = "
            f"{args.max_completion_length}"
        )
    clamp = None if args.noise_clamp is None else (args.noise_clamp[0], args.noise_clamp[1])
    return LatentGenerationConfig(
        latent_length=args.latent_length,
        max_new_tokens=args.max_completion_length,
        latent_suffix_ids=tuple(suffix),
        noise=args.noise,
        tau=args.tau,
        noise_scale=args.noise_scale,
        noise_clamp=clamp,
        num_draws=args.num_draws,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        latent_eos=args.latent_eos,
        cold_stop_entropy=args.cold_stop_entropy,
        cold_stop_steps=args.cold_stop_steps,
        cache_implementation=args.cache_implementation,
        **end_tokens(tokenizer, model),
    )
