"""Latent rollouts of a transformers model, and the policy's log-probabilities on them."""

from lepo_kernels import extras

extras.require("transformers")
