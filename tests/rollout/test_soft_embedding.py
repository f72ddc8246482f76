import copy

import pytest
import torch
import transformers

from lepo_kernels import sample_latent
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.soft_embedding import SoftEmbedding, add_embedding_noise, soft_inputs
from tests.rollout.models import FAMILIES, PAD, VOCAB, prompts, settings, tiny_model
from tests.seeds import seeded


def full_ids(rollout):
    return torch.cat([rollout.prompt_ids, rollout.completion_ids], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_id_is_embedded_as_the_model_does(family, dtype):
    model = tiny_model(family).to(dtype)
    ids = torch.arange(VOCAB)
    embedded = SoftEmbedding(model).mix(ids[:, None], torch.ones(VOCAB, 1))
    assert torch.equal(embedded, model.get_input_embeddings()(ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_mixtures_are_linear_in_what_the_model_embeds(family):
    model = tiny_model(family)
    ids = torch.tensor([[[3, 9, 3], [130, 0, 5]]])  # a duplicate, and both ends of the table
    weights = torch.tensor([[[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]])
    expected = (weights[..., None] * model.get_input_embeddings()(ids)).sum(dim=-2)
    torch.testing.assert_close(SoftEmbedding(model).mix(ids, weights), expected)


# Those of llama and others have a padding_idx, whose row training leaves as it is.
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_go_where_those_of_the_models_embedding_go(family):
    model = tiny_model(family)
    embedding = model.get_input_embeddings()
    ids = torch.tensor([[3, PAD, 3], [PAD, PAD, 130]])
    weights = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]])
    upstream = torch.randn(2, 32, generator=torch.Generator().manual_seed(seeded(2)))
    looked_up = (weights[..., None] * embedding(ids)).sum(dim=-2)
    (expected,) = torch.autograd.grad(looked_up, embedding.weight, upstream)
    mixed = SoftEmbedding(model).mix(ids, weights)
    (ours,) = torch.autograd.grad(mixed, embedding.weight, upstream)
    assert ours[130].ne(0).all()
    assert ours[PAD].eq(0).all() == (embedding.padding_idx == PAD)
    torch.testing.assert_close(ours, expected)


class Shifted(torch.nn.Embedding):
    """An embedding of a kind nobody has heard of."""

    def forward(self, ids):
        return super().forward(ids) * 2 + 1


def test_an_unknown_embedding_module_is_looked_up():
    model = tiny_model("llama")
    model.set_input_embeddings(Shifted(VOCAB, 32))
    ids = torch.tensor([[3, 9], [4, 7]])
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    mixed = SoftEmbedding(model).mix(ids, weights)
    expected = (weights[..., None] * model.get_input_embeddings()(ids)).sum(dim=-2)
    torch.testing.assert_close(mixed, expected)
    assert torch.equal(mixed[1], model.get_input_embeddings()(ids[1, :1])[0])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_forward_put_on_the_embedding_is_run(family):
    model = tiny_model(family)
    embedding = model.get_input_embeddings()
    plain = embedding.forward
    embedding.forward = lambda ids: 1.5 * plain(ids)
    ids = torch.tensor([[3], [9]])
    mixed = SoftEmbedding(model).mix(ids, torch.ones(2, 1))
    assert torch.equal(mixed, embedding(ids)[:, 0])


def test_a_scale_that_is_not_what_the_module_does_is_not_believed():
    model = tiny_model("gemma2")
    embedding = model.get_input_embeddings()
    ids, weights = torch.tensor([[3, 9]]), torch.tensor([[0.25, 0.75]])
    embedding.forward = lambda ids: torch.nn.functional.embedding(ids, embedding.weight) * 7
    expected = (weights[..., None] * embedding(ids)).sum(dim=-2)
    torch.testing.assert_close(SoftEmbedding(model).mix(ids, weights), expected)


def test_models_with_per_layer_embeddings_are_refused():
    text = {
        "vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 40,
        "num_kv_shared_layers": 0, "laurel_rank": 2, "layer_types": ["full_attention"] * 2,
    }  # fmt: skip
    with torch.device("meta"):
        model = transformers.Gemma3nForCausalLM(transformers.Gemma3nTextConfig(**text))
    with pytest.raises(ValueError, match="per-layer embeddings"):
        SoftEmbedding(model)


def test_the_noise_of_an_embedding_is_its_own():
    embedding = torch.randn(3, 32, generator=torch.Generator().manual_seed(seeded(0)))
    keys = torch.tensor([5, 6, 7])
    noisy = add_embedding_noise(embedding, 0.5, seed=1, row_keys=keys, step=4)
    # Row 2 alone, its step in a tensor, as the training forward asks for it.
    alone = add_embedding_noise(
        embedding[2:], 0.5, seed=1, row_keys=keys[2:], step=torch.tensor([4])
    )
    assert torch.equal(noisy[2:], alone)
    for change in ({"seed": 2}, {"row_keys": keys + 9}, {"step": 5}):
        other = add_embedding_noise(
            embedding, 0.5, **({"seed": 1, "row_keys": keys, "step": 4} | change)
        )
        assert not torch.isclose(other, noisy).any()


def test_the_noise_has_the_strength_asked_for():
    # 200,000 numbers: the deviation of a sample's sigma is .0016 of it, its mean's .0022.
    embedding = torch.full((100, 2000), 3.0)
    noisy = add_embedding_noise(embedding, 0.5, seed=1, row_keys=torch.arange(100), step=0)
    noise = (noisy - embedding) / 3.0
    assert abs(float(noise.std()) - 0.5) < 0.005
    assert abs(float(noise.mean())) < 0.005


@pytest.mark.parametrize("noise", ["gumbel", "soft"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_soft_inputs_embeds_what_the_rollout_fed(family, noise, monkeypatch):
    model = tiny_model(family)
    fed = []
    forward = model.forward

    def listen(*args, inputs_embeds=None, **kwargs):
        if inputs_embeds is not None:
            fed.append(inputs_embeds)
        return forward(*args, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setitem(model.__dict__, "forward", listen)
    # Some rows leave the latent phase early, and share their batch with latent ones.
    surest = latent_generate(model, *prompts(), settings(noise=noise), seed=3).entropy[:, :3]
    threshold = float(surest.min(dim=1).values.median())
    config = settings(noise=noise, cold_stop_entropy=threshold, cold_stop_steps=1)
    fed.clear()
    rollout = latent_generate(model, *prompts(), config, seed=3)
    assert len(set(rollout.latent_mask.sum(dim=1).tolist())) > 1
    with soft_inputs(model, rollout):
        embedded = model.get_input_embeddings()(full_ids(rollout))
    # The last step is never fed, and what is fed after a row's end does not matter.
    used = rollout.completion_mask[:, :-1]
    torch.testing.assert_close(embedded[:, 6:-1][used], torch.cat(fed, dim=1)[used])


@pytest.mark.parametrize("columns", [6, 8, 20])
def test_soft_inputs_takes_any_number_of_steps(columns):
    model = tiny_model("llama")
    rollout = latent_generate(model, *prompts(), settings())
    with soft_inputs(model, rollout):
        whole = model.get_input_embeddings()(full_ids(rollout))
        part = model.get_input_embeddings()(full_ids(rollout)[:, :columns])
    assert torch.equal(part, whole[:, :columns])


def test_soft_inputs_leaves_the_model_as_it_was():
    model = tiny_model("llama")
    rollout = latent_generate(model, *prompts(), settings())
    before = copy.copy(model.get_input_embeddings().__dict__)
    plain = model(input_ids=full_ids(rollout)).logits
    with soft_inputs(model, rollout):
        inside = model(input_ids=full_ids(rollout)).logits
    assert not torch.allclose(inside, plain)
    assert model.get_input_embeddings().__dict__ == before
    with pytest.raises(KeyError), soft_inputs(model, rollout):
        raise KeyError
    assert torch.equal(model(input_ids=full_ids(rollout)).logits, plain)
    assert model.get_input_embeddings().__dict__ == before


def test_soft_inputs_gives_back_a_forward_of_another_library():
    model = tiny_model("llama")
    embedding = model.get_input_embeddings()
    rollout = latent_generate(model, *prompts(), settings())
    with soft_inputs(model, rollout):
        expected = embedding(full_ids(rollout))
    plain = embedding.forward
    embedding.forward = hooked = lambda ids: plain(ids)  # as accelerate's offloading does
    with soft_inputs(model, rollout):
        torch.testing.assert_close(embedding(full_ids(rollout)), expected)
    assert embedding.forward is hooked


def test_soft_inputs_names_a_call_of_another_shape():
    model = tiny_model("llama")
    rollout = latent_generate(model, *prompts(), settings())
    ids = full_ids(rollout)
    for wrong in (ids[:2], ids[:, :5], torch.cat([ids, ids], dim=1)):
        with (
            soft_inputs(model, rollout),
            pytest.raises(ValueError, match=r"input_ids: inside .* expected shape \[3, 6 to 20\]"),
        ):
            model(input_ids=wrong)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_latent_step_is_a_draw_and_its_mixture(family):
    soft = SoftEmbedding(tiny_model(family))
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(seeded(3)))
    draw = {"tau": 0.5, "top_k": 12, "seed": 5, "row_keys": torch.arange(3), "step": 2}
    sample, embedding = soft.latent_step(logits, **draw)
    expected = sample_latent(logits, **draw)
    for ours, apart in zip(sample, expected, strict=True):
        assert ours is apart or torch.equal(ours, apart)
    assert torch.equal(embedding, soft.mix(sample.ids, sample.weights))


def test_logits_wider_than_the_table_are_embedded_apart():
    soft = SoftEmbedding(tiny_model("llama"))
    wide = torch.randn(3, VOCAB + 5, generator=torch.Generator().manual_seed(seeded(3)))
    _, embedding = soft.latent_step(wide, top_k=12, seed=5, row_keys=torch.arange(3))
    assert embedding is None
