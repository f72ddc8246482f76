"""Latent rollouts of a transformers model, and the policy's log-probabilities on them."""
