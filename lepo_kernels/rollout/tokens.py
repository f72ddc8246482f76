"""Which of a model's ids have a token: a head is often padded past the tokenizer's size."""

import warnings
from typing import Any


def token_range(tokenizer: Any, model: Any = None) -> dict[str, Any]:
    """Which ids have a token, for ``LatentGenerationConfig``.

    Added tokens count, also where the ids before them are not all taken.

    Args:
        tokenizer: a transformers tokenizer, or None.
        model: a transformers model, or None.

    Returns:
        ``{"num_tokens": ..., "suppress_tokens": ...}``: one more than the largest id with a token,
        and the ids below without one. Empty for something that has no ``get_vocab``.

    Raises:
        ValueError: the tokenizer's vocabulary, added tokens left aside, is larger than the model's.
    """
    if not hasattr(tokenizer, "get_vocab"):
        return {}
    taken = set(tokenizer.get_vocab().values())
    count = 1 + max(taken)
    rows = _rows(model)
    if rows is not None and count > rows:
        if tokenizer.vocab_size > rows:
            raise ValueError(
                f"processing_class: the tokenizer has {tokenizer.vocab_size} tokens, the model "
                f"{rows} rows; take the model's own tokenizer, or resize_token_embeddings"
            )
        beyond = sorted(i for i in taken if i >= rows)
        warnings.warn(
            f"processing_class: {len(beyond)} added tokens of the tokenizer, such as "
            f"{tokenizer.convert_ids_to_tokens(beyond[0])!r}, lie beyond the model's {rows} rows; "
            "a prompt that holds one is refused",
            stacklevel=2,
        )
        count = rows
    return {"num_tokens": count, "suppress_tokens": tuple(sorted(set(range(count)) - taken))}


def _rows(model: Any) -> int | None:
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        return None
    rows = getattr(config.get_text_config(), "vocab_size", None)
    return None if rows is None else int(rows)
