"""Whole rollouts and training steps, ours against a plain implementation (`baselines`)."""

from benchmarks.case import Family
from benchmarks.end_to_end import rollout, training

FAMILIES: tuple[Family, ...] = (training.FAMILY, rollout.FAMILY)
