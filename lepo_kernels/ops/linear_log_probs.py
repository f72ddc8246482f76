"""Selected logits, log-sum-exp and entropy of a language-model head, with gradients.

Design note: nothing of size [N, V] is stored. The outputs are the per-row quantities that every
loss of this family is made of (`lepo_kernels.formulas.scores`), and the loss stays outside. With
upstream gradients alpha [N, K], gamma [N] and eta [N] of the three outputs, and ``a`` the logits
over temperature, ``pi = softmax(a)``, ``H`` its entropy:

    da_j = sum_k alpha_k [j = i_k] + gamma pi_j - eta pi_j (log pi_j + H)

Rows where all three are zero (masked, padded, zero advantage, clipped) cost nothing in backward.
`gather_log_probs` is the same for precomputed logits.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.dtypes import accumulation_dtype
from lepo_kernels.ops._arguments import as_per_row
from lepo_kernels.ops._library import save, saved, torch_op
from lepo_kernels.structures import (
    Head,
    HeadGradients,
    Needs,
    Selection,
    Statistics,
    Upstream,
    empty_gradient,
)
from lepo_kernels.validation import (
    FLOAT_DTYPES,
    INDEX_DTYPES,
    check_integer,
    check_positive_number,
    check_tensor,
)

_CHUNK_BYTES = 64 << 20
# A GPU's products want more: each chunk reads the head, or adds to the gradient of all rows.
_CUDA_CHUNK_BYTES = 256 << 20
_MAX_CHUNK = (1 << 31) - 1


class LinearLogProbs(NamedTuple):
    """What `linear_log_probs` and `gather_log_probs` return: float32 (float64 for float64).

    Attributes:
        logits: [N, K], ``a`` at the selected ids; minus ``lse`` it is their log-probability.
        lse: [N], log-sum-exp of ``a`` over the whole vocabulary.
        entropy: [N], of softmax(a) over the whole vocabulary.
    """

    logits: Tensor
    lse: Tensor
    entropy: Tensor


torch.serialization.add_safe_globals([LinearLogProbs])


def linear_log_probs(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
    *,
    bias: Tensor | None = None,  # [V]
    softcap: float | None = None,
    inv_temperature: float | Tensor = 1.0,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> LinearLogProbs:
    """Selected logits, log-sum-exp and entropy of ``a = cap(hidden @ lm_head^T + bias) / T``.

    ``cap(x) = softcap tanh(x / softcap)`` (Gemma 2). Differentiable in ``hidden``, ``lm_head`` and
    ``bias``; frozen ones cost nothing. Under autocast all three are cast to its dtype,
    unless they are float64, as torch's own products do.

    Args:
        hidden: [N, D] float32, bfloat16, float16, or float64.
        lm_head: [V, D] in the dtype of ``hidden``.
        ids: [N, K] int64 or int32 in [0, V); K may be 0. Gradients of duplicates add up.
        bias: [V] in the dtype of ``hidden``.
        softcap: > 0.
        inv_temperature: > 0, 1 / T, a number or an [N] tensor; a constant to autograd.
        chunk_size: bounds the memory: no more logits are held at a time than this many rows have;
            below 2^31. None takes as many rows as 64 MiB of logits hold, on CUDA 256 MiB.
        backend: see `lepo_kernels.backend`.

    Returns:
        A `LinearLogProbs`.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
        ValueError: a row's logits are all -inf, or hold NaN or +inf (checked on the CPU, or with
            ``LEPO_CHECK_VALUES=1``).
        IndexError: an id is out of range (checked likewise).
        RuntimeError: a second or forward-mode derivative is asked for.
    """
    head = prepare_head(hidden, lm_head, bias, softcap)
    selection = prepare_selection(head, ids, inv_temperature)
    chosen = dispatch.resolve("linear_log_probs", hidden.device, backend, head.hidden.dtype)
    return linear_log_probs_op(head, selection, rows_at_a_time(chunk_size, head), False, chosen)


def gather_log_probs(
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    *,
    inv_temperature: float | Tensor = 1.0,
    backend: str | None = None,
) -> LinearLogProbs:
    """Selected logits, log-sum-exp and entropy of ``a = logits / T``, for precomputed logits.

    Args:
        logits: [N, V] float32, bfloat16, float16, or float64; differentiable. Entries may be -inf.
        ids: [N, K] int64 or int32 in [0, V); K may be 0. Gradients of duplicates add up.
        inv_temperature: > 0, 1 / T, a number or an [N] tensor; a constant to autograd.
        backend: see `lepo_kernels.backend`.

    Returns:
        A `LinearLogProbs`.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as `linear_log_probs`.
    """
    check_tensor("logits", logits, ("N", "V"), FLOAT_DTYPES)
    check_integer("logits.shape[1]", logits.shape[1], 1)
    check_tensor("ids", ids, (logits.shape[0], "K"), INDEX_DTYPES, logits.device)
    chosen = dispatch.resolve("gather_log_probs", logits.device, backend, logits.dtype)
    selection = Selection(ids, _as_scale(inv_temperature, logits))
    return _gather_log_probs(logits, selection, chosen)


def prepare_head(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    softcap: float | None,
    *,
    least_rows: int = 1,
) -> Head:
    """Check these arguments of `linear_log_probs`, and cast them as autocast says.

    Args:
        hidden, lm_head, bias, softcap: as there.
        least_rows: how many rows the head has at least.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
    """
    check_tensor("hidden", hidden, ("N", "D"), FLOAT_DTYPES)
    width, device = hidden.shape[1], hidden.device
    check_tensor("lm_head", lm_head, ("V", width), FLOAT_DTYPES, device)
    vocab = lm_head.shape[0]
    check_integer("lm_head.shape[0]", vocab, least_rows)
    if bias is not None:
        check_tensor("bias", bias, (vocab,), FLOAT_DTYPES, device)
    if dispatch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        hidden, lm_head = _autocast(hidden, dtype), _autocast(lm_head, dtype)
        bias = None if bias is None else _autocast(bias, dtype)
    if lm_head.dtype != hidden.dtype:
        check_tensor("lm_head", lm_head, (vocab, width), (hidden.dtype,))
    if bias is not None and bias.dtype != hidden.dtype:
        check_tensor("bias", bias, (vocab,), (hidden.dtype,))
    if softcap is not None:
        check_positive_number("softcap", softcap)
        softcap = float(softcap)
    return Head(hidden, lm_head, bias, softcap)


def prepare_selection(
    head: Head,
    ids: Tensor,  # [N, K]
    inv_temperature: float | Tensor,  # [] or [N]
) -> Selection:
    """Check what else `linear_log_probs` takes of each row.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
    """
    check_tensor("ids", ids, (head.hidden.shape[0], "K"), INDEX_DTYPES, head.hidden.device)
    return Selection(ids, _as_scale(inv_temperature, head.hidden))


def rows_at_a_time(chunk_size: int | None, head: Head) -> int:
    """Check a chunk size; None takes as many rows as some MiB of logits hold.

    Raises:
        TypeError, ValueError: it is no number of rows.
    """
    if chunk_size is None:
        entry_bytes = 8 if head.hidden.dtype == torch.float64 else 4
        chunk_bytes = _CUDA_CHUNK_BYTES if head.hidden.is_cuda else _CHUNK_BYTES
        chunk_size = max(1, chunk_bytes // (entry_bytes * max(1, head.lm_head.shape[0])))
    check_integer("chunk_size", chunk_size, 1, _MAX_CHUNK)
    return chunk_size


def _autocast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(dtype)


def _as_scale(inv_temperature: float | Tensor, like: Tensor) -> Tensor:  # [N] or [1]
    """Check 1 / T, and hold it in the dtype the kernels compute in."""
    dtype = accumulation_dtype(like.dtype)
    return as_per_row("inv_temperature", inv_temperature, like.shape[0], like.device, dtype=dtype)


@torch_op("linear_log_probs")
def linear_log_probs_op(
    head: Head, selection: Selection, chunk_size: int, shard: bool, backend: str
) -> LinearLogProbs:
    """The fields of `LinearLogProbs`.

    A row without a finite log-sum-exp is an error, unless the head is a ``shard`` of a larger one:
    then a row that is all -inf has the log-sum-exp -inf and the entropy 0, and one that holds NaN
    or +inf has NaN for both. `lepo_kernels.parallel.linear_log_probs` joins shards. The backward op
    takes the whole's log-sum-exp and entropy, and then returns the shard's part of the gradients.
    """
    return _empty_outputs(head.hidden, selection.ids)


@torch_op("linear_log_probs_backward")
def linear_log_probs_backward(
    upstream: Upstream,
    head: Head,
    selection: Selection,
    statistics: Statistics,
    chunk_size: int,
    needs: Needs,
    backend: str,
) -> HeadGradients:
    """Gradients of hidden, lm_head and bias; one that is not needed comes back empty."""
    return head.empty_gradients(needs)


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: LinearLogProbs) -> None:
    head, selection, chunk_size, _, backend = inputs
    save(ctx, head, selection, Statistics(*output[1:]), chunk_size, backend)


def _backward_linear(ctx: Any, *grads: Tensor) -> dict[str, Tensor]:
    head, selection, statistics, chunk_size, backend = saved(ctx)
    needs = Needs(*linear_log_probs_op.needs(ctx, "hidden", "lm_head", "bias"))
    dhidden, dlm_head, dbias = linear_log_probs_backward(
        Upstream(*grads), head, selection, statistics, chunk_size, needs, backend
    )
    return {"hidden": dhidden, "lm_head": dlm_head, "bias": dbias}


linear_log_probs_op.register_autograd(_backward_linear, _setup_linear)
linear_log_probs_backward.refuse_double_backward()


@torch_op("gather_log_probs")
def _gather_log_probs(
    logits: Tensor,  # [N, V]
    selection: Selection,
    backend: str,
) -> LinearLogProbs:
    return _empty_outputs(logits, selection.ids)


@torch_op("gather_log_probs_backward")
def _gather_log_probs_backward(
    upstream: Upstream,
    logits: Tensor,  # [N, V]
    selection: Selection,
    statistics: Statistics,
    backend: str,
) -> Tensor:  # [N, V]
    return empty_gradient(logits, True)


def _setup_gather(ctx: Any, inputs: tuple[Any, ...], output: LinearLogProbs) -> None:
    logits, selection, backend = inputs
    save(ctx, logits, selection, Statistics(*output[1:]), backend)


def _backward_gather(ctx: Any, *grads: Tensor) -> dict[str, Tensor]:
    return {"logits": _gather_log_probs_backward(Upstream(*grads), *saved(ctx))}


_gather_log_probs.register_autograd(_backward_gather, _setup_gather)
_gather_log_probs_backward.refuse_double_backward()


def _empty_outputs(like: Tensor, ids: Tensor) -> LinearLogProbs:
    dtype = accumulation_dtype(like.dtype)
    selected = like.new_empty(ids.shape, dtype=dtype)
    return LinearLogProbs(
        selected, selected.new_empty(ids.shape[0]), selected.new_empty(ids.shape[0])
    )
