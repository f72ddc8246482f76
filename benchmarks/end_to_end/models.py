"""Whole models with random weights, at published sizes; nothing is downloaded."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.plan import Plan

# An id that no implementation ever samples: rows of a benchmark all have the same length.
EOS = 0


@dataclass(frozen=True)
class Model:
    """A decoder of the Llama or Qwen2 family; both have their head tied to the embedding here.

    Attributes:
        family: the name of its classes in transformers, without Config and ForCausalLM.
        layers: number of decoder layers.
        intermediate: width of the feed-forward layers.
        heads, kv_heads: of the attention.
    """

    name: str
    family: str
    vocab: int
    width: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    rope_theta: float = 10_000.0

    @property
    def body(self) -> int:
        """Weights of the layers' matrix products."""
        head_width = self.width // self.heads
        attention = 2 * self.width * head_width * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.intermediate)

    @property
    def head(self) -> int:
        """Weights of the table, which is the head, too."""
        return self.vocab * self.width

    @property
    def parameters(self) -> int:
        return self.body + self.head

    def flops(self, fed: int, scored: int) -> int:
        """Of a forward over ``fed`` tokens, after ``scored`` of which logits are needed."""
        return 2 * (self.body * fed + self.head * scored)

    def activations(self, dtype: torch.dtype) -> int:
        """Bytes that the layers keep of a token for the backward pass."""
        # Some twelve rows of the hidden state, as norms keep theirs in float32; four of the MLP.
        return self.layers * dtype.itemsize * (12 * self.width + 4 * self.intermediate)

    def bytes(self, dtype: torch.dtype) -> int:
        """Of the weights."""
        return dtype.itemsize * self.parameters

    def build(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The model in eval mode, the same weights at every call."""
        import transformers

        config = getattr(transformers, f"{self.family}Config")(
            vocab_size=self.vocab,
            hidden_size=self.width,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=EOS,
            # An embedding with a padding row has no gradient there, a product with it has.
            pad_token_id=None,
        )
        torch.manual_seed(0)
        kind = getattr(transformers, f"{self.family}ForCausalLM")
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                model = kind(config)
        finally:
            torch.set_default_dtype(before)
        with torch.no_grad():
            # Its logit is always 0, and never among the largest.
            model.get_input_embeddings().weight[EOS] = 0
        return model.eval()


SMOLLM2 = Model("SmolLM2-135M", "Llama", 49152, 576, 30, 1536, 9, 3, 100_000.0)
QWEN_HALF = Model("Qwen2.5-0.5B", "Qwen2", 151936, 896, 24, 4864, 14, 2, 1_000_000.0)
QWEN_3B = Model("Qwen2.5-3B", "Qwen2", 151936, 2048, 36, 11008, 16, 2, 1_000_000.0)
BY_DEFAULT = {"cpu": (SMOLLM2,), "cuda": (QWEN_HALF, QWEN_3B)}
# For tests.
TINY = Model("tiny", "Llama", 131, 32, 2, 48, 4, 2)


def planned(plan: Plan) -> Iterator[tuple[Model, torch.dtype]]:
    """The models that a plan asks for, of those known here, and the dtype of each."""
    known = BY_DEFAULT["cuda" if plan.device.type == "cuda" else "cpu"]
    if plan.models is not None:
        wanted = {model.name for model in plan.models}
        known = tuple(x for x in (SMOLLM2, QWEN_HALF, QWEN_3B) if x.name in wanted)
    for dtype in plan.step_dtypes():
        yield from ((model, dtype) for model in known)


def why_not(device: torch.device) -> str | None:
    """Say why no model can be built; None if it can."""
    missing = importlib.util.find_spec("transformers") is None
    return "transformers is not installed" if missing else None


def lengths_of(rows: int, longest: int, shortest: int) -> list[int]:
    """Of padded rows: from the longest to the shortest, in even steps."""
    return [longest - (longest - shortest) * row // max(1, rows - 1) for row in range(rows)]


def prompt_lengths(rows: int, length: int) -> list[int]:
    """From ``length`` down to half of it."""
    return lengths_of(rows, length, max(1, length // 2))


def random_prompts(
    rows: int, length: int, vocab: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:  # [rows, length], [rows, length]
    """Left-padded prompts of `prompt_lengths`."""
    device = generator.device
    ids = torch.randint(1, vocab, (rows, length), device=device, generator=generator)
    lengths = torch.tensor(prompt_lengths(rows, length), device=device)
    mask = (torch.arange(length, device=device) >= length - lengths[:, None]).long()
    return ids * mask + EOS * (1 - mask), mask
