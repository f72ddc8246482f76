import dataclasses
import functools
import sys

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from lepo_kernels.rollout import choosing, static_decoder
from lepo_kernels.rollout import decoder as module
from lepo_kernels.rollout.latent_generate import latent_generate
from tests.rollout.models import (
    CACHES,
    EOS,
    GENERATING,
    PAD,
    VOCAB,
    prompts,
    settings,
    tiny_model,
    train_with_checkpointing,
)
from tests.seeds import seeded

# So many ids end a row that rows of 14 steps end one after the other.
MANY_EOS = tuple(range(20, 50))


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def assert_same(a, b, rows=slice(None)):
    """Equal samples, and equal numbers up to the model's floating-point noise."""
    for f in dataclasses.fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if not isinstance(x, torch.Tensor) or f.name.startswith("prompt"):
            continue
        x, y = pad_to(x[rows], y[rows] if y.shape[0] == a.row_keys.shape[0] else y)
        if x.dtype.is_floating_point:
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4, msg=f.name)
        else:
            assert torch.equal(x, y), f.name


def pad_to(x, y):
    """Cut the steps that only one of two rollouts has: a longer row was in its batch."""
    if x.dim() == 1:
        return x, y
    steps = min(x.shape[1], y.shape[1])
    return x[:, :steps], y[:, :steps]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", GENERATING)
def test_greedy_tokens_equal_transformers(family, cache):
    model = tiny_model(family)
    ids, mask = prompts()
    # 14 new tokens: prompt + completion passes the sliding windows of 9.
    expected = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=14, do_sample=False
    )
    config = settings(
        latent_length=0, latent_suffix_ids=(), do_sample=False, cache_implementation=cache
    )
    rollout = latent_generate(model, ids, mask, config)
    assert rollout.completion_ids.tolist() == expected[:, 6:].tolist()
    assert not rollout.latent_mask.any()


def test_greedy_stops_and_pads_like_transformers(llama):
    ids, mask = prompts()
    expected = llama.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=14, do_sample=False,
        eos_token_id=list(MANY_EOS),
    )  # fmt: skip
    config = settings(
        latent_length=0, latent_suffix_ids=(), do_sample=False, eos_token_ids=MANY_EOS
    )
    rollout = latent_generate(llama, ids, mask, config)
    assert rollout.completion_ids.tolist() == expected[:, 6:].tolist()
    ends = rollout.completion_ids == PAD
    assert torch.equal(rollout.completion_mask, ~ends)
    last = rollout.completion_mask.sum(dim=1) - 1
    stopped = torch.isin(rollout.completion_ids[torch.arange(3), last], torch.tensor(MANY_EOS))
    assert torch.equal(rollout.truncated, ~stopped)
    assert stopped.any()


def test_the_phases_of_a_row(llama):
    rollout = latent_generate(llama, *prompts(), settings())
    columns = torch.arange(14)
    assert torch.equal(rollout.latent_mask, (columns < 4).expand(3, -1))
    assert torch.equal(rollout.action_mask, ((columns < 4) | (columns >= 6)).expand(3, -1))
    assert rollout.completion_ids[:, 4:6].tolist() == [[7, 8]] * 3
    assert (rollout.log_probs[:, 4:6] == 0).all()
    assert (rollout.log_probs[rollout.action_mask] < 0).all()
    torch.testing.assert_close(rollout.latent_weights.sum(dim=-1), torch.ones(3, 4))
    assert (rollout.latent_count <= 12).all()
    used = torch.arange(12) < rollout.latent_count[..., None]
    assert (rollout.latent_weights[~used] == 0).all()
    # The shadow is the most likely entry, which the sampler lists first.
    assert torch.equal(rollout.completion_ids[:, :4], rollout.latent_ids[:, :, 0])
    assert rollout.truncated.all()


def test_a_suffix_without_latent_steps(llama):
    rollout = latent_generate(llama, *prompts(), settings(latent_length=0, max_new_tokens=3))
    assert rollout.completion_ids[:, :2].tolist() == [[7, 8]] * 3
    assert rollout.latent_ids.shape[:2] == (3, 0)


def test_latent_steps_to_the_end(llama):
    config = settings(latent_length=3, max_new_tokens=3, latent_suffix_ids=())
    rollout = latent_generate(llama, *prompts(), config)
    assert rollout.latent_mask.all()
    assert rollout.truncated.all()


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "noise", ["gumbel", "dirichlet", "gaussian", "soft", "categorical", "none"]
)
def test_a_row_does_not_depend_on_its_batch(llama, noise, cache):
    ids, mask = prompts()
    config = settings(noise=noise, eos_token_ids=MANY_EOS, cache_implementation=cache)
    keys = torch.tensor([11, 2**40, -3])
    together = latent_generate(llama, ids, mask, config, seed=9, row_keys=keys)
    for i in range(3):
        # Alone and without padding.
        used = mask[i].bool()
        alone = latent_generate(
            llama, ids[i : i + 1, used], mask[i : i + 1, used], config, seed=9,
            row_keys=keys[i : i + 1],
        )  # fmt: skip
        assert_same(together, alone, rows=slice(i, i + 1))


def test_seed_and_row_key_choose_the_sample(llama):
    ids, mask = prompts()
    # The same prompt three times, two of them under the same key.
    ids, mask = ids[:1].expand(3, -1), mask[:1].expand(3, -1)
    keys = torch.tensor([1, 2, 1])
    first = latent_generate(llama, ids, mask, settings(), seed=1, row_keys=keys)
    second = latent_generate(llama, ids, mask, settings(), seed=2, row_keys=keys)
    assert first.completion_ids[0].tolist() == first.completion_ids[2].tolist()
    assert first.completion_ids[0].tolist() != first.completion_ids[1].tolist()
    assert first.completion_ids[0].tolist() != second.completion_ids[0].tolist()
    assert first.row_keys.tolist() == [1, 2, 1]
    assert first.seed == 1


def test_dropping_finished_rows_changes_nothing(llama, monkeypatch):
    # 8 rows that end at different steps, so that the batch shrinks more than once.
    generator = torch.Generator().manual_seed(seeded(3))
    ids = torch.randint(50, VOCAB, (8, 3), generator=generator)
    mask = torch.ones_like(ids)
    mask[::3, 0] = 0
    config = settings(
        eos_token_ids=MANY_EOS, cold_stop_entropy=4.2, cold_stop_steps=1, max_new_tokens=30
    )
    sizes = []
    drop = module.Decoder._drop_finished

    def spy(self, choice):
        smaller = drop(self, choice)
        sizes.append(len(self.rows))
        assert self.live.all()
        return smaller

    monkeypatch.setattr(module.Decoder, "_drop_finished", spy)
    dropped = latent_generate(llama, ids, mask, config)
    assert len(sizes) > 1
    monkeypatch.setattr(module.Decoder, "_drop_finished", lambda self, choice: choice)
    assert_same(dropped, latent_generate(llama, ids, mask, config))


@pytest.mark.parametrize("cache", CACHES)
def test_steps_after_an_end_hold_nothing(llama, cache):
    config = settings(eos_token_ids=MANY_EOS, cache_implementation=cache, pad_token_id=3)
    rollout = latent_generate(llama, *prompts(), config)
    gone = ~rollout.completion_mask
    assert gone.any()
    assert (rollout.completion_ids[gone] == 3).all()
    assert not (rollout.action_mask | rollout.latent_mask)[gone].any()
    assert (rollout.log_probs[gone] == 0).all()
    assert (rollout.entropy[gone] == 0).all()
    # As many steps as the longest row.
    assert rollout.completion_mask.any(dim=0).all()


def test_eos_is_masked_out_of_latent_steps(llama):
    config = settings(eos_token_ids=MANY_EOS, top_k=None, top_p=1.0)
    rollout = latent_generate(llama, *prompts(), config)
    assert rollout.latent_mask[:, :4].all()
    assert (rollout.latent_count == VOCAB - len(MANY_EOS)).all()
    inside = torch.isin(rollout.latent_ids, torch.tensor(MANY_EOS)) & (rollout.latent_weights > 0)
    assert not inside.any()


def test_a_shadow_eos_can_stop_a_row(llama):
    # The noise-free shadows of the first row, of which the second is made an EOS id.
    free = settings(noise="none", eos_token_ids=(VOCAB - 1,), latent_eos="stop")
    shadow = latent_generate(llama, *prompts(), free).completion_ids[0]
    assert shadow[1] not in (shadow[0], 7, 8)
    config = settings(noise="none", eos_token_ids=(int(shadow[1]),), latent_eos="stop")
    rollout = latent_generate(llama, *prompts(), config)
    assert rollout.completion_ids[0, :3].tolist() == [*shadow[:2].tolist(), PAD]
    assert rollout.completion_mask[0].sum() == 2
    assert rollout.latent_mask[0].tolist()[:3] == [True, True, False]
    assert (rollout.latent_weights[0, 2:] == 0).all()
    assert not rollout.truncated[0]


def test_every_row_stopped_in_the_latent_phase(llama):
    free = settings(noise="none", eos_token_ids=(VOCAB - 1,), latent_eos="stop")
    shadow = latent_generate(llama, *prompts(), free).completion_ids[:, 0]
    config = settings(
        noise="none", eos_token_ids=tuple(sorted({*shadow.tolist()})), latent_eos="stop"
    )
    rollout = latent_generate(llama, *prompts(), config)
    assert rollout.completion_ids.shape == (3, 1)
    assert rollout.latent_ids.shape[1] == 1


def cold_stop(entropies, threshold, needed, consecutive=True):
    """Length of a latent phase with these entropies, counted by hand."""
    cold = 0
    for step, entropy in enumerate(entropies):
        if entropy < threshold:
            cold += 1
        elif consecutive:
            cold = 0
        if cold == needed:
            return step + 1
    return len(entropies)


def test_cold_stop_ends_the_latent_phase_of_a_row(llama):
    # 8 latent steps: enough for entropies that go below the threshold, above it, and below again.
    lengths = {"latent_length": 8, "max_new_tokens": 12, "noise": "none"}
    plain = latent_generate(llama, *prompts(), settings(**lengths)).entropy[:, :8].tolist()
    threshold = sorted(e for row in plain for e in row)[12]
    expected = [cold_stop(row, threshold, 2) for row in plain]
    # The data tell rows apart, and consecutive steps from all steps.
    assert len(set(expected)) > 1
    assert expected != [cold_stop(row, threshold, 2, consecutive=False) for row in plain]
    config = settings(**lengths, cold_stop_entropy=threshold, cold_stop_steps=2)
    rollout = latent_generate(llama, *prompts(), config)
    for i, length in enumerate(expected):
        assert rollout.latent_mask[i].nonzero()[:, 0].tolist() == list(range(length))
        assert rollout.completion_ids[i, length : length + 2].tolist() == [7, 8]
        assert rollout.action_mask[i, length : length + 2].tolist() == [False, False]
        assert rollout.action_mask[i, length + 2 :].all()
        for entries in (rollout.latent_ids, rollout.latent_weights, rollout.latent_count):
            assert (entries[i, length:] == 0).all()


@pytest.mark.parametrize("cache", CACHES)
def test_cold_stop_without_a_suffix_goes_on_with_tokens(llama, cache):
    config = settings(
        cold_stop_entropy=10.0,
        cold_stop_steps=2,
        latent_suffix_ids=(),
        cache_implementation=cache,
    )
    rollout = latent_generate(llama, *prompts(), config)
    assert rollout.latent_mask.sum(dim=1).tolist() == [2, 2, 2]
    assert torch.equal(rollout.action_mask, rollout.completion_mask)


def test_cold_stop_takes_exactly_its_steps(llama):
    # Every step is below the threshold.
    config = settings(cold_stop_entropy=10.0, cold_stop_steps=3)
    rollout = latent_generate(llama, *prompts(), config)
    assert rollout.latent_mask.sum(dim=1).tolist() == [3, 3, 3]


@pytest.mark.parametrize("noise", ["gumbel", "gaussian", "dirichlet", "soft", "categorical"])
def test_without_sampling_every_noise_is_off(llama, noise):
    config = settings(noise=noise, do_sample=False)
    rollout = latent_generate(llama, *prompts(), config)
    plain = latent_generate(llama, *prompts(), settings(noise="none", do_sample=False), seed=5)
    assert torch.equal(rollout.completion_ids, plain.completion_ids)
    assert torch.equal(rollout.latent_weights, plain.latent_weights)
    assert rollout.embedding_noise == 0.0


@pytest.mark.parametrize("noise", ["gumbel", "gaussian", "dirichlet", "soft", "categorical"])
def test_each_phase_has_a_switch_of_its_own(llama, noise):
    """Samples of one prompt: equal as far as neither phase before was drawn."""
    ids, mask = (x[:1].expand(6, -1) for x in prompts())

    def sample(latents, tokens):
        config = settings(
            noise=noise, do_latent_sample=latents, do_discrete_sample=tokens, temperature=2.0
        )
        return latent_generate(llama, ids, mask, config, seed=3)

    def differ(rows):
        # Products may round equal rows of a batch otherwise.
        return not torch.allclose(rows.double(), rows[:1].double(), rtol=0, atol=1e-4)

    calm = sample(False, True)
    assert not differ(calm.latent_weights)
    assert not differ(calm.log_probs[:, :4])
    assert differ(calm.completion_ids[:, 6:])
    assert calm.embedding_noise == 0.0
    greedy = sample(True, False)
    assert differ(greedy.log_probs[:, 1:4])
    # Each token is the likeliest after the row's own past.
    again = sample(True, True)
    torch.testing.assert_close(greedy.latent_weights, again.latent_weights, atol=1e-5, rtol=1e-4)
    assert bool((greedy.log_probs[:, 6] >= again.log_probs[:, 6] - 1e-4).all())
    neither = sample(False, False)
    plain = latent_generate(
        llama, ids, mask, settings(noise="none", do_sample=False, temperature=2.0)
    )
    assert torch.equal(neither.completion_ids, plain.completion_ids)
    assert torch.equal(neither.latent_weights, plain.latent_weights)


def test_categorical_takes_the_mean_of_its_draws(llama):
    rollout = latent_generate(llama, *prompts(), settings(noise="categorical", num_draws=4))
    assert rollout.latent_ids.shape == (3, 4, 4)
    assert (rollout.latent_weights == 0.25).all()


@pytest.mark.parametrize("noise", ["gaussian", "dirichlet", "soft", "none", "gumbel"])
def test_tau_belongs_to_gumbel_noise(llama, noise):
    cold, warm = settings(noise=noise), settings(noise=noise)
    object.__setattr__(warm, "tau", 1.5)  # which a config refuses where it has no effect
    rollouts = [latent_generate(llama, *prompts(), config) for config in (cold, warm)]
    same = torch.equal(rollouts[0].latent_weights, rollouts[1].latent_weights)
    assert same == (noise != "gumbel")


def test_mixtures_without_noise_are_the_filtered_softmax(llama):
    ids, mask = prompts()
    config = settings(noise="none", top_k=5, top_p=1.0, temperature=0.7, latent_eos="stop")
    rollout = latent_generate(llama, ids, mask, config)
    best = llama(input_ids=ids[:1]).logits[0, -1].topk(5)
    assert rollout.latent_ids[0, 0].tolist() == best.indices.tolist()
    torch.testing.assert_close(
        rollout.latent_weights[0, 0], (best.values / 0.7).softmax(dim=-1), atol=1e-5, rtol=0
    )


def test_tau_zero_feeds_one_id(llama):
    rollout = latent_generate(llama, *prompts(), settings(tau=0.0))
    assert (rollout.latent_weights.max(dim=-1).values == 1).all()


def test_gumbel_clamp_reaches_the_sampler(llama):
    free = latent_generate(llama, *prompts(), settings())
    clamped = latent_generate(llama, *prompts(), settings(noise_clamp=(-0.01, 0.01)))
    sharp = free.latent_weights.max(dim=-1).values.mean()
    assert clamped.latent_weights.max(dim=-1).values.mean() < sharp


def test_soft_noise_perturbs_the_embedding_only(llama):
    plain = latent_generate(llama, *prompts(), settings(noise="none"))
    soft = latent_generate(llama, *prompts(), settings(noise="soft", noise_scale=0.5))
    assert torch.equal(plain.latent_weights[:, 0], soft.latent_weights[:, 0])
    assert not torch.allclose(plain.latent_weights[:, 1], soft.latent_weights[:, 1])
    assert soft.embedding_noise == 0.5


def test_an_unlimited_top_k_stores_what_was_kept(llama, monkeypatch):
    # Narrower than the vocabulary, so that the mixtures count as wide.
    monkeypatch.setattr(choosing, "WIDE", 16)
    wide = latent_generate(llama, *prompts(), settings(top_k=None, top_p=0.5))
    assert wide.latent_ids.shape[2] == wide.latent_count.max() < VOCAB
    torch.testing.assert_close(wide.latent_weights.sum(dim=-1), torch.ones(3, 4))


def test_sampled_tokens_follow_the_filtered_softmax(llama):
    ids, mask = prompts()
    n = 4000  # a frequency of .2 is then known to .006 (one standard deviation)
    config = settings(
        latent_length=0, latent_suffix_ids=(), max_new_tokens=1, top_k=5, top_p=1.0, temperature=0.7
    )
    rollout = latent_generate(llama, ids[:1].expand(n, -1), mask[:1].expand(n, -1), config)
    logits = llama(input_ids=ids[:1]).logits[0, -1] / 0.7
    best = logits.topk(5)
    expected = torch.zeros(VOCAB).index_put((best.indices,), best.values.softmax(dim=-1))
    observed = torch.bincount(rollout.completion_ids[:, 0], minlength=VOCAB) / n
    torch.testing.assert_close(observed, expected, atol=0.035, rtol=0)


def test_modes_come_back(llama):
    model = tiny_model("llama")
    train_with_checkpointing(model)
    model.model.layers[0].eval()  # as someone who freezes a layer's dropout does
    before = [m.training for m in model.modules()]
    trained = latent_generate(model, *prompts(), settings())
    assert [m.training for m in model.modules()] == before
    assert torch.equal(
        trained.completion_ids, latent_generate(llama, *prompts(), settings()).completion_ids
    )

    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latent_generate(model, *prompts(), settings(), progress=fail)
    assert [m.training for m in model.modules()] == before


def test_progress_is_told_every_step(llama):
    seen = []
    latent_generate(
        llama, *prompts(), settings(), progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(i, 14) for i in range(1, 15)]


def test_nothing_needs_grad(llama):
    rollout = latent_generate(llama, *prompts(), settings())
    assert not rollout.log_probs.requires_grad
    assert not rollout.latent_weights.requires_grad
    # A plain tensor, not an inference one: the loss may use it in autograd.
    assert not rollout.latent_weights.is_inference()


def test_bfloat16(llama):
    model = tiny_model("llama").bfloat16()
    rollout = latent_generate(model, *prompts(), settings())
    assert rollout.latent_weights.dtype == rollout.log_probs.dtype == torch.float32
    torch.testing.assert_close(rollout.latent_weights.sum(dim=-1), torch.ones(3, 4))


def test_int32_prompts_and_bool_masks(llama):
    ids, mask = prompts()
    expected = latent_generate(llama, ids, mask, settings())
    assert_same(latent_generate(llama, ids.int(), mask.bool(), settings()), expected)


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: reads of values, and shapes that depend on values."""

    READS = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.equal.default,
        torch.ops.aten.masked_select.default,
        torch.ops.aten._unique2.default,
    )

    def __init__(self):
        super().__init__()
        self.steps = [0]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func.overloadpacket in INDEXING else ()
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        self.steps[-1] += func in self.READS or by_mask
        return func(*args, **(kwargs or {}))


INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)


@pytest.mark.parametrize("noise", ["gumbel", "dirichlet", "soft", "categorical"])
def test_at_most_one_wait_a_step(llama, noise, monkeypatch):
    """Counted over everything that a step runs: loop, sampler and model."""
    # The checks of values, which would not run on a GPU.
    for name, part in list(sys.modules.items()):
        if name.startswith("lepo_kernels.backends.") and hasattr(part, "checks_enabled"):
            monkeypatch.setattr(part, "checks_enabled", lambda device: False)
    waits = Waits()
    read = torch.Tensor.tolist

    def tolist(self):
        # On the CPU this reads memory without calling any op.
        waits.steps[-1] += 1
        return read(self)

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    ids = prompts()[0][:1].expand(3, -1)
    config = settings(noise=noise, max_new_tokens=12)
    with waits:
        rollout = latent_generate(
            llama, ids, torch.ones_like(ids), config, progress=lambda *_: waits.steps.append(0)
        )
    assert rollout.completion_ids.shape == (3, 12)
    _, *steps, _ = waits.steps
    # Entry i is from the end of step i to that of step i + 1. No row can end in a latent step or in
    # the suffix.
    assert steps == [0] * 6 + [1] * 5


# Rows end, or leave the latent phase, between looks; all of them may be done before the next one.
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "changes",
    [
        {"latent_eos": "stop"},
        {"latent_length": 0, "latent_suffix_ids": ()},
        {"latent_length": 8, "cold_stop_entropy": 4.2, "cold_stop_steps": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_rare_looks_change_nothing(llama, changes, cache, monkeypatch):
    config = settings(
        eos_token_ids=MANY_EOS, max_new_tokens=30, cache_implementation=cache, **changes
    )
    expected = latent_generate(llama, *prompts(), config, seed=8)
    for part in (module, static_decoder):
        monkeypatch.setattr(part, "steps_between_looks", lambda device: 4)
    told = []
    rare = latent_generate(
        llama, *prompts(), config, seed=8, progress=lambda done, _: told.append(done)
    )
    assert_same(rare, expected)
    assert rare.completion_ids.shape == expected.completion_ids.shape
    # The end was seen at the next multiple of 4.
    longest = expected.completion_ids.shape[1]
    assert longest < 30
    assert told[-1] == -(-longest // 4) * 4


def test_a_gpu_is_asked_more_rarely_than_a_cpu():
    assert module.steps_between_looks(torch.device("cpu")) == 1
    assert module.steps_between_looks(torch.device("cuda")) == 8


def wrong_prompts(change):
    ids, mask = prompts()
    return change(ids, mask)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda i, m: (i.float(), m), TypeError, "input_ids: expected dtype int64"),
        (lambda i, m: (i[0], m), ValueError, "input_ids: expected shape"),
        (lambda i, m: (i[:0], m[:0]), ValueError, "input_ids: expected at least one row"),
        (lambda i, m: (i, m[:, 1:]), ValueError, "attention_mask: expected shape"),
        (lambda i, m: (i, m.flip(1)), ValueError, "row 1 has a 0 after a 1"),
        (lambda i, m: (i, m * torch.tensor([[1], [1], [0]])), ValueError, "row 2 has none"),
        (lambda i, m: (i + VOCAB, m), ValueError, "input_ids: expected values in"),
    ],
)
def test_bad_prompts_are_named(llama, change, error, match):
    with pytest.raises(error, match=match):
        latent_generate(llama, *wrong_prompts(change), settings())


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (
            {"eos_token_ids": (EOS, VOCAB)},
            r"eos_token_ids: expected ids in \[0, 131\), got \[131\]",
        ),
        ({"latent_suffix_ids": (VOCAB + 2,)}, "latent_suffix_ids"),
        ({"pad_token_id": VOCAB}, "pad_token_id"),
    ],
)
def test_ids_outside_the_vocabulary_are_named(llama, overrides, match):
    with pytest.raises(ValueError, match=match):
        latent_generate(llama, *prompts(), settings(**overrides))


def test_bad_arguments_are_named(llama):
    ids, mask = prompts()
    with pytest.raises(TypeError, match="config: expected a LatentGenerationConfig, got dict"):
        latent_generate(llama, ids, mask, {})
    with pytest.raises(ValueError, match="row_keys: expected shape"):
        latent_generate(llama, ids, mask, settings(), row_keys=torch.arange(2))
    with pytest.raises(TypeError, match="seed"):
        latent_generate(llama, ids, mask, settings(), seed=1.5)


def test_models_that_cannot_be_served_are_named():
    ids, mask = prompts()
    with pytest.raises(TypeError, match="model: expected a transformers causal LM, got Linear"):
        latent_generate(torch.nn.Linear(2, 2), ids, mask, settings())
    tiny = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2, "vocab_size": 9}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**tiny))
    with pytest.raises(ValueError, match="decoder-only"):
        latent_generate(t5, ids, mask, settings())
    headless = tiny_model("llama").model
    with pytest.raises(ValueError, match="language-model head"):
        latent_generate(headless, ids, mask, settings())


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])  # full and sliding windows
def test_samples_of_a_prompt_share_its_pass(family, cache, monkeypatch):
    model = tiny_model(family)
    ids, mask = prompts()
    config = settings(cache_implementation=cache, latent_suffix_ids=(7,))
    apart = latent_generate(
        model, ids.repeat_interleave(3, dim=0), mask.repeat_interleave(3, dim=0), config, seed=5
    )
    widths = []
    plain = model.forward

    def forward(*args, **kwargs):
        fed = kwargs.get("input_ids")
        widths.append((kwargs["inputs_embeds"] if fed is None else fed).shape[0])
        return plain(*args, **kwargs)

    monkeypatch.setattr(model, "forward", functools.wraps(plain)(forward))
    together = latent_generate(model, ids, mask, config, num_return_sequences=3, seed=5)
    assert_same(apart, together)
    assert together.prompt_ids.equal(apart.prompt_ids)
    assert widths[0] == len(ids)
    assert widths[1] == len(ids) * 3
