"""All cases, one file per op family."""

from benchmarks.case import Case
from benchmarks.cases import (
    gather_log_probs,
    gumbel_softmax_embedding,
    latent_step,
    linear_log_probs,
    mix_embeddings,
    philox_words,
)
from benchmarks.plan import Plan

FAMILIES = [
    latent_step.FAMILY,
    mix_embeddings.FAMILY,
    linear_log_probs.FAMILY,
    gather_log_probs.FAMILY,
    gumbel_softmax_embedding.FAMILY,
    philox_words.FAMILY,
]


def timed(plan: Plan) -> list[Case]:
    """The cases that a plan asks for."""
    return [case for family in FAMILIES for case in family.timed(plan)]


def tiny() -> list[Case]:
    """A small case of every kind, which tests can run."""
    return [case for family in FAMILIES for case in family.tiny]
