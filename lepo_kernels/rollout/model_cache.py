"""A model's key-value cache: the argument that takes it, and whether the model uses it.

A forward that does not know the argument it is given may swallow it in ``**kwargs``; every cached
step then sees one token alone, and its log-probabilities are wrong by nats. So a model is refused
unless its forward names a cache, and a rollout checks once that the cache has grown.
"""

import inspect
from typing import Any

from transformers.cache_utils import Cache, DynamicCache, StaticCache

# transformers called it past_key_values before 5.24, and calls it cache since.
_NAMES = ("cache", "past_key_values")


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
    """An empty cache for ``base``: "dynamic", or "static" for ``length`` columns."""
    if implementation == "static":
        return StaticCache(config=base.config, max_cache_len=length)
    return DynamicCache(config=base.config)


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
