"""The public ops on tensors of the device: where results live, streams, waiting, determinism."""

import pytest
import torch

import lepo_kernels
from lepo_kernels import dispatch
from tests.gpu.calls import assert_agree, calls_of, cuda_ops, needs
from tests.ops.native_cases import NATIVE_OPS, same_bits

each_op = pytest.mark.parametrize("op", cuda_ops())
# How many rows have a gradient, or take part, must be known on the host; in a graph, test_graphs.py
# has them wait for nothing.
WAITING = ("linear_log_probs_backward", "lepo_loss")


def test_every_op_has_example_calls():
    assert set(cuda_ops()) <= set(NATIVE_OPS)


@each_op
def test_results_are_on_the_device_and_as_the_reference_has_them(op, device):
    for case in calls_of(op, device):
        expected = case.run("reference") if "reference" in dispatch.KERNELS[op][1] else None
        for i, out in enumerate(ours := case.run("cuda")):
            assert out.device.type == device.type
            if expected is not None:
                assert out.shape == expected[i].shape, case.name
                assert out.dtype == expected[i].dtype, case.name
        assert expected is None or len(ours) == len(expected)


@each_op
def test_the_same_call_gives_the_same_bits(op, device):
    for case in calls_of(op, device):
        first = case.run("cuda")
        for _ in range(2):
            for a, b in zip(first, case.run("cuda"), strict=True):
                assert same_bits(a, b), case.name


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("op", [op for op in cuda_ops() if op not in WAITING])
def test_no_call_waits_for_the_device(op, device):
    # The first round loads modules and fills the allocator's cache.
    for case in calls_of(op, device):
        case.run("cuda")
    for case in calls_of(op, device):
        torch.cuda.set_sync_debug_mode("error")
        try:
            case.run("cuda")
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@each_op
def test_calls_follow_the_current_stream(op, device):
    for case in calls_of(op, device):
        expected = case.run("cuda")
        blank = tuple(
            torch.zeros_like(x) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for x in case.arguments
        )
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            # The arguments get their values late: a kernel on another stream would see zeros.
            torch.cuda._sleep(20_000_000)
            for late, value in zip(blank, case.arguments, strict=True):
                if late is not value:
                    late.copy_(value)
            ours = case.run("cuda", blank)
        stream.synchronize()
        for a, b in zip(ours, expected, strict=True):
            assert_agree(case, a, b)


def other_device(device):
    return torch.device("meta" if device.type == "cpu" else "cpu")


@needs("sample_latent")
@pytest.mark.parametrize("name", ["tau", "temperature", "row_keys", "exclude_ids"])
def test_sample_latent_refuses_mixed_devices(name, device):
    values = {
        "tau": torch.ones(2),
        "temperature": torch.ones(2),
        "row_keys": torch.arange(2),
        "exclude_ids": torch.arange(1),
    }
    logits = torch.zeros(2, 8, device=device)
    with pytest.raises(ValueError, match=f"{name}: expected device"):
        lepo_kernels.sample_latent(logits, top_k=4, **{name: values[name].to(other_device(device))})


@needs("mix_embeddings")
@pytest.mark.parametrize("name", ["ids", "weights"])
def test_mix_embeddings_refuses_mixed_devices(name, device):
    arguments = {
        "ids": torch.zeros(2, 3, dtype=torch.int64, device=device),
        "weights": torch.ones(2, 3, device=device),
    }
    arguments[name] = arguments[name].to(other_device(device))
    with pytest.raises(ValueError, match=f"{name}: expected device"):
        lepo_kernels.mix_embeddings(**arguments, embedding=torch.ones(4, 8, device=device))


@needs("mix_embeddings", "mix_embeddings_backward")
def test_mix_embeddings_has_gradients(device):
    torch.manual_seed(0)
    ids = torch.randint(50, (4, 6), device=device)
    weights = torch.rand(4, 6, device=device, requires_grad=True)
    table = torch.randn(50, 72, device=device, requires_grad=True)
    ours = lepo_kernels.mix_embeddings(ids, weights, table)
    plain = (weights[..., None] * table[ids]).sum(1)
    grad = torch.randn_like(plain)
    torch.testing.assert_close(ours, plain)
    for a, b in zip(
        torch.autograd.grad(ours, (weights, table), grad),
        torch.autograd.grad(plain, (weights, table), grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@needs("gather_log_probs", "gather_log_probs_backward")
def test_gather_log_probs_has_gradients(device):
    torch.manual_seed(0)
    logits = torch.randn(4, 1029, device=device, requires_grad=True)
    ids = torch.randint(1029, (4, 5), device=device)
    ours = lepo_kernels.gather_log_probs(logits, ids)
    chosen, lse = ours[0], ours[1]
    torch.testing.assert_close(chosen, logits.gather(1, ids))
    torch.testing.assert_close(lse, logits.logsumexp(1))
    (a,) = torch.autograd.grad((chosen - lse[:, None]).sum(), logits)
    (b,) = torch.autograd.grad(logits.log_softmax(1).gather(1, ids).sum(), logits)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@needs("lepo_loss", "lepo_loss_backward")
def test_lepo_loss_has_gradients(device):
    hidden, head, facts = loss_of(40, 1029, 24, device)
    ours = lepo_kernels.lepo_loss(hidden, head, *facts)
    scored = lepo_kernels.linear_log_probs(hidden, head, facts[0])
    plain = lepo_kernels.lepo_objective(scored.logits, scored.lse, *facts[1:])
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(1.7 * ours.loss, (hidden, head)),
        torch.autograd.grad(1.7 * plain.loss, (hidden, head)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@needs("lepo_loss")
def test_lepo_loss_holds_no_more_memory_than_it_says(device):
    # One block of logits of several; the gradients of all rows.
    rows, vocab, width = 8192, 65536, 256
    hidden, head, facts = loss_of(rows, vocab, width, device, torch.bfloat16)
    lepo_kernels.lepo_loss(*(x[:64] for x in (hidden, head)), *loss_of(64, 64, 1, device)[2])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = lepo_kernels.lepo_loss(hidden, head, *facts).loss
    peak = torch.cuda.max_memory_allocated() - before
    results = 2 * (hidden.numel() + head.numel())
    # What is in the results, what is held for them, and 1/16 for what each row has.
    assert peak <= 17 / 16 * (results + (512 << 20) + 2 * rows * vocab)
    loss.backward()
    assert hidden.grad.isfinite().all()


def loss_of(rows, vocab, width, device, dtype=torch.float32):
    """Hidden states, a head, and what the loss needs to know of each row."""
    torch.manual_seed(0)
    hidden, head = (torch.randn(n, width, device=device).to(dtype) for n in (rows, vocab))
    advantages = torch.randn(rows, device=device)
    advantages[::4] = 0
    facts = (
        torch.randint(vocab, (rows, 5), device=device),
        torch.rand(rows, 5, device=device).softmax(-1),
        torch.arange(rows, device=device) % 2 == 0,
        advantages,
        torch.rand(rows, device=device),
    )
    return hidden.requires_grad_(), head.requires_grad_(), facts
