import copy

import pytest
import torch

from lepo_kernels.rollout import lm_head as module
from lepo_kernels.rollout.lm_head import LmHead
from tests.rollout.models import FAMILIES, VOCAB, in_float64, prompts, tiny_model
from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain

IDS = torch.tensor([3, 9, 130])


def with_bias(model):
    old = model.lm_head
    model.lm_head = torch.nn.Linear(old.in_features, old.out_features)
    model.lm_head.weight = old.weight
    return model


class Wrapped(torch.nn.Module):
    """A head the fused op does not know, as an adapter makes it."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, hidden):
        return self.linear(hidden)


def with_unknown_head(model):
    model.lm_head = Wrapped(model.lm_head)
    return model


def head_outputs(model, ids, mask, temperature):
    """What the head gives at IDS for every position [B, S]."""
    head = LmHead(model)

    def compute(hidden):
        rows = hidden.reshape(-1, hidden.shape[-1])
        return tuple(head.log_probs(rows, IDS.expand(len(rows), -1), temperature=temperature))

    with head.replaced(compute):
        outputs = model(input_ids=ids, attention_mask=mask)
    assert isinstance(outputs, tuple)
    return outputs


CASES = [(family, None) for family in FAMILIES]
CASES += [("llama", with_bias), ("gemma2", with_bias)]
# Scale, softcap and neither, through the unfused path.
CASES += [(family, with_unknown_head) for family in ("llama", "gemma2", "cohere", "granite")]


@pytest.mark.parametrize(("family", "change"), CASES)
def test_the_head_equals_the_models_logits(family, change):
    model = tiny_model(family)
    if change is not None:
        model = change(model)
    ids, mask = prompts()
    reference, oracle = copy.deepcopy(model), in_float64(model)
    temperature = 0.7

    def dense_outputs(model):
        logits = (model(input_ids=ids, attention_mask=mask).logits / temperature).flatten(0, 1)
        policy = torch.distributions.Categorical(logits=logits)
        return logits[:, IDS], logits.logsumexp(dim=-1), policy.entropy()

    plain, exact = dense_outputs(reference), dense_outputs(oracle)
    assert LmHead(model).fused == (change is not with_unknown_head)
    # One weight per number, so that every part of the gradient differs.
    upstream = [
        torch.randn(e.shape, generator=torch.Generator().manual_seed(seeded(1))) for e in plain
    ]
    outputs = head_outputs(model, ids, mask, temperature)
    for each in zip(outputs, plain, exact, upstream, strict=True):
        assert_no_worse_than_plain(*each[:3], torch.float32, VOCAB)
        for x in each[:3]:
            (x * each[3]).sum().backward(retain_graph=True)
    parameters = (x.parameters() for x in (model, reference, oracle))
    for each in zip(*parameters, strict=True):
        ours, plain_gradient, exact_gradient = (p.grad for p in each)
        assert (ours is None) == (plain_gradient is None)
        if ours is not None:
            assert_no_worse_than_plain(ours, plain_gradient, exact_gradient, torch.float32, VOCAB)


def test_a_forward_put_on_the_head_is_run():
    model = tiny_model("llama")
    ids, mask = prompts()
    plain = model.lm_head.forward
    model.lm_head.forward = lambda hidden: 1.5 * plain(hidden)
    logits, lse, _ = head_outputs(model, ids, mask, 1.0)
    expected = model(input_ids=ids, attention_mask=mask).logits.flatten(0, 1)
    torch.testing.assert_close(logits, expected[:, IDS])
    torch.testing.assert_close(lse, expected.logsumexp(dim=-1))


def test_the_unfused_head_works_in_chunks(monkeypatch):
    model = with_unknown_head(tiny_model("gemma2"))
    ids, mask = prompts()
    whole = head_outputs(model, ids, mask, 1.0)
    rows = []
    forward = model.lm_head.linear.forward
    monkeypatch.setitem(
        model.lm_head.linear.__dict__, "forward", lambda x: (rows.append(len(x)), forward(x))[1]
    )
    # Seven rows of logits at a time, of 18: the last chunk is ragged.
    monkeypatch.setattr(module, "_CHUNK_BYTES", 4 * VOCAB * 7)
    chunked = head_outputs(model, ids, mask, 1.0)
    assert rows == [7, 7, 4]
    for a, b in zip(chunked, whole, strict=True):
        torch.testing.assert_close(a, b)


def test_no_rows():
    for change in (lambda m: m, with_unknown_head):
        head = LmHead(change(tiny_model("llama")))
        outputs = head.log_probs(
            torch.zeros(0, 32, requires_grad=True), torch.zeros(0, 2, dtype=torch.int64)
        )
        assert [list(o.shape) for o in outputs] == [[0, 2], [0], [0]]
        sum(o.sum() for o in outputs).backward()


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama")
    ids, mask = prompts()
    plain = model(input_ids=ids, attention_mask=mask).logits
    before = {name: copy.copy(m.__dict__) for name, m in model.named_modules()}

    def fail(hidden):
        raise KeyError

    with pytest.raises(KeyError), LmHead(model).replaced(fail):
        model(input_ids=ids)
    assert {name: m.__dict__ for name, m in model.named_modules()} == before
    assert not model.lm_head._forward_hooks
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, plain)


def test_no_logits_of_all_positions_exist(monkeypatch):
    model = tiny_model("llama")
    head = LmHead(model)
    shapes = []
    linear = torch.nn.functional.linear

    def listen(x, weight, bias=None):
        shapes.append(weight.shape)
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", listen)
    with head.replaced(lambda hidden: (hidden,)):
        (hidden,) = model(input_ids=prompts()[0])
    assert hidden.shape == (3, 6, 32)
    assert shapes
    assert all(shape[0] != VOCAB for shape in shapes)


def test_a_model_with_a_treatment_of_its_own_is_refused():
    # Gemma2's own forward caps the logits; the head is told a wrong cap.
    model = tiny_model("gemma2")
    head = LmHead(model)
    head.softcap = None
    with (
        head.replaced(lambda hidden: (hidden,)),
        pytest.raises(ValueError, match=r"Gemma2ForCausalLM changes its logits .* not known here"),
    ):
        model(input_ids=prompts()[0])


def test_a_model_that_does_not_call_its_head_is_refused():
    model = tiny_model("llama")
    head = LmHead(model)
    model.lm_head = torch.nn.Linear(32, VOCAB, bias=False)
    with (
        head.replaced(lambda hidden: (hidden,)),
        pytest.raises(ValueError, match="does not call its output embeddings"),
    ):
        model(input_ids=prompts()[0])


@pytest.mark.parametrize(
    ("family", "softcap", "scale"),
    [("llama", None, 1.0), ("gemma2", 5.0, 1.0), ("cohere", None, 0.3), ("granite", None, 0.4)],
)
def test_what_a_model_does_to_its_logits_is_read_from_it(family, softcap, scale):
    head = LmHead(tiny_model(family))
    assert head.softcap == softcap
    assert head.scale == pytest.approx(scale)
