"""Lets the ``triton`` backend serve CPU tensors: on the GPU if there is one, else interpreted.

In the interpreter every access of every kernel is checked, too (`tests/triton_sim`).
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lepo_kernels import dispatch
from tests import gpu_backends

# Seen once: in the interpreter's place the name is no longer missing.
_HAS_GPU = "triton" not in dispatch.MISSING


def why_not() -> str | None:
    """None if the backend can serve CPU tensors, else the reason."""
    return None if importlib.util.find_spec("triton") else "triton is not installed"


def has_gpu() -> bool:
    """Whether there is a GPU for it."""
    return _HAS_GPU


@contextmanager
def serving(patch: pytest.MonkeyPatch, *, large_tiles: bool = True) -> Iterator[None]:
    """Offer the backend for CPU tensors, as the last choice.

    A tile takes the interpreter some ten milliseconds, whatever its size: it gets tiles of 1024 ids
    where real ones have 64, of 64 rows where they have one, and in two pieces where they have four,
    unless ``large_tiles`` is False.
    """
    gpu_backends.offer_for_cpu_tensors(patch, "triton")
    if has_gpu():
        gpu_backends.run_on_gpu(patch, "triton")
        yield
        return
    from tests.triton_sim.interpreter import interpreted

    patch.delitem(dispatch.MISSING, "triton")
    if large_tiles:
        _enlarge_tiles(patch)
    with interpreted():
        yield


def _enlarge_tiles(patch: pytest.MonkeyPatch) -> None:
    from lepo_kernels.backends.triton import gumbel_softmax_embedding as dense
    from lepo_kernels.backends.triton import linear_gumbel_softmax_embedding as linear
    from lepo_kernels.backends.triton.gumbel_softmax import backward, forward, linear_backward
    from lepo_kernels.backends.triton.head import products, tiles
    from lepo_kernels.backends.triton.latent import launching as draw

    for table in (
        backward.TABLE_GRADIENT,
        dense.LOGITS_GRADIENT,
        linear.LINEAR_SCORES,
        linear_backward.LINEAR_LOGITS_GRADIENT,
        linear_backward.HIDDEN_GRADIENT,
        linear_backward.HEAD_GRADIENT,
    ):
        for options in table.values():
            patch.setitem(options, "IDS", 1024)
    # Such long sums lose to chance what a test may want.
    for options in forward.MIX.values():
        patch.setitem(options, "IDS", 512)
    for options in (dense.SCORES, draw._SCAN, draw._KEYS):
        patch.setitem(options, "ROWS", 64)
    for options in (draw._NARROW, draw._WIDE, draw._PERTURB):
        patch.setitem(options, "ROWS", 64)
    for family in (tiles._TILES, products._TILES):
        for options in family["other"].values():
            patch.setitem(options, "PIECES", 2)
