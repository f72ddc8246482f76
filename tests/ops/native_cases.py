"""Example calls of every op that may have a native CPU kernel, for tests that hold for all of them.

The calls are those of the torch ops ``lepo_kernels::<op>``, less their last argument, the backend.
An op that `dispatch.KERNELS` gives to the CPU backend is tested from then on; one that is missing
here fails `test_every_native_op_has_cases`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels import dispatch, native
from tests.ops.helpers import LOW_DTYPES, kernel_of
from tests.seeds import seeded

ROWS = 3
Arguments = tuple[Any, ...]
# Of tau, temperature, seed and step, whose tensors are given.
NUMBERS = (1.0, 1.0, 0, 0)


class NativeOp(NamedTuple):
    """How to call an op, and what may be asked of its outputs."""

    # Calls for a dtype, and a width: of the vocabulary, or of the embedding if rows are read whole.
    calls: Callable[[torch.dtype, int], Iterator[Arguments]]
    # A matrix product of torch's sums in an order that depends on threads and addresses.
    has_matrix_product: bool = False
    # Mixing weights are a factor of its product: rounded to bfloat16 where the machine's products
    # take that, though the result is float32.
    rounds_weights: bool = False


class Case(NamedTuple):
    """One call."""

    name: str
    op: str
    arguments: Arguments

    def run(self, backend: str, arguments: Arguments | None = None) -> tuple[Tensor, ...]:
        """Call the op; other ``arguments`` take the place of the case's own."""
        function = getattr(torch.ops.lepo_kernels, self.op)
        result = function(*(arguments or self.arguments), backend)
        return (result,) if isinstance(result, Tensor) else tuple(result)


def native_ops() -> list[str]:
    """The ops that the CPU backend serves."""
    return [op for op, (_, backends) in dispatch.KERNELS.items() if "cpu" in backends]


def offered_capabilities() -> tuple[str, ...]:
    """The instruction sets of this machine, or those up to the one that is asked for."""
    if "cpu" in dispatch.MISSING:
        return ()
    best = native.CAPABILITIES.index(native.cpu_capability())
    return native.CAPABILITIES[: best + 1]


def cases(op: str, widths: tuple[int, ...]) -> Iterator[Case]:
    """The calls of ``op`` at these widths, in all dtypes of the native kernels."""
    for dtype in LOW_DTYPES:
        for width in widths:
            torch.manual_seed(seeded(width))
            for i, arguments in enumerate(NATIVE_OPS[op].calls(dtype, width)):
                yield Case(f"{op} {dtype} width {width} call {i}", op, arguments)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, and NaN where the other is, in the same form."""
    return a.shape == b.shape and torch.equal(
        a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    )


def with_row_stride(x: Any) -> Any:
    """The same matrix, its rows further apart than they are wide; what is no matrix unchanged."""
    if not isinstance(x, Tensor) or x.dim() != 2:
        return x
    return torch.nn.functional.pad(x, (0, 3))[:, : x.shape[1]]


def _per_row(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:  # [ROWS]
    return torch.tensor(values, dtype=dtype)


def _noise_key() -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(7), torch.tensor([5, -1, 2**40]), torch.tensor([0, 3, 2**32 - 1])


def _logits(dtype: torch.dtype, vocab: int) -> Tensor:  # [ROWS, V]
    logits = 3 * torch.randn(ROWS, vocab)
    # A dropped entry and a tie, where there is room for them.
    if vocab > 2:
        logits[0, 1] = -torch.inf
        logits[1, -1] = logits[1, 0]
    return logits.to(dtype)


def _ids(vocab: int, count: int, dtype: torch.dtype = torch.int64) -> Tensor:  # [ROWS, count]
    ids = torch.randint(vocab, (ROWS, count), dtype=dtype)
    # The table's last row ends where its memory ends.
    ids[-1, -1] = vocab - 1
    return ids


def _philox_words(dtype: torch.dtype, width: int) -> Iterator[Arguments]:
    if dtype != torch.float32:
        return
    seed, row_keys, step = _noise_key()
    yield seed, row_keys, step, _ids(1 << 26, width), 0
    yield seed, row_keys, step[:1], _ids(1 << 26, width)[:1], 63


def _sample_latent(dtype: torch.dtype, vocab: int) -> Iterator[Arguments]:
    for noise in ("none", "gumbel", "gaussian", "dirichlet", "categorical"):
        # The paper's filters, and none at all.
        for top_k, top_p, min_p in ((min(30, vocab), 0.95, 1e-3), (min(vocab, 4097), 1.0, 0.0)):
            yield (
                _logits(dtype, vocab),
                _per_row(0.3, 0.0, 1.5),
                _per_row(1.0, 0.7, 2.0),
                *(top_k, top_p, min_p, noise, 1.0),
                *((-1.0, 1.0) if noise == "gumbel" else (-torch.inf, torch.inf)),
                3 if noise == "categorical" else 1,
                # Not of a row that has one entry alone, or -inf in the other.
                torch.tensor([vocab - 1]) if vocab > 2 else None,
                *_noise_key(),
                *NUMBERS,
            )


def _mix_embeddings(dtype: torch.dtype, width: int) -> Iterator[Arguments]:
    table = torch.randn(50, width).to(dtype)
    for index_dtype, weight_dtype in ((torch.int64, torch.float32), (torch.int32, dtype)):
        # One id, more than a few, and more in all rows than the 128 that one warp adds to the
        # table's gradient on CUDA; a weight of 0 is skipped.
        for count in (1, 5, 70):
            weights = torch.rand(ROWS, count)
            weights[0, 0] = 0
            yield _ids(50, count, index_dtype), weights.to(weight_dtype), table


def _mix_embeddings_backward(dtype: torch.dtype, width: int) -> Iterator[Arguments]:
    for ids, weights, table in _mix_embeddings(dtype, width):
        yield torch.randn(ROWS, width).to(dtype), ids, weights, table, True, True


def _latent_step(dtype: torch.dtype, vocab: int) -> Iterator[Arguments]:
    # A table narrower than any vector, and one that fills some with a rest.
    for (logits, *draw), width in zip(_sample_latent(dtype, vocab), (3, 37) * 5, strict=True):
        yield logits, torch.randn(vocab, width).to(dtype), *draw


def _linear_log_probs(dtype: torch.dtype, vocab: int) -> Iterator[Arguments]:
    # An odd hidden size; chunks of all rows, and of some with a rest.
    for softcap, chunk in ((None, 64), (5.0, 2)):
        hidden, head = torch.randn(ROWS, 9).to(dtype), torch.randn(vocab, 9).to(dtype)
        bias = None if softcap is None else torch.randn(vocab).to(dtype)
        scale = _per_row(1.0, 0.5, 2.0, dtype=torch.float32)
        yield hidden, head, bias, softcap, _ids(vocab, 4), scale, chunk, softcap is None


def _linear_log_probs_backward(dtype: torch.dtype, vocab: int) -> Iterator[Arguments]:
    for arguments in _linear_log_probs(dtype, vocab):
        _, lse, entropy = kernel_of("linear_log_probs", "reference")(*arguments)
        *head, chunk, _ = arguments
        bias = arguments[2]
        inputs = (*head, lse, entropy, chunk)
        yield *_upstream(4), *inputs, True, True, bias is not None


def _gather_log_probs(dtype: torch.dtype, vocab: int) -> Iterator[Arguments]:
    scale = _per_row(1.0, 0.5, 2.0, dtype=torch.float32)
    yield _logits(dtype, vocab), _ids(vocab, 4), scale
    yield _logits(dtype, vocab), _ids(vocab, 1, torch.int32), scale[:1]


def _gather_log_probs_backward(dtype: torch.dtype, vocab: int) -> Iterator[Arguments]:
    for logits, ids, scale in _gather_log_probs(dtype, vocab):
        _, lse, entropy = kernel_of("gather_log_probs", "reference")(logits, ids, scale)
        yield *_upstream(ids.shape[1]), logits, ids, scale, lse, entropy


def _upstream(count: int) -> tuple[Tensor, Tensor, Tensor]:  # [ROWS, count], [ROWS], [ROWS]
    grads = torch.randn(ROWS, count), torch.randn(ROWS), torch.randn(ROWS)
    # A row without a gradient costs nothing, and takes a way of its own.
    for grad in grads:
        grad[1] = 0
    return grads


def _gumbel_softmax_embedding(dtype: torch.dtype, vocab: int) -> Iterator[Arguments]:
    # An embedding narrower than any vector, and one that fills some with a rest.
    for width in (3, 37):
        table = torch.randn(vocab, width).to(dtype)
        tau, temperature = _per_row(0.3, 0.0, 1.5), _per_row(1.0, 0.7, 2.0)
        yield _logits(dtype, vocab), table, tau, temperature, *_noise_key(), 8, width == 3


def _gumbel_softmax_embedding_backward(dtype: torch.dtype, vocab: int) -> Iterator[Arguments]:
    for *inputs, shard in _gumbel_softmax_embedding(dtype, vocab):
        forward = kernel_of("gumbel_softmax_embedding", "reference")
        mixed, log_prob, log_density, deviation, statistics = forward(*inputs, shard)
        upstream = (torch.randn_like(x) for x in (mixed, log_prob, log_density))
        yield *upstream, *inputs, mixed, deviation, statistics, True, True


def _linear_gumbel_softmax_embedding(dtype: torch.dtype, vocab: int) -> Iterator[Arguments]:
    # A table of its own, and the head itself; chunks of all rows, and of some with a rest.
    for softcap, chunk in ((None, 64), (5.0, 2)):
        hidden, head = torch.randn(ROWS, 9).to(dtype), torch.randn(vocab, 9).to(dtype)
        table = torch.randn(vocab, 3).to(dtype) if softcap is None else None
        bias = None if softcap is None else torch.randn(vocab).to(dtype)
        per_row = _per_row(0.3, 0.0, 1.5), _per_row(1.0, 0.7, 2.0)
        yield hidden, head, bias, softcap, table, *per_row, *_noise_key(), 8, chunk, chunk == 2


def _linear_gumbel_softmax_embedding_backward(
    dtype: torch.dtype, vocab: int
) -> Iterator[Arguments]:
    for *inputs, shard in _linear_gumbel_softmax_embedding(dtype, vocab):
        forward = kernel_of("linear_gumbel_softmax_embedding", "reference")
        mixed, log_prob, log_density, deviation, statistics = forward(*inputs, shard)
        upstream = (torch.randn_like(x) for x in (mixed, log_prob, log_density))
        needs = (True, True, inputs[2] is not None, inputs[4] is not None)
        yield *upstream, *inputs, mixed, deviation, statistics, *needs


def _lepo_loss(dtype: torch.dtype, vocab: int) -> Iterator[Arguments]:
    for *head, ids, scale, _, _ in _linear_log_probs(dtype, vocab):
        weights = torch.softmax(torch.randn(ROWS, ids.shape[1]), dim=-1)
        # A hard row, and one that counts for nothing.
        weights[1] = torch.eye(ids.shape[1])[0]
        latent, row_weights = torch.tensor([True, False, True]), torch.tensor([0.5, 0.5, 0.0])
        # A reference that is surer of the ids than the policy has gradients beyond float16.
        old, reference = -torch.rand(ROWS), -40 - torch.rand(ROWS, ids.shape[1])
        rows = (weights, latent, torch.randn(ROWS), row_weights, old, reference)
        numbers = (0.1, 0.2, 0.3, None, "k3")
        needs = (True, True, head[2] is not None)
        lepo = ("soft_log_prob", False, "ppo", False)
        yield *head, ids, scale, *rows, None, None, *numbers, *lepo, *needs
        recorded = -torch.rand(ROWS, ids.shape[1])
        other = ("latent_grpo_log_density", True, "cispo", True)
        yield *head, ids, scale, *rows, recorded, None, *numbers, *other, *needs


def _lepo_loss_backward(dtype: torch.dtype, vocab: int) -> Iterator[Arguments]:
    hidden, head, bias = (torch.randn(n).to(dtype) for n in ((ROWS, 9), (vocab, 9), vocab))
    grads = (torch.randn_like(x) for x in (hidden, head, bias))
    yield torch.tensor(0.5), *grads, hidden, head, bias, None


NATIVE_OPS = {
    "philox_words": NativeOp(_philox_words),
    "sample_latent": NativeOp(_sample_latent),
    "mix_embeddings": NativeOp(_mix_embeddings),
    "mix_embeddings_backward": NativeOp(_mix_embeddings_backward),
    "latent_step": NativeOp(_latent_step),
    "linear_log_probs": NativeOp(_linear_log_probs, has_matrix_product=True),
    "linear_log_probs_backward": NativeOp(_linear_log_probs_backward, has_matrix_product=True),
    "gather_log_probs": NativeOp(_gather_log_probs),
    "gather_log_probs_backward": NativeOp(_gather_log_probs_backward),
    "gumbel_softmax_embedding": NativeOp(
        _gumbel_softmax_embedding, has_matrix_product=True, rounds_weights=True
    ),
    "gumbel_softmax_embedding_backward": NativeOp(
        _gumbel_softmax_embedding_backward, has_matrix_product=True
    ),
    "linear_gumbel_softmax_embedding": NativeOp(
        _linear_gumbel_softmax_embedding, has_matrix_product=True, rounds_weights=True
    ),
    "linear_gumbel_softmax_embedding_backward": NativeOp(
        _linear_gumbel_softmax_embedding_backward, has_matrix_product=True
    ),
    "lepo_loss": NativeOp(_lepo_loss, has_matrix_product=True),
    "lepo_loss_backward": NativeOp(_lepo_loss_backward),
}
