"""The check of a policy before any work: rollout and training must run it to the same numbers."""

from collections.abc import Iterator
from typing import Any

from lepo_kernels.rollout._modules import unwrap_model
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.decoding_way import decoding_way
from lepo_kernels.rollout.probe import check_served
from lepo_kernels.rollout.rotary import changes_with_length
from lepo_kernels.rollout.soft_embedding import SoftEmbedding
from lepo_kernels.trainer.prompts import prompt_ids


def check_policy(
    model: Any,
    generation: LatentGenerationConfig,
    tokenizer: Any,
    *datasets: Any,
    training: bool = True,
) -> None:
    """Check that a model can be sampled from, and trained, here; see `lepo_kernels.rollout.probe`.

    Args:
        model: the policy, on its device.
        generation: how it samples.
        tokenizer: encodes the prompts.
        *datasets: rows with a column ``prompt``, a dict of such, or None. Their longest prompt
            counts where the model's rotary embedding changes with the length.
        training: False where it is only sampled from.

    Raises:
        TypeError, ValueError: it cannot be served; the message says why.
    """
    base = unwrap_model(model)
    longest = 0
    if changes_with_length(base.config):
        prompts = (prompt for dataset in datasets for prompt in _prompts(dataset))
        longest = max((len(prompt_ids(tokenizer, prompt)) for prompt in prompts), default=0)
    check_served(
        base,
        SoftEmbedding(base),
        decoding_way(base, generation).cache,
        longest + generation.max_new_tokens,
        training=training,
    )


def _prompts(dataset: Any) -> Iterator[Any]:
    parts = dataset.values() if isinstance(dataset, dict) else [dataset]
    for part in parts:
        for index in range(0 if part is None else len(part)):
            yield part[index]["prompt"]
