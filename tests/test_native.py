"""The native libraries: that they are here, and which instruction set they use."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lepo_kernels
from lepo_kernels import dispatch, native


def test_the_cpu_library_is_part_of_this_installation():
    if os.environ.get("LEPO_BUILD_NATIVE") == "0":
        pytest.skip("LEPO_BUILD_NATIVE=0: a pure-Python installation was asked for")
    assert "cpu" not in dispatch.MISSING


needs_cpu_library = pytest.mark.skipif(
    not native.is_loaded("cpu"), reason="the CPU library is not here"
)


def capability_with(value):
    code = "import lepo_kernels.native as n, lepo_kernels; print(n.cpu_capability())"
    environment = {**os.environ, "LEPO_CPU_CAPABILITY": value}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )


@needs_cpu_library
def test_the_environment_chooses_the_instruction_set():
    best = native.CAPABILITIES.index(native.best_cpu_capability())
    for name in native.CAPABILITIES[: best + 1]:
        assert capability_with(name).stdout.strip() == name


@needs_cpu_library
def test_an_unknown_instruction_set_is_an_error():
    done = capability_with("sse9")
    assert done.returncode != 0
    names = "baseline, avx2, avx512, avx512_bf16"
    assert f"LEPO_CPU_CAPABILITY: expected one of {names}, got 'sse9'" in done.stderr


@needs_cpu_library
def test_the_cpu_library_says_how_it_was_built():
    facts = native.build_facts("cpu")
    assert facts["version"] == lepo_kernels.__version__
    assert facts["torch"] == "2.11"
    assert facts["compiler"]
    shown = lepo_kernels.info()["libraries"]["_C_cpu.so"]
    assert shown["instruction_set"] == native.cpu_capability()
    assert shown["best_instruction_set"] == native.best_cpu_capability()


@pytest.mark.parametrize(
    ("built_for", "torch_for", "gpus", "reason"),
    [
        ("13.0", None, 0, "this torch is built without CUDA"),
        ("13.0", "12.8", 1, "it is built for CUDA 13.0, and this torch for CUDA 12.8"),
        ("13.0", "13.2", 0, "no CUDA GPU is visible"),
        ("13.4", "13.0", 1, None),  # minor versions of CUDA are compatible
        ("12.8", "13.0", 1, None),  # the library brings its own runtime, the driver runs both
    ],
)
def test_why_the_cuda_library_is_not_used(built_for, torch_for, gpus, reason, monkeypatch):
    monkeypatch.setattr(native, "_load", lambda backend: None)
    monkeypatch.setattr(native, "_why_stale", lambda backend: None)
    monkeypatch.setattr(native, "build_facts", lambda backend: {"cuda": built_for})
    monkeypatch.setattr(torch.version, "cuda", torch_for)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert native.why_not_cuda() == reason


# The architecture alone, one minor version more, another major one; with PTX; for itself (`a`) or
# its family (`f`) alone; and what a wheel holds.
@pytest.mark.parametrize(
    ("architectures", "runs_on", "not_on"),
    [
        (("8.0",), [(8, 0), (8, 9)], [(7, 5), (9, 0)]),
        (("8.6",), [(8, 6), (8, 9)], [(8, 0)]),
        (("9.0+PTX",), [(9, 0), (10, 3), (11, 0), (12, 1)], [(8, 9)]),
        (("12.1+PTX",), [(12, 1), (13, 0)], [(12, 0), (11, 0)]),
        (("9.0a", "10.0a+PTX"), [(9, 0), (10, 0)], [(10, 3), (11, 0), (12, 0)]),
        (("10.0f+PTX",), [(10, 0), (10, 3)], [(11, 0), (12, 0)]),
        (("8.0", "12.0+PTX"), [(8, 0), (12, 0), (12, 1), (13, 0)], [(9, 0), (11, 0)]),
        ((), [], [(9, 0)]),
    ],
)
def test_the_devices_that_a_library_has_code_for(architectures, runs_on, not_on):
    for capability in runs_on:
        assert native.why_no_code(architectures, capability) is None
    for capability in not_on:
        reason = native.why_no_code(architectures, capability)
        assert f"no code for compute capability {capability[0]}.{capability[1]} " in reason
        assert f"built for {', '.join(architectures)})" in reason


def test_a_library_that_is_not_there_or_does_not_load_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "library_path", lambda backend: tmp_path / f"_C_{backend}.so")
    assert native.why_not_cuda() == "this installation was built without it"
    (tmp_path / "_C_cuda.so").write_text("no library")
    # The dynamic linker's own words.
    assert "_C_cuda.so does not load: " in native.why_not_cuda()
    assert "file too short" in native.why_not_cuda() or "invalid ELF" in native.why_not_cuda()


@pytest.mark.skipif(not native.is_loaded("cuda"), reason="the CUDA library is not here")
def test_the_cuda_library_loads_under_any_torch():
    facts = native.build_facts("cuda")
    assert facts["architectures"]
    assert lepo_kernels.info()["libraries"]["_C_cuda.so"]["cuda"] == facts["cuda"]
    # Registered for CUDA tensors, whether this torch has them or not.
    name = "lepo_kernels_cuda::philox_words"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match="CPU"):
        torch.ops.lepo_kernels_cuda.philox_words(one[0], one, one, one[None], 0)


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_library_that_lacks_an_op_is_called_stale(backend, monkeypatch):
    if not native.is_loaded(backend):
        pytest.skip(f"_C_{backend}.so is not here")
    ops = (*native._OPS[backend], "an_op_of_tomorrow")
    monkeypatch.setitem(native._OPS, backend, ops)
    reason = {"cpu": native.why_not_cpu, "cuda": native.why_not_cuda}[backend]()
    assert f"_C_{backend}.so is older than this package (it lacks an_op_of_tomorrow)" in reason
    assert "build_ext --inplace" in reason


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_the_list_of_native_ops_is_what_the_backend_calls(backend):
    folder = Path(native.__file__).parent / "backends" / backend
    text = "".join(file.read_text() for file in folder.glob("*.py"))
    direct = rf"lepo_kernels_{backend}\.(\w+)|\bops\.(\w+)\.default|\blibrary\.(\w+)"
    called = set(re.findall(direct, text))
    called = {name for names in called for name in names if name}
    assert called == set(native._OPS[backend])
