"""The one table that decides which backend serves a call.

A public op asks ``resolve`` for a backend's name and hands that name to its torch op, which loads
the kernel with ``load``. The kernel of op ``x`` in family ``f`` on backend ``b`` is always the
function ``x`` in ``lepo_kernels/backends/b/f.py``.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lepo_kernels import native

BACKENDS = ("cuda", "triton", "cpu", "reference")

# Which backends hold a kernel for an op: op -> (family, backends).
KERNELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "philox_words": ("philox", ("cuda", "triton", "cpu", "reference")),
    "sample_latent": ("sample_latent", ("cuda", "triton", "cpu", "reference")),
    "mix_embeddings": ("mix_embeddings", ("cuda", "triton", "cpu", "reference")),
    "mix_embeddings_backward": ("mix_embeddings", ("cuda", "triton", "cpu", "reference")),
    "latent_step": ("latent_step", ("cuda", "triton", "cpu", "reference")),
    "linear_log_probs": ("linear_log_probs", ("cuda", "triton", "cpu", "reference")),
    "linear_log_probs_backward": ("linear_log_probs", ("cuda", "triton", "cpu", "reference")),
    "gather_log_probs": ("linear_log_probs", ("cuda", "triton", "cpu", "reference")),
    "gather_log_probs_backward": ("linear_log_probs", ("cuda", "triton", "cpu", "reference")),
    "lepo_loss": ("lepo_loss", ("cuda", "triton", "cpu")),
    "lepo_loss_backward": ("lepo_loss", ("cuda", "triton", "cpu")),
    "gumbel_softmax_embedding": ("gumbel_softmax_embedding", ("triton", "cpu", "reference")),
    "gumbel_softmax_embedding_backward": (
        "gumbel_softmax_embedding",
        ("triton", "cpu", "reference"),
    ),
    "linear_gumbel_softmax_embedding": (
        "linear_gumbel_softmax_embedding",
        ("triton", "cpu", "reference"),
    ),
    "linear_gumbel_softmax_embedding_backward": (
        "linear_gumbel_softmax_embedding",
        ("triton", "cpu", "reference"),
    ),
}

# Where the backend has no kernel for an op, the public function falls back to this one.
FALLBACKS = {
    "lepo_loss": "linear_log_probs",
    "lepo_loss_backward": "linear_log_probs_backward",
}

# A native kernel computes in float32. What an op takes in float64 is the reference's.
NO_FLOAT64 = frozenset(("cuda", "triton", "cpu"))

# Ops whose kernels are not for float16: gradients that are rounded before the loss's own gradient
# is known would undo the scaling of a loss.
NO_FLOAT16 = frozenset(("lepo_loss", "lepo_loss_backward"))

# Fastest first. A device that is not named here is served as "other".
PREFERENCE: dict[str, tuple[str, ...]] = {
    "cuda": ("cuda", "triton", "reference"),
    "cpu": ("cpu", "reference"),
    "other": ("triton", "reference"),
}


class BackendUnavailableError(RuntimeError):
    """The backend that was asked for cannot serve this call; the message says why."""


_override: str | None = os.environ.get("LEPO_BACKEND") or None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Let backend ``name`` serve every op called inside the ``with`` block, in all threads.

    Overrides the environment variable ``LEPO_BACKEND`` and is itself overridden by an op's
    ``backend=`` argument. A backward pass runs on the backend of its forward pass.

    Args:
        name: one of ``"cuda"``, ``"triton"``, ``"cpu"``, ``"reference"``.

    Raises:
        ValueError: ``name`` is not a backend.
    """
    global _override
    _check_name(name, "backend()")
    before, _override = _override, name
    try:
        yield
    finally:
        _override = before


def resolve(op: str, device: torch.device, requested: str | None, *dtypes: torch.dtype) -> str:
    """Name the backend that serves ``op`` on ``device``.

    Args:
        op: a key of ``KERNELS``.
        device: where the call's tensors live.
        requested: the op's ``backend=`` argument; None leaves the choice to ``backend(...)``, then
            ``LEPO_BACKEND``, then the table.
        dtypes: of the call's floating-point tensors.

    Raises:
        ValueError: the requested name is not a backend.
        BackendUnavailableError: the requested backend cannot serve this op here.
    """
    forced = requested if requested is not None else _override
    if forced is not None:
        _check_name(forced, "backend=" if requested is not None else "backend()/LEPO_BACKEND")
        reason = why_not(op, device, forced, *dtypes)
        if reason is not None:
            raise BackendUnavailableError(f"backend {forced!r} cannot serve {op}: {reason}")
        return forced
    backends = KERNELS[op][1]
    for name in candidates(device):
        # As `why_not` has it, without its words: this is part of every call.
        if name not in backends or name in MISSING or _lacks_dtype(name, dtypes):
            continue
        if why_no_code(name, device) is None:
            return name
    raise BackendUnavailableError(f"no backend serves {op} on {device}")


def resolve_or_fall_back(
    op: str, device: torch.device, requested: str | None, *dtypes: torch.dtype
) -> tuple[str, str]:
    """Name what serves ``op``, itself or what the public function falls back to, and the backend.

    The backend is chosen for the fallback, which more of them have a kernel for.

    Args:
        op: a key of ``KERNELS``; one without a fallback is served by itself alone.
        device, requested, dtypes: see `resolve`.

    Raises:
        ValueError, BackendUnavailableError: see `resolve`.
    """
    fallback = FALLBACKS.get(op, op)
    chosen = resolve(fallback, device, requested, *dtypes)
    if op in NO_FLOAT16 and torch.float16 in dtypes:
        return fallback, chosen
    return (op if why_not(op, device, chosen, *dtypes) is None else fallback), chosen


def candidates(device: torch.device) -> tuple[str, ...]:
    """Backends that can work on ``device``, fastest first."""
    return PREFERENCE.get(device.type, PREFERENCE["other"])


def why_not(op: str, device: torch.device, name: str, *dtypes: torch.dtype) -> str | None:
    """Say why backend ``name`` cannot serve ``op`` on ``device``; None if it can."""
    if name not in candidates(device):
        return f"it does not run on device type {device.type!r}"
    if name not in KERNELS[op][1]:
        return "it has no kernel for it (backends that do: " + ", ".join(KERNELS[op][1]) + ")"
    if _lacks_dtype(name, dtypes):
        return "it computes in float32; float64 is served by reference"
    return MISSING.get(name) or why_no_code(name, device)


def why_no_code(name: str, device: torch.device) -> str | None:
    """Say why a backend that is here does not run on this device; None if it does.

    GPUs of one machine may be of different kinds. To ask of a GPU initialises CUDA.

    Args:
        name: a backend that is not ``MISSING``.
        device: one whose type the backend can work on; ``cuda`` is the current one.
    """
    # The type is another one where something stands in for the GPU.
    if name != "cuda" or device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    # A compiled graph keeps what was found: it need not be compiled anew when `_NO_CODE` grows.
    if torch.compiler.is_compiling():
        return _look_for_code(index)
    if index not in _NO_CODE:
        _NO_CODE[index] = _look_for_code(index)
    return _NO_CODE[index]


# What `why_no_code` has found: index of a GPU -> reason.
_NO_CODE: dict[int, str | None] = {}


def _look_for_code(index: int) -> str | None:
    # Not get_device_capability: the compiler knows this one as a constant.
    found = torch.cuda.get_device_properties(index)
    return native.why_no_code(ARCHITECTURES, (found.major, found.minor))


def _lacks_dtype(name: str, dtypes: tuple[torch.dtype, ...]) -> bool:
    return torch.float64 in dtypes and name in NO_FLOAT64


def _why_missing(name: str) -> str | None:
    if importlib.util.find_spec(f"lepo_kernels.backends.{name}") is None:
        return "it is not part of this version of lepo_kernels"
    if name == "cpu":
        return native.why_not_cpu()
    if name == "triton":
        return _why_no_triton()
    return native.why_not_cuda() if name == "cuda" else None


def _why_no_triton() -> str | None:
    """Without importing it, which takes long, and without touching CUDA."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    # Asks the driver's management library, where it can.
    return "no GPU is visible" if torch.cuda.device_count() == 0 else None


# Why a backend is not usable on this machine: name -> reason. Filled once, so that a compiled
# graph sees a constant.
MISSING: dict[str, str] = {
    name: reason for name in BACKENDS if (reason := _why_missing(name)) is not None
}

# What the CUDA library holds code for, if it can be used.
ARCHITECTURES: tuple[str, ...] = (
    () if "cuda" in MISSING else tuple(native.build_facts("cuda")["architectures"])
)


@functools.cache
def load(op: str, name: str) -> Callable[..., Any]:
    """Import the kernel of ``op`` from backend ``name``, shielded from autocast.

    Its first argument is a tensor, or a structure that begins with one.
    """
    family = KERNELS[op][0]
    kernel: Callable[..., Any] = getattr(
        importlib.import_module(f"lepo_kernels.backends.{name}.{family}"), op
    )

    @functools.wraps(kernel)
    def shielded(first: Any, *rest: Any) -> Any:
        # A kernel's own matrix products must keep the dtype it chose for them. Asking first is
        # cheaper than switching off what is off.
        device_type = (first[0] if isinstance(first, tuple) else first).device.type
        if not is_autocast_enabled(device_type):
            return kernel(first, *rest)
        with torch.autocast(device_type, enabled=False):
            return kernel(first, *rest)

    return shielded


def is_autocast_enabled(device_type: str) -> bool:
    """Whether autocast is on for a type of device; some, such as "meta", know none."""
    # Part of every call: not to be asked twice where the answer is known.
    known = device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)
    return known and torch.is_autocast_enabled(device_type)


def _check_name(name: object, where: str) -> None:
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"{where}: unknown backend {name!r}; known: {', '.join(BACKENDS)}")
