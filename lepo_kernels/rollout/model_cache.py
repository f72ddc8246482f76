"""A model's key-value cache: the argument that takes it, and whether the model uses it.

A forward that does not know the argument it is given may swallow it in ``**kwargs``; every cached
step then sees one token alone, and its log-probabilities are wrong by nats. So a model is refused
unless its forward names a cache, and a rollout checks once that the cache has grown.
"""

import inspect
from typing import Any

from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticCache,
    StaticLayer,
)

# transformers called it past_key_values before 5.24, and calls it cache since.
_NAMES = ("cache", "past_key_values")
# Attention that takes a mask over columns which are not filled yet.
_MASKED_ATTENTION = ("sdpa", "eager")


def cache_argument(base: Any) -> str:
    """The name under which the model's forward takes a cache.

    Raises:
        ValueError: it takes none.
    """
    # The class knows: on the instance another library may have put a forward of its own.
    parameters = inspect.signature(type(base).forward).parameters
    for name in _NAMES:
        if name in parameters:
            return name
    raise ValueError(
        f"model: {type(base).__name__}.forward takes no key-value cache (expected an argument "
        f"named {' or '.join(_NAMES)}), so it cannot decode step by step here"
    )


def step_arguments(base: Any) -> dict[str, Any]:
    """What else the forward of a cached step is told, where the model knows it.

    Logits are needed of the last position. The loss of a mixture of experts' router is training's:
    over a step whose mask is longer it cannot be formed.
    """
    wanted = {"logits_to_keep": 1, "output_router_logits": False}
    known = inspect.signature(base.forward).parameters
    return {name: value for name, value in wanted.items() if name in known}


def make_cache(base: Any, implementation: str, length: int) -> Cache:
    """An empty cache for ``base``: "dynamic", or "static" for ``length`` columns.

    Raises:
        ValueError: a static cache cannot hold what the model's layers keep.
    """
    if implementation == "dynamic":
        return DynamicCache(config=base.config)
    reason = why_not_static(base)
    if reason is not None:
        raise ValueError(f"cache_implementation: {reason}; take 'dynamic'")
    cache = StaticCache(config=base.config, max_cache_len=length)
    # A window that slides counts its steps in Python. Whole columns behind a mask do not, at the
    # price of memory where the window is shorter than prompt and completion.
    cache.layers = [StaticLayer(max_cache_len=length) for _ in cache.layers]
    return cache


def why_not_static(base: Any) -> str | None:
    """Say why a static cache cannot serve the model; None if it can."""
    name = type(base).__name__
    attention = getattr(base.config, "_attn_implementation", None)
    if attention not in _MASKED_ATTENTION:
        return f"{name} with attention {attention!r} does not run on a static cache"
    try:
        layers = StaticCache(config=base.config, max_cache_len=1).layers
    except Exception as error:  # whatever a config of unknown layers makes it raise
        return f"{name} has no static cache ({type(error).__name__}: {error})"
    other = {type(x).__name__ for x in layers} - {"StaticLayer", "StaticSlidingWindowLayer"}
    if other:
        return f"{name} has layers that a static cache does not hold ({', '.join(sorted(other))})"
    return None


def is_flexible(cache: Cache) -> bool:
    """Whether rows of the cache can be repeated and dropped."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def fill_static(
    static: Cache,
    dynamic: Cache,
    rows: Tensor,  # [n] int64
    columns: int,
) -> None:
    """Copy a prompt's pass into an empty static cache.

    Args:
        static: of n rows.
        dynamic: holds the pass; of a layer with a window, the columns that later ones still see.
        rows: which row of ``dynamic`` each row of ``static`` takes.
        columns: of the prompt.
    """
    for to, source in zip(static.layers, dynamic.layers, strict=True):
        if not to.is_initialized:
            # Of the kept columns, only the shape is looked at.
            to.lazy_initialization(source.keys[rows], source.values[rows])
        kept = source.keys.shape[2]
        for name in ("keys", "values"):
            held = getattr(to, name)
            # Columns that are not seen yet are multiplied by 0, which NaN would survive.
            held.zero_()
            held[:, :, columns - kept : columns] = getattr(source, name)[rows]
        to.cumulative_length.fill_(columns)


def check_grown(base: Any, cache: Cache, columns: int) -> None:
    """Check that the model has put ``columns`` columns into the cache.

    Raises:
        ValueError: it has not.
    """
    try:
        held = int(cache.get_seq_length())
    except ValueError:  # recurrent layers alone: they count no columns
        grown = cache.has_previous_state()
        found = "a state" if grown else "no state"
    else:
        grown = held == columns
        found = f"{held} columns"
    if not grown:
        raise ValueError(
            f"model: {type(base).__name__} does not use the cache it is given: after {columns} "
            f"columns the cache holds {found}"
        )
