"""Shared prompts and packed rows give what the plain forward gives; and who cannot have them."""

import dataclasses
import logging

import pytest
import torch
import transformers

from lepo_kernels.rollout import layout_choice, shared_prompts
from lepo_kernels.rollout._modules import unwrap_model
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.layout import LayoutSettings, PlainRows, Steps
from lepo_kernels.rollout.layout_choice import choose_layout
from lepo_kernels.rollout.packed_rows import PackedRows, can_pack, fill_bins
from lepo_kernels.rollout.policy_log_probs import policy_log_probs
from lepo_kernels.rollout.selected_steps import run_on_steps
from lepo_kernels.rollout.shared_prompts import SharedPrompts, cut_by_length, prompt_groups
from tests.rollout.models import (
    FAMILIES,
    SHAPE,
    VOCAB,
    prompts,
    settings,
    tiny_model,
    train_with_checkpointing,
)

# Ids that end rows at different steps: padding on both sides.
MANY_EOS = tuple(range(20, 40))
SAMPLES = 4
PLAIN = LayoutSettings(share_prompts=False, packing=False)
EVERY = LayoutSettings()
LAYOUTS = {
    SharedPrompts: LayoutSettings(share_prompts=True, packing=False),
    PackedRows: LayoutSettings(share_prompts=False, packing=True),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda kind: kind.__name__)

# Dropout would draw other numbers.
OVERRIDES = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}
# Attention without sdpa, which makes NaN of fully masked rows in float64.
EAGER = ("gemma2",)
# The softmax of one, and the rotation of the other are formed in float32 whatever the dtype.
FLOAT32_INSIDE = ("gemma2", "cohere")


@pytest.fixture
def free_passes(monkeypatch):
    """At the sizes of a test, a pass costs more than all of its tokens."""
    monkeypatch.setattr(shared_prompts, "_PASS", 0)


def sampled(model, padded=True, **overrides):
    """[12] rows: four samples of each of three prompts, out of order, padded on both sides."""
    ids, mask = prompts()
    ends = {"eos_token_ids": MANY_EOS}
    if not padded:
        # An EOS that is no token: no row ends early.
        ends = {"eos_token_ids": (VOCAB - 1,), "num_tokens": VOCAB - 1}
        ids, mask = ids.clamp(min=3), torch.ones_like(mask)
    config = settings(**(ends | overrides))
    rollout = latent_generate(model, ids, mask, config, num_return_sequences=SAMPLES, seed=4)
    order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(3))
    return rollout.select(order)


def asking(rollout, *places):
    """The rollout with (row, step) alone for actions."""
    wanted = torch.zeros_like(rollout.action_mask)
    for place in places:
        wanted[place] = True
    return dataclasses.replace(rollout, action_mask=rollout.action_mask & wanted)


def ragged(rollout):
    """The rollout with no action of its even rows from step 3 on: two of them fit into a bin."""
    return asking(rollout, (slice(0, None, 2), slice(3)), (slice(1, None, 2),))


def steps_of(rollout):
    return Steps(*rollout.action_mask.nonzero(as_tuple=True))


def chosen(model, rollout, allowed=EVERY):
    """The kind of layout of a forward over all actions."""
    at = steps_of(rollout)
    part = rollout.crop(int(at.step.max()) + 1)
    return type(choose_layout(unwrap_model(model), part, at, allowed))


def hidden_of(model, rollout, allowed):
    """[M, D], the hidden states that predict the actions."""
    _, (hidden, *_), *_ = run_on_steps(
        model,
        rollout,
        rollout.action_mask,
        lambda head, hidden, steps: (hidden,),
        layout=allowed,
    )
    return hidden


def gradients(model, loss):
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {n: g for (n, _), g in zip(named, found, strict=True) if g is not None}


def outputs_of(model, rollout, allowed):
    """Hidden states, and the gradients of a sum of them, by name."""
    hidden = hidden_of(model, rollout, allowed)
    weights = torch.linspace(-1, 1, hidden.numel(), dtype=torch.float64).reshape(hidden.shape)
    return {"hidden": hidden.detach()} | gradients(model, (hidden.double() * weights).sum())


def rms(x):
    return float(x.square().mean().sqrt())


def assert_same_as_plain(model, rollout, layout, rounded=None):
    """In float64; ``rounded`` are the outputs of a plain float32 forward, where one is inside."""
    assert chosen(model, rollout, LAYOUTS[layout]) is layout
    expected, found = (outputs_of(model, rollout, which) for which in (PLAIN, LAYOUTS[layout]))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if rounded is not None:
            # Two results, each rounded at one stage of those that all of float32 is rounded at.
            assert rms(value - expected[name]) <= 2 * rms(rounded[name] - expected[name]), name
            continue
        # A few hundred roundings of numbers around 1, and what a layer makes of them; gradients go
        # through rotary angles that models form in float32.
        allowed = (1e-12 if name == "hidden" else 1e-6) * float(expected[name].abs().max())
        torch.testing.assert_close(
            value, expected[name], atol=allowed, rtol=0, msg=lambda text, name=name: name + text
        )


@pytest.mark.usefixtures("free_passes")
@each_layout
@pytest.mark.parametrize("latent_length", [0, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_plain_forward(family, latent_length, layout):
    model = tiny_model(family, **OVERRIDES.get(family, {})).train()
    rollout = ragged(sampled(model, padded=family not in EAGER, latent_length=latent_length))
    rounded = outputs_of(model, rollout, PLAIN) if family in FLOAT32_INSIDE else None
    assert_same_as_plain(model.double(), rollout, layout, rounded)


@pytest.mark.usefixtures("free_passes")
@each_layout
def test_a_window_shorter_than_the_prompt(layout):
    model = tiny_model("mistral", sliding_window=4).double().train()
    assert_same_as_plain(model, ragged(sampled(model)), layout)


@pytest.mark.usefixtures("free_passes")
@each_layout
def test_equals_the_plain_forward_under_lora(layout):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(tiny_model("llama"), config).double().train()
    assert_same_as_plain(model, ragged(sampled(model)), layout)


@pytest.mark.usefixtures("free_passes")
@each_layout
def test_noise_on_embeddings_is_found_again(layout):
    model = tiny_model("llama").double().train()
    rollout = ragged(sampled(model, noise="soft", noise_scale=0.5))
    assert_same_as_plain(model, rollout, layout)


@pytest.mark.usefixtures("free_passes")
@each_layout
def test_steps_that_are_few(layout):
    model = tiny_model("llama").double().train()
    # First steps, which the prompt alone predicts, and later ones of two rows.
    rollout = asking(sampled(model), (slice(2, None), 0), (0, slice(1, None, 3)), (1, 2))
    assert_same_as_plain(model, rollout, layout)


@pytest.mark.usefixtures("free_passes")
@each_layout
def test_experts_that_rows_share(layout):
    """In float32, as their products have no float64: a hundred roundings, amplified tenfold."""
    model = with_experts()
    rollout = ragged(sampled(model))
    assert chosen(model, rollout, LAYOUTS[layout]) is layout
    plain, found = (hidden_of(model, rollout, x).detach() for x in (PLAIN, LAYOUTS[layout]))
    close = 1000 * torch.finfo(torch.float32).eps * float(plain.abs().max())
    torch.testing.assert_close(found, plain, atol=close, rtol=0)


def test_rows_of_like_length_are_run_together():
    model = tiny_model("llama").double().train()
    rollout = sampled(model)
    at = steps_of(rollout)
    layout = SharedPrompts(model, rollout, at)
    layout._passes = [(torch.arange(4), 13), (torch.tensor([7, 5, 11, 9, 4, 6, 8, 10]), 13)]
    hidden = []
    handle = model.lm_head.register_forward_pre_hook(
        lambda module, args: hidden.append(layout.hidden_of_steps(args[0], at))
    )
    with layout.entered():
        model(**layout.arguments())
    handle.remove()
    assert hidden[:2] == [None, None]
    torch.testing.assert_close(hidden[2], hidden_of(model, rollout, PLAIN), atol=1e-11, rtol=0)


@pytest.mark.parametrize(
    ("widths", "cost", "sizes"),
    [
        ([9, 9, 9], 0, [3]),
        ([9, 9, 2, 2], 13, [2, 2]),  # 14 tokens of padding saved
        ([9, 9, 2, 2], 14, [4]),
        ([9, 5, 5, 1], 0, [1, 2, 1]),
        ([4, 0, 0], 0, [1, 2]),
        ([0, 0], 0, [2]),
    ],
)
def test_cuts_where_padding_is_saved(widths, cost, sizes):
    assert cut_by_length(widths, cost) == sizes


@pytest.mark.parametrize(
    ("lengths", "width", "starts", "used"),
    [
        ([4, 4], 4, [0, 4], [4, 4]),
        ([1, 4, 3], 4, [7, 0, 4], [4, 4]),
        ([2, 3, 1], 6, [3, 0, 5], [6]),
    ],
)
def test_bins_are_filled(lengths, width, starts, used):
    assert fill_bins(lengths, width) == (starts, used)


def test_no_row_sees_another():
    model = tiny_model("llama")
    rollout = sampled(model)
    before = hidden_of(model, rollout, LAYOUTS[PackedRows])
    row = steps_of(rollout).row
    for changed in (0, 7):
        ids = rollout.prompt_ids.clone()
        ids[changed, -1] = 3 + (ids[changed, -1] + 1) % (VOCAB - 3)
        other = dataclasses.replace(rollout, prompt_ids=ids)
        after = hidden_of(model, other, LAYOUTS[PackedRows])
        assert torch.equal(after[row != changed], before[row != changed])
        assert not torch.equal(after[row == changed], before[row == changed])


def test_a_gradient_of_one_row_is_its_own():
    model = tiny_model("llama").double()
    rollout = sampled(model)
    of_row = steps_of(rollout).row == 5
    alone = rollout.select(torch.tensor([5]))
    expected = gradients(model, hidden_of(model, alone, PLAIN).sum())
    found = gradients(model, hidden_of(model, rollout, LAYOUTS[PackedRows])[of_row].sum())
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, atol=1e-6 * largest, rtol=0)


@pytest.mark.parametrize("allowed", [*LAYOUTS.values(), EVERY], ids=str)
def test_log_probs_are_the_rollouts_own(allowed):
    model = tiny_model("llama")
    rollout = sampled(model)
    policy = policy_log_probs(model, rollout, rollout.action_mask, **allowed._asdict())
    expected = rollout.log_probs[rollout.action_mask]
    torch.testing.assert_close(policy.log_prob, expected, atol=1e-4, rtol=0)


def test_what_is_run(monkeypatch):
    model = tiny_model("llama")
    rollout = ragged(sampled(model))
    monkeypatch.setattr(shared_prompts, "_PASS", 30)  # one pass of completions, not several
    chosen(model, rollout)  # so that what is tried out on the model is over
    seen = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: seen.append(tuple(args[0].shape))
    )
    for allowed in (*LAYOUTS.values(), PLAIN):
        hidden_of(model, rollout, allowed)
    handle.remove()
    prompts_alone, *completions, packed, plain = seen
    steps = int(steps_of(rollout).step.max())  # the last one is not fed
    assert (prompts_alone, plain) == ((3, 6), (12, 6 + steps))
    assert completions[0][1] == steps
    assert sum(rows for rows, _ in completions) == 12
    assert packed[0] < 12


def test_flash_attention_gets_one_bin():
    model = tiny_model("llama")
    rollout = sampled(model)
    model.config._attn_implementation = "flash_attention_2"
    layout = PackedRows(model, rollout, steps_of(rollout))
    fed = (rollout.action_mask * torch.arange(rollout.action_mask.shape[1])).amax(dim=1)
    real = int(rollout.prompt_mask.sum() + fed.sum())
    assert layout.arguments()["input_ids"].shape == (1, real)
    assert layout.tokens == real


@pytest.mark.usefixtures("free_passes")
def test_groups_of_unequal_sizes():
    model = tiny_model("llama").double().train()
    rollout = sampled(model)
    of_row = prompt_groups(rollout).of_row
    kept = torch.cat([(of_row == p).nonzero()[: p + 1, 0] for p in range(3)])  # 1, 2 and 3 rows
    assert_same_as_plain(model, rollout.select(kept), SharedPrompts)


def test_prompts_that_differ_in_padding_alone_are_two():
    model = tiny_model("llama")
    ids = torch.tensor([[0, 0, 5, 6], [0, 0, 5, 6]])
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1]])
    rollout = latent_generate(model, ids, mask, settings(), num_return_sequences=2)
    groups = prompt_groups(rollout)
    assert len(groups.first) == 2
    assert groups.of_row[0] == groups.of_row[1] != groups.of_row[2] == groups.of_row[3]
    assert set(groups.first.tolist()) == {0, 2}


def test_nothing_to_leave_out():
    model = tiny_model("llama")
    rollout = sampled(model, padded=False)
    of_row = prompt_groups(rollout).of_row
    distinct = rollout.select(torch.stack([(of_row == p).nonzero()[0, 0] for p in range(3)]))
    assert chosen(model, distinct) is PlainRows
    assert chosen(model, rollout.select(torch.tensor([0]))) is PlainRows
    assert chosen(model, rollout, PLAIN) is PlainRows


def test_the_fewest_tokens_are_chosen():
    """Prompts of many samples are shared; where they are short and completions differ, packed."""
    model = tiny_model("llama")
    rollout = sampled(model, padded=False).select(torch.arange(12).repeat(16))
    assert chosen(model, rollout) is SharedPrompts
    short = dataclasses.replace(
        rollout, prompt_ids=rollout.prompt_ids[:, :1], prompt_mask=rollout.prompt_mask[:, :1]
    )
    assert chosen(model, asking(short, (0,), (slice(1, None), slice(2)))) is PackedRows


def checkpointing():
    model = tiny_model("llama")
    train_with_checkpointing(model)
    return model


def scaled_by_length():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return tiny_model("llama", rope_parameters=rope)


def with_experts(**settings):
    shape = SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**shape, **settings))


def with_router_loss():
    return with_experts(output_router_logits=True)


def recurrent():
    return transformers.MambaForCausalLM(transformers.MambaConfig(**SHAPE))


@pytest.mark.usefixtures("free_passes")
@pytest.mark.parametrize(
    ("make", "reasons"),
    [
        (checkpointing, ["gradient checkpointing switches its cache off"]),
        (scaled_by_length, ["its rotary embedding changes"]),
        (with_router_loss, ["its router's loss"]),
        (recurrent, ["its cache holds other layers", "laid end to end"]),
    ],
)
def test_who_cannot_says_so_once(make, reasons, caplog):
    model = make()
    rollout = sampled(tiny_model("llama"))
    with caplog.at_level(logging.WARNING, logger="lepo_kernels.rollout.layout_choice"):
        for _ in range(2):
            chosen(model, rollout)
        messages = [text for text in caplog.messages if text.startswith("training runs")]
        assert len(messages) == len(reasons)
        for reason, message in zip(reasons, messages, strict=True):
            assert reason in message
        caplog.clear()
        assert chosen(make(), rollout, PLAIN) is PlainRows
        assert not [text for text in caplog.messages if text.startswith("training runs")]


@pytest.mark.usefixtures("free_passes")
def test_ranks_of_a_sharded_model_are_asked_whatever_their_rows_are(monkeypatch):
    """They gather weights for each other: all run equally many passes, or wait for ever."""
    asked = []
    monkeypatch.setattr(layout_choice, "sharding_of", lambda base: "its weights are a DTensor")
    monkeypatch.setattr(
        layout_choice, "_all_agree", lambda wanted, device: asked.append(wanted) or wanted
    )
    model = tiny_model("llama")
    rollout = ragged(sampled(model))
    assert chosen(model, rollout) is SharedPrompts
    none = Steps(*torch.zeros(12, 1, dtype=torch.bool).nonzero(as_tuple=True))
    assert type(choose_layout(model, rollout.crop(1), none, EVERY)) is PlainRows
    # First steps alone take no pass over completions.
    assert chosen(model, asking(rollout, (slice(None), 0))) is PlainRows
    assert asked == [True, False, False]


def test_what_is_tried_out_leaves_the_model_as_it_was():
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    assert can_pack(model)
    assert model.training
    assert not model.model.layers[0].training
