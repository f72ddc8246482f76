"""The batches of an evaluation: which completions are decoded together, and their records.

A batch is the unit of work: batches are the same whatever the number of processes, so their samples
are, to the bit; and one that is finished need not be done again.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.engine import RolloutEngine, RolloutRequest
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.trainer.evaluation_ablations import Ablations
from lepo_kernels.trainer.evaluation_metrics import metric_names
from lepo_kernels.trainer.prompts import encode_prompts, latent_steps, prompt_text
from lepo_kernels.trainer.reward_step import RewardedRollout, reward_rollout
from lepo_kernels.trainer.rewards import Rewards

# Rollouts of the evaluation draw noise from keys that training never uses.
EVALUATION_KEYS = 1 << 48

StepProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Batch:
    """Completions that are decoded together: the same draws of some problems.

    Attributes:
        index: counts the evaluation's batches.
        greedy: whether they are decoded greedily.
        problems: rows of the data set.
        draws: which completions of each.
    """

    index: int
    greedy: bool
    problems: Sequence[int]
    draws: range

    def __len__(self) -> int:
        return len(self.problems) * len(self.draws)


def batches_of(
    problems: Sequence[int], *, num_samples: int, greedy: bool, batch_size: int
) -> list[Batch]:
    """All batches of an evaluation, the greedy ones first.

    Args:
        problems: rows of the data set.
        num_samples: sampled completions per problem.
        greedy: whether there is a greedy one besides.
        batch_size: completions of a batch, at most.
    """
    batches: list[Batch] = []
    for is_greedy, count in ((True, 1 if greedy else 0), (False, num_samples)):
        for some, drawn in _parts(problems, count, batch_size):
            batches.append(Batch(len(batches), is_greedy, some, drawn))
    return batches


def _parts(
    problems: Sequence[int], draws: int, batch_size: int
) -> Iterator[tuple[Sequence[int], range]]:
    """Problems with some of their draws, at most ``batch_size`` completions together."""
    width = min(draws, batch_size)
    at_once = max(1, batch_size // max(1, width))
    for first in range(0, len(problems), at_once):
        for drawn in range(0, draws, max(1, width)):
            yield problems[first : first + at_once], range(drawn, min(drawn + width, draws))


@dataclass
class BatchEvaluator:
    """Decodes batches and rewards them.

    Attributes:
        engine: what samples.
        device: where it is given prompts.
        tokenizer: encodes prompts and decodes completions.
        dataset: the problems.
        rewards: the reward functions.
        generation: how to sample.
        num_samples: sampled completions per problem, which key the noise.
        seed: seed of the noise.
        ablations: what else is decoded on top of ablated latents; None for nothing.
        step_progress: called with (decoding steps done, at most) of a batch.
    """

    engine: RolloutEngine
    device: torch.device
    tokenizer: Any
    dataset: Any
    rewards: Rewards
    generation: LatentGenerationConfig
    num_samples: int
    seed: int
    ablations: Ablations | None = None
    step_progress: StepProgress | None = field(default=None, repr=False)

    def evaluate(self, batch: Batch) -> list[dict[str, Any]]:
        """One record per completion; see `EvaluationResult`.

        Raises:
            RewardError: see `Rewards`.
        """
        config = replace(self.generation, do_sample=not batch.greedy)
        rollout = self._sample(batch, batch.problems, config)
        records = self._records(batch, self._rewarded(batch, rollout), rollout)
        if self.ablations is not None:
            self._add_ablated(self.ablations, batch, rollout, config, records)
        return records

    def _sample(
        self, batch: Batch, problems: Sequence[int], config: LatentGenerationConfig
    ) -> LatentRollout:
        """The batch's draws of some problems."""
        prompts = [self.dataset[problem]["prompt"] for problem in problems]
        ids, mask = (x.to(self.device) for x in encode_prompts(self.tokenizer, prompts))
        width = max(self.num_samples, 1)
        keys = [EVALUATION_KEYS + p * width + draw for p in problems for draw in batch.draws]
        row_keys = torch.tensor(keys, device=self.device)
        request = RolloutRequest(ids, mask, config, len(batch.draws), self.seed, row_keys)
        return self.engine.generate(request, progress=self.step_progress)

    def _rewarded(self, batch: Batch, rollout: LatentRollout) -> RewardedRollout:
        examples = [self.dataset[problem] for problem in batch.problems for _ in batch.draws]
        return reward_rollout(self.rewards, self.tokenizer, examples, rollout)

    def _records(
        self, batch: Batch, rewarded: RewardedRollout, rollout: LatentRollout
    ) -> list[dict[str, Any]]:
        own = [*metric_names(True, self.num_samples), "runtime"]
        logged = self.rewards.log.metrics(own=own)
        said = _said(rewarded, rollout)
        return [
            {
                "problem": problem,
                "draw": draw,
                "prompt": prompt_text(self.tokenizer, rewarded.prompts[index]),
                **said[index],
                "greedy": batch.greedy,
                "latent": latent_steps(self.tokenizer, rollout, index),
                **{name: values[index] for name, values in self.rewards.log.columns.items()},
                **({"metrics": logged} if logged else {}),
            }
            for index, (problem, draw) in enumerate(
                (problem, draw) for problem in batch.problems for draw in batch.draws
            )
        ]

    def _add_ablated(
        self,
        ablations: Ablations,
        batch: Batch,
        rollout: LatentRollout,
        config: LatentGenerationConfig,
        records: list[dict[str, Any]],
    ) -> None:
        """Add to each record what is said on top of ablated latents."""
        donors = None
        if ablations.needs_donors:
            latent_alone = ablations.until_answer(config)
            donors = self._sample(batch, ablations.donors_of(batch.problems), latent_alone)
        for kind in ablations.kinds:
            other = ablations.run(kind, rollout, donors, config, self.step_progress)
            for record, said in zip(
                records, _said(self._rewarded(batch, other), other), strict=True
            ):
                record.setdefault("ablated", {})[kind] = said


def _said(rewarded: RewardedRollout, rollout: LatentRollout) -> list[dict[str, Any]]:
    """Per sample its text, its reward (None without one), and its length."""
    lengths = rollout.completion_mask.sum(-1).tolist()
    return [
        {"completion": text, "reward": None if math.isnan(total) else total, "length": length}
        for text, total, length in zip(
            rewarded.texts, rewarded.totals.tolist(), lengths, strict=True
        )
    ]
