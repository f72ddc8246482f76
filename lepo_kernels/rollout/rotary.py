"""What a model's config says of its rotary position embedding."""

from typing import Any

# Kinds whose frequencies are the same at every length.
_CONSTANT = ("default", "linear", "llama3", "proportional")


def original_context(config: Any) -> int | None:
    """Positions up to which a rotary embedding is the one the model was trained with.

    Args:
        config: a transformers config.

    Returns:
        The least one, where layers of several kinds differ; None where the config names no rotary
        embedding.
    """
    kinds = _kinds(config)
    if not kinds:
        return None
    text = config.get_text_config()
    found = [kind.get("original_max_position_embeddings") for kind in kinds]
    found += [getattr(text, "original_max_position_embeddings", None)]
    known = [int(context) for context in found if context]
    if known:
        return min(known)
    longest = getattr(text, "max_position_embeddings", None)
    return None if longest is None else int(longest)


def changes_with_length(config: Any) -> bool:
    """Whether some layer's rotary frequencies may depend on how long the sequence is."""
    kinds = [kind.get("rope_type", kind.get("type")) for kind in _kinds(config)]
    return any(kind not in (None, *_CONSTANT) for kind in kinds)


def _kinds(config: Any) -> list[dict[str, Any]]:
    """The parameters of each kind of layer, or those of all."""
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not isinstance(parameters, dict):
        return []
    return [kind for kind in parameters.values() if isinstance(kind, dict)] or [parameters]
