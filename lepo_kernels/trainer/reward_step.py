"""From a rollout to its rewards, in training and in evaluation alike."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.trainer.prompts import answer_ids, answer_texts, as_completion
from lepo_kernels.trainer.rewards import Rewards


@dataclass
class RewardedRollout:
    """What the reward functions say of each sample.

    Attributes:
        prompts, texts: per sample.
        rewards: [B, F] by function, NaN where one did not apply.
        totals: [B] weighted sums, NaN where no function applied.
    """

    prompts: list[Any]
    texts: list[str]
    rewards: Tensor
    totals: Tensor


def reward_rollout(
    rewards: Rewards, tokenizer: Any, examples: list[dict[str, Any]], rollout: LatentRollout
) -> RewardedRollout:
    """Decode the answers of a rollout and reward them.

    Args:
        rewards: the reward functions.
        tokenizer: decodes completions.
        examples: per sample its dataset row.
        rollout: the samples.

    Raises:
        RewardError: see `Rewards`.
    """
    prompts = [example["prompt"] for example in examples]
    texts = answer_texts(tokenizer, rollout)
    completions = [as_completion(p, t) for p, t in zip(prompts, texts, strict=True)]
    columns = {
        name: [example[name] for example in examples] for name in examples[0] if name != "prompt"
    }
    by_function = rewards(prompts, completions, answer_ids(rollout), columns)
    return RewardedRollout(prompts, texts, by_function, rewards.total(by_function))
