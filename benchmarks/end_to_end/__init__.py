"""Whole rollouts and training steps, ours against a plain implementation (`baselines`)."""

from benchmarks.case import Family
from benchmarks.end_to_end import decoding, rollout, training

FAMILIES: tuple[Family, ...] = (training.FAMILY, rollout.FAMILY, decoding.FAMILY)
