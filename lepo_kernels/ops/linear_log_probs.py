"""P3: selected logits, log-sum-exp and entropy of a language-model head, with gradients.

Design note: nothing of size [N, V] is stored. The outputs are the per-row quantities that every
loss of this family is made of (`lepo_kernels.formulas.scores`), and the loss stays outside. With
upstream gradients alpha [N, K], gamma [N] and eta [N] of the three outputs, and ``a`` the logits
over temperature, ``pi = softmax(a)``, ``H`` its entropy:

    da_j = sum_k alpha_k [j = i_k] + gamma pi_j - eta pi_j (log pi_j + H)

Rows where all three are zero (masked, padded, zero advantage, clipped) cost nothing in backward.
`gather_log_probs` is the same for logits that are at hand.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.dtypes import accumulation_dtype
from lepo_kernels.ops._arguments import as_per_row
from lepo_kernels.ops._library import torch_op
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
    scale = prepare_rows(head, ids, inv_temperature)
    chosen = dispatch.resolve("linear_log_probs", hidden.device, backend, head.hidden.dtype)
    fields = torch.ops.lepo_kernels.linear_log_probs(
        head.hidden,
        head.lm_head,
        ids,
        head.bias,
        head.softcap,
        scale,
        rows_at_a_time(chunk_size, head),
        False,
        chosen,
    )
    return LinearLogProbs(*fields)


def gather_log_probs(
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    *,
    inv_temperature: float | Tensor = 1.0,
    backend: str | None = None,
) -> LinearLogProbs:
    """Selected logits, log-sum-exp and entropy of ``a = logits / T``, for logits at hand.

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
    scale = _as_scale(inv_temperature, logits)
    fields = torch.ops.lepo_kernels.gather_log_probs(logits, ids, scale, chosen)
    return LinearLogProbs(*fields)


class Head(NamedTuple):
    """The checked arguments of an op that starts from hidden states and a head."""

    hidden: Tensor  # [N, D]
    lm_head: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    softcap: float | None


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
    check_tensor("lm_head", lm_head, (vocab, width), (hidden.dtype,))
    if bias is not None:
        check_tensor("bias", bias, (vocab,), (hidden.dtype,))
    if softcap is not None:
        check_positive_number("softcap", softcap)
        softcap = float(softcap)
    return Head(hidden, lm_head, bias, softcap)


def prepare_rows(
    head: Head,
    ids: Tensor,  # [N, K]
    inv_temperature: float | Tensor,  # [] or [N]
) -> Tensor:  # [N] or [1]
    """Check what else `linear_log_probs` takes of each row; returns the inverse temperatures.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
    """
    check_tensor("ids", ids, (head.hidden.shape[0], "K"), INDEX_DTYPES, head.hidden.device)
    return _as_scale(inv_temperature, head.hidden)


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


def _fake_outputs(like: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulation_dtype(like.dtype)
    selected = like.new_empty(ids.shape, dtype=dtype)
    return selected, selected.new_empty(ids.shape[0]), selected.new_empty(ids.shape[0])


@torch_op("linear_log_probs")
def _linear_log_probs(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
    bias: Tensor | None,  # [V]
    softcap: float | None,
    inv_temperature: Tensor,  # [N] or [1]
    chunk_size: int,
    shard: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The fields of `LinearLogProbs`.

    A row without a finite log-sum-exp is an error, unless the head is a ``shard`` of a larger one:
    then a row that is all -inf has the log-sum-exp -inf and the entropy 0, and one that holds NaN
    or +inf has NaN for both. `lepo_kernels.parallel.linear_log_probs` joins shards. The backward op
    takes the whole's log-sum-exp and entropy, and then returns the shard's part of the gradients.
    """
    fields: tuple[Tensor, Tensor, Tensor] = dispatch.load("linear_log_probs", backend)(
        hidden, lm_head, ids, bias, softcap, inv_temperature, chunk_size, shard
    )
    return fields


@_linear_log_probs.register_fake
def _(
    hidden: Tensor,
    lm_head: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    inv_temperature: Tensor,
    chunk_size: int,
    shard: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_outputs(hidden, ids)


@torch_op("linear_log_probs_backward")
def _linear_log_probs_backward(
    grad_logits: Tensor,  # [N, K]
    grad_lse: Tensor,  # [N]
    grad_entropy: Tensor,  # [N]
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
    bias: Tensor | None,  # [V]
    softcap: float | None,
    inv_temperature: Tensor,  # [N] or [1]
    lse: Tensor,  # [N]
    entropy: Tensor,  # [N]
    chunk_size: int,
    need_dhidden: bool,
    need_dlm_head: bool,
    need_dbias: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, lm_head and bias; one that is not needed comes back empty."""
    grads: tuple[Tensor, Tensor, Tensor] = dispatch.load("linear_log_probs_backward", backend)(
        grad_logits,
        grad_lse,
        grad_entropy,
        hidden,
        lm_head,
        ids,
        bias,
        softcap,
        inv_temperature,
        lse,
        entropy,
        chunk_size,
        need_dhidden,
        need_dlm_head,
        need_dbias,
    )
    return grads


@_linear_log_probs_backward.register_fake
def _(
    grad_logits: Tensor,
    grad_lse: Tensor,
    grad_entropy: Tensor,
    hidden: Tensor,
    lm_head: Tensor,
    ids: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    inv_temperature: Tensor,
    lse: Tensor,
    entropy: Tensor,
    chunk_size: int,
    need_dhidden: bool,
    need_dlm_head: bool,
    need_dbias: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if need_dhidden else (0,)),
        lm_head.new_empty(lm_head.shape if need_dlm_head else (0,)),
        lm_head.new_empty(lm_head.shape[0] if need_dbias else 0),
    )


def _setup_linear(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, lm_head, ids, bias, ctx.softcap, inv_temperature, *rest = inputs
    ctx.chunk_size, _, ctx.backend = rest
    _, lse, entropy = output
    ctx.save_for_backward(hidden, lm_head, ids, bias, inv_temperature, lse, entropy)


def _backward_linear(
    ctx: Any, grad_logits: Tensor, grad_lse: Tensor, grad_entropy: Tensor
) -> tuple[Tensor | None, ...]:
    hidden, lm_head, ids, bias, inv_temperature, lse, entropy = ctx.saved_tensors
    need_dhidden, need_dlm_head, _, need_dbias = ctx.needs_input_grad[:4]
    dhidden, dlm_head, dbias = torch.ops.lepo_kernels.linear_log_probs_backward(
        grad_logits,
        grad_lse,
        grad_entropy,
        hidden,
        lm_head,
        ids,
        bias,
        ctx.softcap,
        inv_temperature,
        lse,
        entropy,
        ctx.chunk_size,
        need_dhidden,
        need_dlm_head,
        need_dbias,
        ctx.backend,
    )
    return (
        dhidden if need_dhidden else None,
        dlm_head if need_dlm_head else None,
        None,
        dbias if need_dbias else None,
        *(None,) * 5,
    )


_linear_log_probs.register_autograd(_backward_linear, setup_context=_setup_linear)
_linear_log_probs_backward.refuse_double_backward()


@torch_op("gather_log_probs")
def _gather_log_probs(
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    inv_temperature: Tensor,  # [N] or [1]
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    fields: tuple[Tensor, Tensor, Tensor] = dispatch.load("gather_log_probs", backend)(
        logits, ids, inv_temperature
    )
    return fields


@_gather_log_probs.register_fake
def _(
    logits: Tensor, ids: Tensor, inv_temperature: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_outputs(logits, ids)


@torch_op("gather_log_probs_backward")
def _gather_log_probs_backward(
    grad_logits: Tensor,  # [N, K]
    grad_lse: Tensor,  # [N]
    grad_entropy: Tensor,  # [N]
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    inv_temperature: Tensor,  # [N] or [1]
    lse: Tensor,  # [N]
    entropy: Tensor,  # [N]
    backend: str,
) -> Tensor:  # [N, V]
    dlogits: Tensor = dispatch.load("gather_log_probs_backward", backend)(
        grad_logits, grad_lse, grad_entropy, logits, ids, inv_temperature, lse, entropy
    )
    return dlogits


@_gather_log_probs_backward.register_fake
def _(
    grad_logits: Tensor,
    grad_lse: Tensor,
    grad_entropy: Tensor,
    logits: Tensor,
    ids: Tensor,
    inv_temperature: Tensor,
    lse: Tensor,
    entropy: Tensor,
    backend: str,
) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_gather(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, ids, inv_temperature, ctx.backend = inputs
    _, lse, entropy = output
    ctx.save_for_backward(logits, ids, inv_temperature, lse, entropy)


def _backward_gather(
    ctx: Any, grad_logits: Tensor, grad_lse: Tensor, grad_entropy: Tensor
) -> tuple[Tensor | None, ...]:
    logits, ids, inv_temperature, lse, entropy = ctx.saved_tensors
    dlogits = torch.ops.lepo_kernels.gather_log_probs_backward(
        grad_logits,
        grad_lse,
        grad_entropy,
        logits,
        ids,
        inv_temperature,
        lse,
        entropy,
        ctx.backend,
    )
    return dlogits, None, None, None


_gather_log_probs.register_autograd(_backward_gather, setup_context=_setup_gather)
_gather_log_probs_backward.refuse_double_backward()
