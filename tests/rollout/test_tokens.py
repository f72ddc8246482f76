"""Rows of the head without a token are never sampled and never mixed, and count all the same."""

from types import SimpleNamespace

import pytest
import torch

from lepo_kernels.rollout.config import LatentGenerationConfig, end_tokens
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.policy_log_probs import policy_log_probs
from lepo_kernels.rollout.tokens import token_range
from tests.rollout.models import settings
from tests.tiny import tiny_model, tiny_tokenizer

TOKENS, ROWS = 102, 164


def sampled(rollout):
    latent = rollout.latent_ids[rollout.latent_weights > 0]
    return torch.cat([rollout.completion_ids[rollout.completion_mask], latent])


def tiny_prompts():
    ids = torch.tensor([[0, 0, 7, 9], [8, 9, 10, 11]])
    return ids, (ids != 0).long()


@pytest.mark.parametrize(
    "noise", ["gumbel", "dirichlet", "gaussian", "soft", "categorical", "none"]
)
@pytest.mark.parametrize("latent_eos", ["mask", "stop"])
@pytest.mark.parametrize("top_k", [None, 30])
def test_only_tokens_are_chosen(noise, latent_eos, top_k):
    model = tiny_model(vocab_size=ROWS)
    tokens = end_tokens(tiny_tokenizer(), model)
    assert tokens["num_tokens"] == TOKENS
    for sample in (True, False):
        config = LatentGenerationConfig(
            **tokens, latent_length=3, max_new_tokens=12, noise=noise, latent_eos=latent_eos,
            top_k=top_k, top_p=1.0, do_sample=sample,
        )  # fmt: skip
        rollout = latent_generate(
            model, *tiny_prompts(), config, num_return_sequences=8 if sample else 1
        )
        assert (sampled(rollout) < TOKENS).all()


def test_without_the_number_every_row_is_a_token():
    rollout = latent_generate(
        tiny_model(vocab_size=ROWS), *tiny_prompts(), settings(max_new_tokens=24),
        num_return_sequences=8,
    )  # fmt: skip
    assert (sampled(rollout) >= TOKENS).any()


def test_rows_without_a_token_count_in_the_policy():
    # pi is a softmax over all rows of the head, in the rollout and in training.
    model = tiny_model(vocab_size=ROWS)
    config = LatentGenerationConfig(
        **end_tokens(tiny_tokenizer(), model), latent_length=2, max_new_tokens=8
    )
    ids, mask = tiny_prompts()
    rollout = latent_generate(model, ids, mask, config)
    policy = policy_log_probs(model, rollout, rollout.action_mask)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(policy.log_prob, rollout.log_probs[rollout.action_mask], **close)
    torch.testing.assert_close(policy.entropy, rollout.entropy[rollout.action_mask], **close)
    with torch.no_grad():
        logits = model(ids[1:2]).logits[0, -1]
    weights = torch.zeros(ROWS).index_add_(
        0, rollout.latent_ids[1, 0], rollout.latent_weights[1, 0]
    )
    expected = (weights * logits.log_softmax(-1)).sum()
    torch.testing.assert_close(rollout.log_probs[1, 0], expected, **close)


def test_the_noise_of_a_token_does_not_depend_on_the_padding_of_the_head():
    # What is sampled is what the same logits without the rows behind them give.
    model = tiny_model(vocab_size=ROWS)
    trimmed = tiny_model(vocab_size=ROWS)
    trimmed.resize_token_embeddings(TOKENS)
    settings = {**end_tokens(tiny_tokenizer()), "latent_length": 3, "max_new_tokens": 12}
    padded, short = (
        latent_generate(each, *tiny_prompts(), LatentGenerationConfig(**settings), seed=5)
        for each in (model, trimmed)
    )
    assert torch.equal(padded.completion_ids, short.completion_ids)
    assert torch.equal(padded.latent_ids, short.latent_ids)
    torch.testing.assert_close(padded.latent_weights, short.latent_weights, atol=1e-4, rtol=1e-4)


def test_a_head_of_more_rows_than_the_table_samples_what_can_be_embedded():
    model = tiny_model()
    torch.manual_seed(1)
    model.lm_head = torch.nn.Linear(32, ROWS, bias=False)
    config = settings(top_k=None, top_p=1.0, max_new_tokens=24)
    rollout = latent_generate(model, *tiny_prompts(), config, num_return_sequences=8)
    assert (sampled(rollout) < TOKENS).all()


def test_suppressed_ids_are_never_chosen():
    model = tiny_model()
    drop = tuple(range(20, 90))
    config = settings(max_new_tokens=24, suppress_tokens=drop, top_k=None, top_p=1.0)
    rollout = latent_generate(model, *tiny_prompts(), config, num_return_sequences=8)
    assert not torch.isin(sampled(rollout), torch.tensor(drop)).any()


def vocabulary(**tokens):
    return SimpleNamespace(
        get_vocab=lambda: tokens,
        vocab_size=min(len(tokens), 4),
        eos_token_id=1,
        pad_token_id=0,
        convert_ids_to_tokens=lambda i: next(t for t, j in tokens.items() if i == j),
    )


def test_added_tokens_and_gaps_are_seen():
    tokenizer = vocabulary(a=0, b=1, c=2, d=3, added=7)
    assert token_range(tokenizer) == {"num_tokens": 8, "suppress_tokens": (4, 5, 6)}
    assert token_range(None) == {}
    # An id that ends a row stays, with or without a token.
    ends = end_tokens(
        tokenizer, SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[5, 9]))
    )
    assert ends["eos_token_ids"] == (1, 5, 9)
    assert (ends["num_tokens"], ends["suppress_tokens"]) == (10, (4, 6))


def test_a_tokenizer_larger_than_the_model_is_refused():
    with pytest.raises(
        ValueError, match=r"^processing_class: the tokenizer has 102 tokens, the model 64 rows"
    ):
        end_tokens(tiny_tokenizer(), tiny_model(vocab_size=64))


def test_added_tokens_beyond_the_model_are_told():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"])
    model = tiny_model()
    with pytest.warns(UserWarning, match="1 added tokens .* '<image>', lie beyond the model's 102"):
        tokens = end_tokens(tokenizer, model)
    assert tokens["num_tokens"] == TOKENS
    ids = torch.tensor([[7, tokenizer.convert_tokens_to_ids("<image>")]])
    with pytest.raises(ValueError, match=r"input_ids: expected values in \[0, 102\), got 102"):
        latent_generate(model, ids, torch.ones_like(ids), settings())


def test_bad_settings_are_named():
    for name, value in (("num_tokens", 0), ("num_tokens", 1.0), ("suppress_tokens", (-1,))):
        with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
            settings(**{name: value})
    with pytest.raises(ValueError, match="suppress_tokens: expected no EOS id"):
        settings(suppress_tokens=(2,))
