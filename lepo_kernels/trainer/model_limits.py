"""How long a sequence may be, and which ids it may hold, for a model and the settings of a run."""

from dataclasses import dataclass
from typing import Any

from torch import nn

# Some tables have a few rows more than positions (OPT has 2).
_SPARE_ROWS = 8


@dataclass(frozen=True)
class ModelLimits:
    """What prompts must keep to.

    Attributes:
        max_completion_length: steps that follow a prompt.
        max_prompt_length: tokens that a prompt may have; None for any number.
        truncate_prompts: whether longer ones are cut from the left to so many.
        positions: positions that the model was made for; None where it names none.
        has_table: whether the model reads its positions from a table, which ends there.
        vocabulary: rows of the model's input embedding; None where it has none to look at.
    """

    max_completion_length: int
    max_prompt_length: int | None = None
    positions: int | None = None
    has_table: bool = False
    vocabulary: int | None = None
    truncate_prompts: bool = False

    def lacks_room(self, prompt_length: int) -> bool:
        """Whether a prompt and the longest completion have more steps than there are positions."""
        total = prompt_length + self.max_completion_length
        return self.positions is not None and total > self.positions

    def positions_fault(self, prompt_length: int) -> str:
        """What is wrong with a prompt that lacks room, to follow its name in a message."""
        return (
            f"has {prompt_length} tokens, which with max_completion_length = "
            f"{self.max_completion_length} are more than the {self.positions} positions of the "
            "model"
        )


def limits_of(
    model: Any,
    max_completion_length: int,
    max_prompt_length: int | None = None,
    truncate_prompts: bool = False,
) -> ModelLimits:
    """The limits of a model.

    Args:
        model: a transformers model, perhaps in a peft adapter; of another module nothing is known.
        max_completion_length: steps that follow a prompt.
        max_prompt_length: tokens that a prompt may have.
        truncate_prompts: whether longer ones are cut to so many.
    """
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        positions = None
    return ModelLimits(
        max_completion_length,
        max_prompt_length,
        positions,
        has_table=positions is not None and _has_table(model, positions),
        vocabulary=_vocabulary(model),
        truncate_prompts=truncate_prompts,
    )


def _has_table(model: nn.Module, positions: int) -> bool:
    """Whether a weight or buffer named after positions has a row for each of them."""
    tables = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    for name, tensor in (*tables.items(), *model.named_buffers()):
        leaf = name.rpartition(".")[2]
        named = leaf == "wpe" or "position" in leaf
        if named and tensor.dim() == 2 and 0 <= tensor.shape[0] - positions <= _SPARE_ROWS:
            return True
    return False


def _vocabulary(model: Any) -> int | None:
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    size = getattr(embedding, "num_embeddings", None)
    return size if isinstance(size, int) else None
