"""Shapes of real models' heads: what the ops of this package see of a model.

From the models' published configurations. No weights are loaded: all data is random.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """The two sizes of a vocabulary-sized product, and what else the head does.

    Attributes:
        vocab: rows of the embedding table, which may be more than the tokenizer has tokens.
        width: of the hidden states.
        tied: whether head and input embedding are one table.
        softcap: of the final logits; None without one.
    """

    name: str
    vocab: int
    width: int
    tied: bool
    softcap: float | None = None


MODELS = {
    model.name: model
    for model in (
        Model("SmolLM2-135M", 49152, 576, tied=True),
        Model("Qwen2.5-3B", 151936, 2048, tied=True),
        Model("Qwen2.5-7B", 152064, 3584, tied=False),
        Model("Llama-3.2-3B", 128256, 3072, tied=True),
        Model("Gemma-2-2B", 256000, 2304, tied=True, softcap=30.0),
    )
}


def find(names: str) -> tuple[Model, ...]:
    """Models by name, case aside, separated by commas; ``all`` is every one.

    Raises:
        ValueError: there is no such model.
    """
    if names.lower() == "all":
        return tuple(MODELS.values())
    by_lower = {name.lower(): model for name, model in MODELS.items()}
    wanted = [name.strip().lower() for name in names.split(",")]
    for name in wanted:
        if name not in by_lower:
            raise ValueError(f"there is no model {name!r}; known: all, {', '.join(MODELS)}")
    return tuple(by_lower[name] for name in wanted)
