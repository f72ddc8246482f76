"""Which ablations of the latents an evaluation makes, and with whose latents it shuffles."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lepo_kernels.rollout.ablation import ABLATIONS, ablated, latent_phase
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.continuation import answer_after
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.suggest import did_you_mean


@dataclass(frozen=True)
class Ablations:
    """The ablations of an evaluation.

    Attributes:
        model: decodes on top of ablated latents, whatever engine made them.
        kinds: some of `lepo_kernels.rollout.ablation.ABLATIONS`.
        blank_id: the token that says nothing.
        donors: problem -> the one whose latents it is given by "shuffle".
    """

    model: Any = field(repr=False)
    kinds: Sequence[str]
    blank_id: int | None
    donors: dict[int, int]

    @property
    def needs_donors(self) -> bool:
        """Whether other problems' latents are asked for."""
        return "shuffle" in self.kinds

    def donors_of(self, problems: Sequence[int]) -> list[int]:
        """For each problem the one whose latents it is given."""
        return [self.donors[problem] for problem in problems]

    def until_answer(self, config: LatentGenerationConfig) -> LatentGenerationConfig:
        """``config`` for a rollout of the latent phase alone."""
        return replace(config, max_new_tokens=config.latent_length + len(config.latent_suffix_ids))

    def run(
        self,
        kind: str,
        rollout: LatentRollout,
        donors: LatentRollout | None,
        config: LatentGenerationConfig,
        progress: Callable[[int, int], None] | None = None,
    ) -> LatentRollout:
        """The rollout's rows with ablated latents, and what is said then.

        Args:
            kind: one of ``kinds``.
            rollout: the rows as they were sampled.
            donors: for "shuffle", as many rows with the latents that these are given.
            config: how they were sampled.
            progress: called with (steps done, steps at most).
        """
        phase = ablated(
            self.model,
            kind,
            latent_phase(self.model, rollout),
            donors=None if donors is None else latent_phase(self.model, donors),
            blank_id=self.blank_id,
        )
        return answer_after(self.model, rollout, phase, config, progress=progress)


def make_ablations(
    model: Any,
    kinds: Sequence[str],
    config: LatentGenerationConfig,
    tokenizer: Any,
    problems: Sequence[int],
    *,
    blank: str = " ",
    seed: int = 0,
) -> Ablations | None:
    """The ablations of some kinds, checked; None where there are no kinds.

    Args:
        model: a causal language model.
        kinds: some of `ABLATIONS`.
        config: how the evaluation samples.
        tokenizer: the model's.
        problems: the rows of the data set that are evaluated.
        blank: the text of the token that says nothing.
        seed: draws the order in which problems pass their latents on.

    Raises:
        ValueError: an unknown kind, or one that cannot be made: no latent steps, a single problem
            to shuffle, or a blank that is not one token.
    """
    if not kinds:
        return None
    for kind in kinds:
        if kind not in ABLATIONS:
            raise ValueError(
                f"ablate: there is no ablation {kind!r}; {did_you_mean(kind, ABLATIONS)}"
            )
    if config.latent_length == 0:
        raise ValueError("ablate: latent_length is 0, so there are no latents to ablate")
    if "shuffle" in kinds and len(problems) < 2:
        raise ValueError("ablate: shuffle needs two problems or more")
    blank_id = _one_token(tokenizer, blank) if "blank" in kinds else None
    return Ablations(model, tuple(kinds), blank_id, derangement(problems, seed))


def derangement(problems: Sequence[int], seed: int) -> dict[int, int]:
    """Each problem's partner, another problem; every problem is the partner of one.

    One cycle through all of them in an order drawn by ``seed``.
    """
    order = random.Random(seed).sample(list(problems), len(problems))
    return dict(zip(order, [*order[1:], *order[:1]], strict=True))


def _one_token(tokenizer: Any, text: str) -> int:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(
            f"ablate_blank: expected the text of one token, the tokenizer makes {len(ids)} of "
            f"{text!r}"
        )
    return int(ids[0])
