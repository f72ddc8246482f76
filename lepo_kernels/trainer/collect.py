"""One round of experience: sample groups, reward them, and prepare what the loss needs."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from lepo_kernels.methods import method_named
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.engine import RolloutEngine, RolloutRequest
from lepo_kernels.rollout.layout import LayoutSettings
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.trainer.advantages import Advantages, group_advantages
from lepo_kernels.trainer.agreement import SamplingAgreement
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.experience import (
    Experience,
    StepScores,
    step_scores,
    training_order,
)
from lepo_kernels.trainer.latent_use import latent_use_metrics
from lepo_kernels.trainer.prompts import encode_prompts
from lepo_kernels.trainer.reward_step import RewardedRollout, reward_rollout
from lepo_kernels.trainer.rewards import Rewards
from lepo_kernels.trainer.stopping import StopSignals
from lepo_kernels.trainer.token_weights import token_weights


@dataclass
class Collected:
    """Experience, and what was seen on the way to it.

    Attributes:
        experience: in training order.
        metrics: one value per name, for logging.
        rewarded: prompts, texts and rewards per sample of ``rollout``, groups side by side.
        advantages: [B].
        rollout: the samples in the order of ``rewarded``.
        extra: per sample of ``rollout``, what reward functions logged, by column.
    """

    experience: Experience
    metrics: dict[str, float]
    rewarded: RewardedRollout
    advantages: Tensor
    rollout: LatentRollout
    extra: dict[str, list[Any]] = field(default_factory=dict)


class Collector:
    """Collects experience on one process.

    Args:
        args: the trainer's settings.
        generation: how the policy samples.
        tokenizer: encodes prompts and decodes completions.
        rewards: the reward functions.
        accelerator: for autocast, device and the token count over processes.
        agreement: compares the rollout with the forward that gives old log-probabilities.
        stop: what may cut a rollout short.
    """

    def __init__(
        self,
        args: LEPOConfig,
        generation: LatentGenerationConfig,
        tokenizer: Any,
        rewards: Rewards,
        accelerator: Any,
        agreement: SamplingAgreement,
        stop: StopSignals,
    ) -> None:
        self.args = args
        self.generation = generation
        self.tokenizer = tokenizer
        self.rewards = rewards
        self.accelerator = accelerator
        # Called with the current activity and the decoding steps done and at most (0: not counted).
        self.activity: Callable[[str, int, int], None] | None = None
        self.agreement = agreement
        self.stop = stop

    def collect(
        self,
        engine: RolloutEngine,
        policy: Any,
        reference: Any,
        examples: list[dict[str, Any]],
        rollout_index: int,
    ) -> Collected:
        """Sample ``num_generations`` completions per example and prepare them for training.

        Args:
            engine: samples with the policy's weights.
            policy: the model that is trained.
            reference: a context manager that gives the KL reference, or None without a KL term.
            examples: dataset rows, one per group.
            rollout_index: counts rollouts; keys the noise and the shuffle.
        """
        start = time.perf_counter()
        group = self.args.num_generations
        repeated = [example for example in examples for _ in range(group)]
        rollout = self._sample(engine, [e["prompt"] for e in examples], rollout_index)
        sampled = time.perf_counter()

        self._tell("rewards")
        rewarded = reward_rollout(self.rewards, self.tokenizer, repeated, rollout)
        total = rewarded.totals
        grouped = group_advantages(
            total, group, self.args.scale_rewards, batch=self._rewards_of_all_processes(total)
        )
        metrics = {
            **self._reward_metrics(rewarded, grouped),
            **rollout_metrics(rollout, grouped.advantages),
            "rollout_time": sampled - start,
        }
        self._tell("log-probs")
        experience = self._prepare(policy, reference, rollout, grouped.advantages, rollout_index)
        self._tell("training")
        metrics["prepare_time"] = time.perf_counter() - sampled
        metrics |= self.rewards.log.metrics(own=metrics)
        extra = self.rewards.log.columns
        return Collected(experience, metrics, rewarded, grouped.advantages, rollout, extra)

    def _sample(
        self, engine: RolloutEngine, prompts: list[Any], rollout_index: int
    ) -> LatentRollout:
        """Sample ``num_generations`` completions per prompt, as many groups at once as may be."""
        longest = self.args.max_prompt_length if self.args.truncate_prompts else None
        ids, mask = encode_prompts(self.tokenizer, prompts, longest)
        device = self.accelerator.device
        group = self.args.num_generations
        count = len(prompts) * group
        round_start = rollout_index * self.accelerator.num_processes * count
        first = round_start + self.accelerator.process_index * count
        row_keys = torch.arange(first, first + count, device=device)
        at_once = len(prompts)
        if self.args.rollout_batch_size is not None:
            at_once = max(1, self.args.rollout_batch_size // group)
        with self.stop.alone(), self.accelerator.autocast():
            parts = [
                engine.generate(
                    RolloutRequest(
                        ids[begin : begin + at_once].to(device),
                        mask[begin : begin + at_once].to(device),
                        self.generation,
                        num_return_sequences=group,
                        seed=self.args.seed,
                        row_keys=row_keys[begin * group : (begin + at_once) * group],
                    ),
                    progress=self._steps_of(begin // at_once, -(-len(prompts) // at_once)),
                )
                for begin in range(0, len(prompts), at_once)
            ]
        return LatentRollout.cat(parts, self.generation.pad_token_id)

    def _tell(self, what: str) -> None:
        if self.activity is not None:
            self.activity(what, 0, 0)

    def _steps_of(self, part: int, parts: int) -> Callable[[int, int], None]:
        """Looks for a signal, and reports the decoding steps of one part as steps of the whole."""

        def stepped(done: int, total: int) -> None:
            self.stop.look()
            if self.activity is not None:
                self.activity("rollout", part * total + done, parts * total)

        return stepped

    def _rewards_of_all_processes(self, total: Tensor) -> Tensor:  # [B * processes]
        if self.accelerator.num_processes == 1:
            return total
        return torch.tensor(gather_object(total.tolist()), dtype=total.dtype)

    def _prepare(
        self,
        policy: Any,
        reference: Any,
        rollout: LatentRollout,
        advantages: Tensor,
        rollout_index: int,
    ) -> Experience:
        args = self.args
        device = rollout.completion_ids.device
        shuffle = torch.Generator().manual_seed(args.seed + 1_000_003 * rollout_index)
        of_update = args.per_device_train_batch_size * args.gradient_accumulation_steps
        order = training_order(
            len(rollout), args.num_generations, len(rollout) // of_update, shuffle
        ).to(device)
        rollout = rollout.select(order)
        old_log_prob = ref_log_probs = None
        with self.accelerator.autocast():
            if args.updates_per_rollout > 1:
                old = self._step_scores(policy, rollout)
                old_log_prob, used = old.score, rollout.action_mask
                self.agreement.add(policy, rollout.log_probs[used], old.log_prob[used])
            if reference is not None:
                with reference as model:
                    ref_log_probs = self._step_scores(model, rollout).log_probs
        return Experience(
            rollout=rollout,
            advantages=advantages.float().to(device)[order],
            token_weights=self._token_weights(rollout),
            old_log_prob=old_log_prob,
            ref_log_probs=ref_log_probs,
            counts=self._high_entropy(rollout),
        )

    def _step_scores(self, model: Any, rollout: LatentRollout) -> StepScores:
        return step_scores(
            model,
            rollout,
            self.args.temperature,
            self.args.per_device_train_batch_size,
            latent_score=method_named(self.args.method).latent_score,
            layout=LayoutSettings(self.args.share_prompts, self.args.packing),
        )

    def _high_entropy(self, rollout: LatentRollout) -> Tensor | None:  # [B, T] bool
        """The steps of each update that are not discrete tokens of too low an entropy."""
        if self.args.top_entropy_quantile == 1:
            return None
        discrete = rollout.action_mask & ~rollout.latent_mask
        size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        counts = torch.ones_like(discrete)
        for update in torch.arange(len(rollout), device=discrete.device).split(size):
            mask, entropy = discrete[update], rollout.entropy[update]
            own = entropy[mask]
            every = own
            if self.accelerator.num_processes > 1:
                every = torch.tensor(gather_object(own.tolist()), device=own.device)
            if every.numel() > 0:
                least = torch.quantile(every.float(), 1 - self.args.top_entropy_quantile)
                counts[update] = ~mask | (entropy >= least)
        return counts

    def _token_weights(self, rollout: LatentRollout) -> Tensor:  # [B, T]
        """Weights of every update of the rollout, one after the other."""
        args = self.args
        mask = rollout.action_mask
        if args.mask_truncated_completions:
            mask = mask & ~rollout.truncated[:, None]
        size = args.per_device_train_batch_size
        updates = mask.reshape(-1, args.gradient_accumulation_steps, size, mask.shape[1])
        counts = self.accelerator.reduce(updates.sum((1, 2, 3)).float(), "mean")
        if args.normalize_over == "generation":
            counts = counts.mean().expand(len(updates))
        return torch.cat(
            [
                token_weights(update, args.loss_type, args.max_completion_length, count).reshape(
                    -1, mask.shape[1]
                )
                for update, count in zip(updates, counts, strict=True)
            ]
        )

    def _reward_metrics(self, rewarded: RewardedRollout, grouped: Advantages) -> dict[str, float]:
        rewards = rewarded.rewards
        metrics = {
            "reward": float(rewarded.totals.nanmean()),
            "reward_std": float(grouped.group_std.mean()),
            "frac_reward_zero_std": float((grouped.group_std == 0).double().mean()),
        }
        for index, name in enumerate(self.rewards.names):
            values = rewards[:, index]
            metrics[f"rewards/{name}/mean"] = float(values.nanmean())
            present = values[~values.isnan()]
            spread = float(present.std()) if present.numel() > 1 else 0.0
            metrics[f"rewards/{name}/std"] = spread
        return {name: value for name, value in metrics.items() if value == value}


def rollout_metrics(
    rollout: LatentRollout,
    advantages: Tensor,  # [B]
) -> dict[str, float]:
    """Lengths, entropies and latent statistics of a rollout, under TRL's names where it has one."""
    lengths = rollout.completion_mask.sum(-1).double()
    discrete = rollout.action_mask & ~rollout.latent_mask
    zero = (advantages == 0).to(rollout.action_mask.device)[:, None] & rollout.action_mask
    metrics = {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(rollout.truncated.double().mean()),
        "entropy": _masked_mean(rollout.entropy, discrete),
        "frac_zero_advantage_rows": float(zero.sum() / rollout.action_mask.sum().clamp(min=1)),
    }
    latent = rollout.latent_mask
    if bool(latent.any()):
        kept = latent[:, : rollout.latent_count.shape[1]]
        support = rollout.latent_count.double()
        metrics |= {
            "latent/entropy": _masked_mean(rollout.entropy, latent),
            "latent/support_size": _masked_mean(support, kept),
            "latent/single_survivor": _masked_mean((support == 1).double(), kept),
            "latent/mean_length": float(latent.sum(-1).double().mean()),
            **latent_use_metrics(rollout),
        }
    return metrics


def _masked_mean(values: Tensor, mask: Tensor) -> float:
    return float(torch.where(mask, values.double(), 0.0).sum() / mask.sum().clamp(min=1))
