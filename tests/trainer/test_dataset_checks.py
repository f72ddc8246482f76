"""Whatever is wrong with a dataset is found before training starts, with the row's number."""

import logging
import time

import pandas as pd
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict, IterableDataset

from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.dataset_checks import check_dataset, check_prompts
from lepo_kernels.trainer.evaluation import evaluate_policy
from lepo_kernels.trainer.model_limits import ModelLimits, limits_of
from lepo_kernels.trainer.prompts import prompt_ids
from lepo_kernels.trainer.trainer import LEPOTrainer
from tests.rollout.models import tiny_model as model_of_family
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainer.conftest import digits_reward, problems


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Where trainers whose output_dir plays no part may write."""
    monkeypatch.chdir(tmp_path)


def make(train=None, evaluation=None, model=None, tokenizer=None, **changes):
    settings = {
        "output_dir": "unused",
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "latent_length": 2,
        "max_completion_length": 6,
        "report_to": "none",
        "use_cpu": True,
        **changes,
    }
    return LEPOTrainer(
        tiny_model() if model is None else model,
        lambda completions, **_: [0.0] * len(completions),
        LEPOConfig(**settings),
        problems(4) if train is None else train,
        evaluation,
        processing_class=tiny_tokenizer() if tokenizer is None else tokenizer,
    )


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def stream():
    yield {"prompt": "a"}


class TorchStream(torch.utils.data.IterableDataset):
    def __len__(self):
        return 4

    def __iter__(self):
        return stream()


CONTAINERS = [
    (DatasetDict(train=problems(4), test=problems(4)), "got a DatasetDict with 'train', 'test'"),
    ({"prompt": ["a"]}, "got a dict with 'prompt'.*from_dict"),
    (pd.DataFrame({"prompt": ["a"]}), "got a DataFrame; convert it: .*from_pandas"),
    (IterableDataset.from_generator(stream), "got IterableDataset. A stream has neither"),
    (TorchStream(), "got TorchStream. A stream has neither"),
    (stream(), "got generator. A stream"),
    ("gsm8k", r"got a str; load it first: datasets.load_dataset\('gsm8k'"),
    (["a", "b"], "expected rows that are dicts, got str"),
    ([{"prompt": "a", 0: "b"}], "expected columns named by str, got 0"),
]


@pytest.mark.parametrize(("dataset", "message"), CONTAINERS, ids=lambda v: type(v).__name__)
def test_containers_that_are_no_dataset(dataset, message):
    with pytest.raises(TypeError, match=f"^train_dataset: .*{message}"):
        make(train=dataset)
    if not isinstance(dataset, dict):
        with pytest.raises(TypeError, match=f"^eval_dataset: .*{message}"):
            make(evaluation=dataset)
        with pytest.raises(TypeError, match=rf"^eval_dataset\['held'\]: .*{message}"):
            make(evaluation={"held": dataset})


def test_containers_that_serve(tmp_path):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"prompt": "a" * (index + 1)}

    for dataset in ([{"prompt": "a"}] * 4, Rows(), problems(4).with_format("numpy")):
        trainer = make(train=dataset, output_dir=str(tmp_path), max_steps=1, save_strategy="no")
        trainer.train()
    make(evaluation=DatasetDict(easy=problems(1), hard=problems(2)))
    with pytest.raises(ValueError, match="eval_dataset: has no datasets"):
        make(evaluation={})


NO_ALTERNATION = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m['content'] }}{% endfor %}"
)
BAD_PROMPTS = [
    ("", ValueError, "is empty"),
    ([], ValueError, "has no messages"),
    (None, TypeError, "is neither a str nor a list of chat messages .* but NoneType"),
    (7, TypeError, "is neither .* but int: 7"),
    ([10**5000], TypeError, "is neither .* but list"),
    (["hello"], TypeError, "is neither .* but list"),
    ([{"content": "hello"}], TypeError, "is neither .* but list"),
    ({"role": "user", "content": "x"}, TypeError, "is neither .* but dict"),
    (chat(("user", "x"), ("user", None)), TypeError, "is wrong in message 1: it has no content"),
    ([{"role": "user"}], TypeError, "is wrong in message 0: it has no content"),
    (
        chat(("user", [{"type": "text", "text": "x"}])),
        TypeError,
        "is wrong in message 0: it has a list as content; only text",
    ),
    (chat((None, "x")), TypeError, "is wrong in message 0: it has the role None"),
    ("half \ud83d", ValueError, r"holds half of a surrogate pair, '\\ud83d', at 5"),
    (
        chat(("user", "\udc00")),
        ValueError,
        "is wrong in message 0: it holds half of a surrogate pair",
    ),
]


@pytest.mark.parametrize(
    ("prompt", "error", "message"), BAD_PROMPTS, ids=lambda v: type(v).__name__
)
@pytest.mark.parametrize("where", ["train", "evaluation"])
def test_a_bad_prompt_is_named_by_its_row(where, prompt, error, message):
    good = chat(("user", "x"))
    rows = [{"prompt": good}, {"prompt": "text"}, {"prompt": prompt}, {"prompt": good}]
    name = {"train": "train_dataset", "evaluation": "eval_dataset"}[where]
    # Found from the rows alone: there is no such model.
    with pytest.raises(error, match=f"^{name}: the prompt of row 2 {message}"):
        make(model="no/such-model", **{where: rows})


def test_a_turn_that_calls_a_tool_needs_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    check_dataset("train_dataset", [{"prompt": [*chat(("user", "x")), call]}])


def test_a_prompt_that_the_template_refuses_is_named_by_its_row():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = NO_ALTERNATION
    rows = [{"prompt": chat(("user", "x"))}] * 3 + [{"prompt": chat(("user", "x"), ("user", "y"))}]
    with pytest.raises(
        ValueError,
        match=r"^train_dataset: the chat template refuses the prompt of row 3: roles must",
    ):
        make(train=rows, tokenizer=tokenizer)


def test_a_chat_needs_a_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    rows = [{"prompt": "text"}, {"prompt": chat(("user", "x"))}]
    with pytest.raises(
        ValueError, match="prompt of row 1 is a chat, and the tokenizer has no chat"
    ):
        make(train=rows * 2, tokenizer=tokenizer)


def test_a_prompt_without_tokens_is_named_by_its_row():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] | trim }}"
    rows = [{"prompt": chat(("user", "x"))}, {"prompt": chat(("user", "  "))}]
    with pytest.raises(ValueError, match=r"^train_dataset: the prompt of row 1 has no tokens"):
        make(train=rows * 2, tokenizer=tokenizer)


def test_an_id_without_an_embedding_is_named_by_its_row():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])  # and the model's table is not resized
    rows = [{"prompt": "ab"}, {"prompt": "a<new>"}]
    with (
        pytest.warns(UserWarning, match="added tokens"),
        pytest.raises(ValueError, match="prompt of row 1 has the token id 102, and the model has"),
    ):
        make(train=rows * 2, tokenizer=tokenizer)


def test_neither_pad_nor_end_of_sequence():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="processing_class: has neither a pad nor an end"):
        make(tokenizer=tokenizer)


def test_a_table_of_positions_must_hold_prompt_and_completion():
    model = model_of_family("gpt2", max_position_embeddings=16)
    rows = [{"prompt": "a" * size} for size in (10, 11, 3, 3)]
    with pytest.raises(
        ValueError,
        match=r"^train_dataset: the prompt of row 1 has 11 tokens, which with "
        "max_completion_length = 6 are more than the 16 positions",
    ):
        make(train=rows, model=model)
    with pytest.raises(ValueError, match=r"^eval_dataset: the prompt of row 1 has 11 tokens"):
        make(train=rows[2:] * 2, evaluation=rows, model=model)


def test_rotary_positions_are_warned_of_once(caplog):
    rows = [{"prompt": "a" * size} for size in (3, 12, 11, 3)]
    with caplog.at_level(logging.WARNING):
        make(train=rows, model=tiny_model(max_position_embeddings=16))
    (text,) = [r.getMessage() for r in caplog.records if "positions" in r.getMessage()]
    assert "train_dataset: the prompt of row 1, the longest, has 12 tokens" in text
    caplog.clear()
    make(train=rows, model=tiny_model(max_position_embeddings=18))
    assert not caplog.records


# Learned positions, with and without spare rows, and a table of sines; the others compute theirs.
@pytest.mark.parametrize(
    ("family", "settings", "has_table"),
    [
        ("GPT2LMHeadModel", {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32}, True),
        ("GPTNeoForCausalLM", {"hidden_size": 8, "num_layers": 1, "num_heads": 2}
         | {"attention_types": [[["global"], 1]], "max_position_embeddings": 32}, True),
        ("OPTForCausalLM", {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
         | {"ffn_dim": 8, "word_embed_proj_dim": 8, "max_position_embeddings": 32}, True),
        ("GPTJForCausalLM", {"n_embd": 8, "n_layer": 1, "n_head": 2, "rotary_dim": 2}
         | {"n_positions": 32}, True),
        ("LlamaForCausalLM", {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
         | {"num_attention_heads": 2, "max_position_embeddings": 32}, False),
        ("BloomForCausalLM", {"hidden_size": 8, "n_layer": 1, "n_head": 2}, False),
    ],
)  # fmt: skip
def test_which_models_read_their_positions_from_a_table(family, settings, has_table):
    kind = getattr(transformers, family)
    model = kind(kind.config_class(vocab_size=20, **settings))
    limits = limits_of(model, 4)
    assert limits.has_table is has_table
    assert limits.vocabulary == 20
    # Alibi has no end.
    assert limits.positions == (None if family.startswith("Bloom") else 32)
    if has_table:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.zeros(1, 33, dtype=torch.int64))


def test_ids_are_those_of_a_rollout():
    tokenizer = tiny_tokenizer()
    prompts = ["ab", chat(("user", "ab")), "c"]
    seen = []

    class Spy(ModelLimits):
        def lacks_room(self, prompt_length):
            seen.append(prompt_length)
            return False

    limits = Spy(1, positions=10, has_table=True)
    check_prompts("train_dataset", [{"prompt": p} for p in prompts], tokenizer, limits)
    assert seen[:3] == [len(prompt_ids(tokenizer, p)) for p in prompts]


def test_an_evaluation_checks_what_it_has_not_seen(monkeypatch):
    trainer = make(evaluation={"a": problems(2)}, eval_num_samples=0)
    trainer.processing_class.chat_template = NO_ALTERNATION
    with pytest.raises(ValueError, match=r"eval_dataset: the chat template refuses .* row 0"):
        trainer.evaluate([{"prompt": chat(("assistant", "x"))}])
    with pytest.raises(TypeError, match=r"eval_dataset: rows|expected rows"):
        trainer.evaluate(["x"])
    monkeypatch.setattr(
        "lepo_kernels.trainer.trainer.check_prompts", lambda *_: pytest.fail("looked twice")
    )
    trainer.evaluate()


def test_an_evaluation_without_a_trainer_checks_first():
    config = LatentGenerationConfig(eos_token_ids=(1,), pad_token_id=0, max_new_tokens=6)

    def evaluate(rows, **changes):
        model = model_of_family("gpt2", max_position_embeddings=16)
        return evaluate_policy(model, tiny_tokenizer(), rows, digits_reward, config, **changes)

    with pytest.raises(ValueError, match=r"^dataset: the prompt of row 1 is empty"):
        evaluate([{"prompt": "a"}, {"prompt": ""}])
    with pytest.raises(ValueError, match=r"^dataset: the prompt of row 1 has 11 tokens, which"):
        evaluate([{"prompt": "a"}, {"prompt": "a" * 11}])


def test_long_checks_say_how_far_they_are(caplog, monkeypatch):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    rows = [{"prompt": "a"}] * 4000
    check_prompts("train_dataset", rows, tiny_tokenizer(), ModelLimits(1))
    notes = [record.getMessage() for record in caplog.records]
    assert notes[0] == "train_dataset: checked 2000 of 4000 prompts"


def test_rewards_are_checked_against_the_columns_of_each_set():
    def needs_answer(completions, answer, **_):
        return digits_reward(completions)

    bare = Dataset.from_dict({"prompt": ["a"]})
    with pytest.raises(TypeError, match=r"eval_dataset\['bare'\] gives it: missing .*'answer'"):
        LEPOTrainer(
            "no/such-model",
            needs_answer,
            LEPOConfig(output_dir="unused", use_cpu=True, report_to="none"),
            problems(4),
            {"full": problems(1), "bare": bare},
        )
