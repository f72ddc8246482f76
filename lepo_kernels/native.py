"""Loads the native libraries, and says why one cannot be had.

``_C_cpu.so`` and ``_C_cuda.so`` lie beside this file when the installation was built with them.
They register the ops ``torch.ops.lepo_kernels_cpu.*`` and ``torch.ops.lepo_kernels_cuda.*``, which
only the backend of that name calls. Loading them creates no CUDA context.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

CAPABILITIES = ("baseline", "avx2", "avx512", "avx512_bf16")
# What backends/cpu and backends/cuda call.
_OPS = {
    "cpu": (
        "advise_huge_pages",
        "bfloat16_multiply",
        "bfloat16_pack",
        "bfloat16_packed_size",
        "gather_log_probs",
        "gather_log_probs_backward",
        "gumbel_softmax_gradients",
        "gumbel_softmax_statistics",
        "gumbel_softmax_weights_beside_peak",
        "logit_gradient_",
        "mix_embeddings",
        "mix_embeddings_backward",
        "philox_words",
        "sample_latent",
        "statistics_of",
        "summarise_logits",
    ),
    "cuda": (
        "latent_step",
        "logit_gradient",
        "mix_dembedding",
        "mix_dweights",
        "mix_embeddings",
        "mix_keys",
        "philox_words",
        "sample_latent",
        "statistics_of",
        "summarise_logits",
    ),
}


def why_not_cpu() -> str | None:
    """Load the CPU library; None if that worked, else the reason.

    Raises:
        ValueError: ``LEPO_CPU_CAPABILITY`` names no instruction set, or one this machine lacks.
    """
    reason = _load("cpu") or _why_stale("cpu")
    if reason is None:
        _check_capability()
    return reason


def why_not_cuda() -> str | None:
    """Load the CUDA library; None if it can be used here, else the reason."""
    reason = _load("cuda") or _why_stale("cuda")
    return _why_not_here(build_facts("cuda")["cuda"]) if reason is None else reason


def why_no_code(architectures: Sequence[str], capability: tuple[int, int]) -> str | None:
    """Why a CUDA library built for these does not run on a device; None if it does.

    Args:
        architectures: such as ``9.0``, ``10.0a`` and ``12.0+PTX``.
        capability: the device's compute capability.
    """
    # Torch's compiler traces this, too.
    for architecture in architectures:
        if _runs_on(architecture, capability):
            return None
    return (
        f"its library has no code for compute capability {capability[0]}.{capability[1]} "
        f"(built for {', '.join(architectures)})"
    )


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Machine code is for its major version from its minor one on; PTX for all that came later.

    But what is specific to an architecture (``a``) or to its family (``f``) stays there.
    """
    number, _, ptx = architecture.partition("+")
    first, second = number.rstrip("af").split(".")
    major, minor = int(first), int(second)
    if number.endswith("a"):
        return (major, minor) == capability
    if major == capability[0]:
        return minor <= capability[1]
    return ptx == "PTX" and not number.endswith("f") and major < capability[0]


def cpu_capability() -> str:
    """The instruction set the CPU kernels use: one of ``CAPABILITIES``."""
    name: str = torch.ops.lepo_kernels_cpu.capability()
    return name


def best_cpu_capability() -> str:
    """The best instruction set this machine offers: one of ``CAPABILITIES``."""
    name: str = torch.ops.lepo_kernels_cpu.best_capability()
    return name


def library_path(backend: str) -> Path:
    """Where the library of a backend is, if there is one."""
    return Path(__file__).with_name(f"_C_{backend}.so")


def is_loaded(backend: str) -> bool:
    """Whether the library of a backend is here, even if this machine cannot use it."""
    return hasattr(getattr(torch.ops, f"lepo_kernels_{backend}"), "build_info")


def build_facts(backend: str) -> dict[str, Any]:
    """What a loaded library says of its build: version, torch, compiler, and more for CUDA."""
    facts: dict[str, Any] = json.loads(getattr(torch.ops, f"lepo_kernels_{backend}").build_info())
    return facts


def _why_not_here(built_for: str) -> str | None:
    """Why a library built for this CUDA version cannot be used with this torch and machine."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if int(torch.version.cuda.split(".")[0]) < int(built_for.split(".")[0]):
        return f"it is built for CUDA {built_for}, and this torch for CUDA {torch.version.cuda}"
    # Asks the driver's management library, where it can, and so leaves CUDA untouched.
    if torch.cuda.device_count() == 0:
        return "no CUDA GPU is visible"
    return None


def _why_stale(backend: str) -> str | None:
    """Why a library does not belong to these Python files: an editable one, not rebuilt."""
    ops = getattr(torch.ops, f"lepo_kernels_{backend}")
    lacking = [name for name in _OPS[backend] if not hasattr(ops, name)]
    if not lacking:
        return None
    return (
        f"_C_{backend}.so is older than this package (it lacks {', '.join(lacking)}); build it "
        "again: python setup.py build_ext --inplace"
    )


def _load(backend: str) -> str | None:
    path = library_path(backend)
    if not path.exists():
        return "this installation was built without it"
    try:
        torch.ops.load_library(path)
    except OSError as error:  # torch's own message names the path alone
        return f"{path.name} does not load: {error.__cause__ or error}"
    return None


def _check_capability() -> None:
    wanted = os.environ.get("LEPO_CPU_CAPABILITY")
    if not wanted or wanted == cpu_capability():
        return
    if wanted not in CAPABILITIES:
        raise ValueError(
            f"LEPO_CPU_CAPABILITY: expected one of {', '.join(CAPABILITIES)}, got {wanted!r}"
        )
    raise ValueError(f"LEPO_CPU_CAPABILITY: this machine does not offer {wanted!r}")
