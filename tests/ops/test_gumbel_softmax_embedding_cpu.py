"""What the native CPU kernels of the dense Gumbel-softmax mixture promise beyond the contract."""

import os
import subprocess
import sys

import pytest
import torch

import lepo_kernels
from lepo_kernels import dispatch, gumbel_softmax_embedding, native
from tests.ops.helpers import LOW_DTYPES, LargestTensor, kernel_of
from tests.ops.test_gumbel_softmax_embedding import (
    OPTIONS,
    everything,
    make,
)

pytestmark = pytest.mark.skipif("cpu" in dispatch.MISSING, reason="no native CPU library")


@pytest.fixture(autouse=True)
def on_cpu():
    with lepo_kernels.backend("cpu"):
        yield


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def native_arguments(logits, row_keys):
    """With options that differ between rows, tau = 0 among them."""
    ramp = torch.arange(len(row_keys)).double()
    step = torch.arange(len(row_keys))
    return logits.detach(), ramp / 2, ramp / 3 + 0.5, torch.tensor(7), row_keys, step, 12


def native_rows(arguments):
    """What every native kernel makes of all rows: statistics, weights, gradients of the logits."""
    ops, (rows, vocab) = torch.ops.lepo_kernels_cpu, arguments[0].shape
    log_prob, statistics = ops.gumbel_softmax_statistics(*arguments)
    chosen, dlogits = torch.arange(rows), torch.empty(rows, vocab, dtype=arguments[0].dtype)
    z = torch.empty(rows, vocab)
    ops.gumbel_softmax_weights_beside_peak(z, *arguments, statistics, chosen, 0)
    pull = torch.linspace(-1, 1, vocab).repeat(rows, 1)
    upstream = torch.tensor([[0.3, -0.2, 0.7, 0.1]]).repeat(rows, 1)
    ops.gumbel_softmax_gradients(pull, dlogits, *arguments, statistics, chosen, 0, upstream)
    return log_prob, statistics, z, pull, dlogits


# 5000 entries are five tiles of 1024, the last one cut.
@pytest.mark.parametrize("dtype", LOW_DTYPES)
@pytest.mark.parametrize("rows", [1, 5])
def test_bits_do_not_depend_on_the_number_of_threads(rows, dtype, threads):
    logits, _ = make(rows, 5000, dtype=dtype)
    arguments = native_arguments(logits, torch.arange(rows) + 3)
    threads(1)
    one = native_rows(arguments)
    for count in (2, 3):
        threads(count)
        for x, y in zip(native_rows(arguments), one, strict=True):
            assert torch.equal(x, y)


def test_bits_of_a_row_do_not_depend_on_its_batch(threads):
    logits, _ = make(6, 5000)
    arguments = native_arguments(logits, torch.tensor([9, 4, -2, 0, 7, 1]))
    whole = native_rows(arguments)
    threads(2)
    for chosen in (torch.tensor([4]), torch.tensor([5, 0, 3])):
        part = [x[chosen] if isinstance(x, torch.Tensor) and x.dim() else x for x in arguments]
        for x, y in zip(native_rows(part), whole, strict=True):
            assert torch.equal(x, y[chosen])


# Blocks of 3 and 2 rows with chunks of 64 or 128 ids, and one row at a time.
@pytest.mark.parametrize(("block_rows", "entries"), [(3, 3 * 64), (3, 3 * 128), (1, 64)])
@pytest.mark.parametrize("table_dtype", LOW_DTYPES)
def test_blocks_and_chunks(block_rows, entries, table_dtype, monkeypatch):
    kernel = sys.modules[dispatch.load("gumbel_softmax_embedding", "cpu").__module__]
    logits, _ = make(vocab=1001)
    _, embedding = make(vocab=1001, width=7, dtype=table_dtype)
    whole = everything(gumbel_softmax_embedding, (logits, embedding), **OPTIONS)
    monkeypatch.setattr(kernel, "_BLOCK_ROWS", block_rows)
    monkeypatch.setattr(kernel, "_BUFFER_ENTRIES", entries)
    parts = everything(gumbel_softmax_embedding, (logits, embedding), **OPTIONS)
    for x, y in zip(parts, whole, strict=True):
        torch.testing.assert_close(x, y)


def test_weights_exist_for_one_chunk_at_a_time(monkeypatch):
    kernel = sys.modules[dispatch.load("gumbel_softmax_embedding", "cpu").__module__]
    monkeypatch.setattr(kernel, "_BUFFER_ENTRIES", 64 * 64)
    monkeypatch.setattr(kernel, "_CONVERTED_IDS", 64)
    monkeypatch.setattr(kernel, "_CONVERTED_ENTRIES", 64)
    # Rows enough that a factor packed for a product has fewer entries.
    logits, embedding = make(64, 3000, 4, dtype=torch.bfloat16)
    with torch.no_grad(), LargestTensor() as largest:
        gumbel_softmax_embedding(logits, embedding, 0.5)
    assert largest.numel == 64 * 64
    forward = kernel_of("gumbel_softmax_embedding", "cpu")
    backward = kernel_of("gumbel_softmax_embedding_backward", "cpu")
    one, zero = torch.ones(1, dtype=torch.float64), torch.tensor(0)
    shared = (logits.detach(), embedding.detach(), one, one, zero, torch.arange(64), zero[None], 0)
    mixed, _, _, *known = forward(*shared, False)
    grads = (torch.randn(64, 4), torch.randn(64), torch.randn(64))
    with LargestTensor() as largest:
        backward(*grads, *shared, mixed, *known, False, True)
    assert largest.numel == 3000 * 4  # the table's gradient itself


def test_log_probs_alone_need_no_table():
    logits, embedding = make()
    with torch.no_grad():
        embedding.fill_(torch.nan)
    ours = gumbel_softmax_embedding(logits, embedding, 0.5)
    dlogits, dembedding = torch.autograd.grad(ours.log_prob.sum(), (logits, embedding))
    assert dlogits.isfinite().all()
    assert dembedding.eq(0).all()


def test_large_outputs_are_as_small_ones():
    from lepo_kernels.backends.cpu.memory import fresh

    x = fresh((1 << 10, 1 << 13), torch.float32)  # 32 MiB, from where pages are advised on
    assert x.is_contiguous()
    assert x.shape == (1 << 10, 1 << 13)
    x.fill_(2)
    assert x.eq(2).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 8).int()}, "logits: wrong dtype"),
        ({"logits": torch.zeros(8, 3).T}, "logits: expected rows without gaps"),
        ({"tau": torch.ones(2).double()}, "tau: expected one entry, or one per row"),
        ({"row_keys": torch.arange(2)}, "row_keys: wrong size"),
        ({"statistics": torch.zeros(3, 4).double()}, "statistics: wrong size"),
        ({"rows": torch.tensor([0, 1, 3])}, "rows: out of range"),
        ({"first": 4}, "first: out of range"),
        ({"first": 2, "z": torch.zeros(3, 4)}, "first: out of range"),
        ({"first_id": 2}, "first_id: out of range"),
        ({"first_id": -4}, "first_id: out of range"),
        ({"first_id": 2**26 - 4}, "first_id: out of range"),
        ({"first_id": 2**63 - 4}, "first_id: out of range"),
        ({"z": torch.zeros(3, 8).double()}, "buffer: wrong dtype"),
        ({"z": torch.zeros(8, 3).T}, "buffer: expected rows without gaps"),
    ],
)
def test_raw_calls_are_checked(change, message):
    one, zero = torch.ones(1, dtype=torch.float64), torch.tensor(0)
    arguments = {
        "z": torch.zeros(3, 8),
        "logits": torch.zeros(3, 8),
        "tau": one,
        "temperature": one,
        "seed": zero,
        "row_keys": torch.arange(3),
        "step": zero[None],
        "first_id": 0,
        "statistics": torch.zeros(3, 8).double(),
        "rows": torch.arange(3),
        "first": 0,
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.lepo_kernels_cpu.gumbel_softmax_weights_beside_peak(**(arguments | change))


# The family's own tests once more, per instruction set; which one is used is decided per process.
@pytest.mark.skipif("LEPO_CPU_CAPABILITY" in os.environ, reason="would start itself again")
@pytest.mark.parametrize("capability", native.CAPABILITIES)
def test_every_instruction_set(capability):
    best = native.CAPABILITIES.index(native.cpu_capability())
    if native.CAPABILITIES.index(capability) > best:
        pytest.skip("this machine does not offer it")
    core = "error or shapes or peaked or ties or infinities or bad_rows or layout or bits"
    core += " or density or shards"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-k", f"({core}) and not reference and not triton", "-m", "not slow"]
    files = ["test_gumbel_softmax_embedding.py", "test_gumbel_softmax_embedding_cpu.py"]
    folder = os.path.dirname(__file__)
    done = subprocess.run(
        [*command, *(os.path.join(folder, file) for file in files)],
        env=os.environ | {"LEPO_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
