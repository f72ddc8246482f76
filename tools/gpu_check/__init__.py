"""Confirms on a GPU what was proven without one: docs/gpu.md."""
