"""All cases: one file per op family here, and whole rollouts and updates in `end_to_end`."""

from collections.abc import Sequence

from benchmarks.case import Case, Family
from benchmarks.cases import (
    gather_log_probs,
    gumbel_softmax_embedding,
    latent_step,
    linear_gumbel_softmax_embedding,
    linear_log_probs,
    mix_embeddings,
    philox_words,
)
from benchmarks.end_to_end import FAMILIES as END_TO_END
from benchmarks.plan import Plan

KERNELS = [
    latent_step.FAMILY,
    mix_embeddings.FAMILY,
    linear_log_probs.FAMILY,
    gather_log_probs.FAMILY,
    gumbel_softmax_embedding.FAMILY,
    linear_gumbel_softmax_embedding.FAMILY,
    philox_words.FAMILY,
]
FAMILIES = [*KERNELS, *END_TO_END]


def timed(plan: Plan, families: Sequence[Family] | None = None) -> list[Case]:
    """The cases that a plan asks for; of all families by default."""
    return [case for family in families or FAMILIES for case in family.timed(plan)]


def tiny(families: Sequence[Family] | None = None) -> list[Case]:
    """A small case of every kind, which tests can run."""
    return [case for family in families or FAMILIES for case in family.tiny]
