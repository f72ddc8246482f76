"""One table decides which backend serves a call, and says why when none can."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import lepo_kernels
from lepo_kernels import BackendUnavailableError, dispatch, native
from lepo_kernels.cli.main import main

ROOT = Path(__file__).parents[1]
CPU, CUDA, OTHER = torch.device("cpu"), torch.device("cuda"), torch.device("meta")


class Gpus:
    """GPUs of these compute capabilities, and a CUDA library for some architectures."""

    def __init__(self, monkeypatch, capabilities, architectures, current=0):
        self.current, self.asked = current, []
        self.found = [
            types.SimpleNamespace(
                name=f"GPU of {major}.{minor}", major=major, minor=minor, total_memory=1 << 30
            )
            for major, minor in capabilities
        ]
        monkeypatch.setattr(dispatch, "MISSING", {})
        monkeypatch.setattr(dispatch, "ARCHITECTURES", architectures)
        monkeypatch.setattr(dispatch, "_NO_CODE", {})
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "get_device_properties", self.properties)

    def properties(self, index):
        self.asked.append(index)
        return self.found[index]


@pytest.fixture
def table(monkeypatch):
    """An op that three backends serve, on a machine where nothing is missing."""
    Gpus(monkeypatch, [(9, 0)], ("9.0",))
    kernels = {"op": ("family", ("cuda", "cpu", "reference"))}
    monkeypatch.setattr(dispatch, "KERNELS", kernels)
    monkeypatch.setattr(dispatch, "_override", None)


@pytest.mark.parametrize("op", dispatch.KERNELS)
def test_every_kernel_in_the_table_exists(op):
    for name in dispatch.KERNELS[op][1]:
        if name not in dispatch.MISSING:
            assert callable(dispatch.load(op, name))


@pytest.mark.usefixtures("table")
def test_the_fastest_backend_that_can_serve_is_chosen(monkeypatch):
    assert dispatch.resolve("op", CPU, None) == "cpu"
    assert dispatch.resolve("op", CUDA, None) == "cuda"
    assert dispatch.resolve("op", OTHER, None) == "reference"
    monkeypatch.setattr(dispatch, "MISSING", {"cpu": "it is broken", "cuda": "it is broken"})
    assert dispatch.resolve("op", CPU, None) == "reference"
    assert dispatch.resolve("op", CUDA, None) == "reference"


@pytest.mark.usefixtures("table")
def test_the_argument_beats_the_context_beats_the_table():
    with lepo_kernels.backend("reference"):
        assert dispatch.resolve("op", CPU, None) == "reference"
        assert dispatch.resolve("op", CPU, "cpu") == "cpu"
        with lepo_kernels.backend("cpu"):
            assert dispatch.resolve("op", CPU, None) == "cpu"
        assert dispatch.resolve("op", CPU, None) == "reference"
    assert dispatch.resolve("op", CPU, None) == "cpu"


@pytest.mark.usefixtures("table")
def test_the_context_ends_with_an_error_too():
    with pytest.raises(KeyError), lepo_kernels.backend("reference"):
        raise KeyError
    assert dispatch.resolve("op", CPU, None) == "cpu"


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("device", "name", "reason"),
    [
        (CPU, "cuda", "it does not run on device type 'cpu'"),
        (CUDA, "triton", "it has no kernel for it .backends that do: cuda, cpu, reference"),
        (CPU, "cpu", "it is not part of this installation"),
    ],
)
def test_a_backend_that_cannot_serve_says_why(device, name, reason, monkeypatch):
    monkeypatch.setattr(dispatch, "MISSING", {"cpu": "it is not part of this installation"})
    with pytest.raises(BackendUnavailableError, match=f"{name!r} cannot serve op: {reason}"):
        dispatch.resolve("op", device, name)


@pytest.mark.parametrize(
    ("installed", "gpus", "reason"),
    [
        (False, 1, "triton is not installed"),
        (True, 0, "no GPU is visible"),
        (True, 1, None),
    ],
)
def test_triton_takes_an_installation_and_a_gpu(installed, gpus, reason, monkeypatch):
    found = {"triton": installed, "lepo_kernels.backends.triton": True}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[name] or None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert dispatch._why_missing("triton") == reason


# Torch of a ROCm installation calls its GPUs "cuda" and has no CUDA, whatever library lies there.
def test_a_rocm_gpu_goes_to_triton(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(native, "_load", lambda backend: None)
    monkeypatch.setattr(native, "_why_stale", lambda backend: None)
    monkeypatch.setattr(native, "build_facts", lambda backend: {"cuda": "13.0"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    gpus = Gpus(monkeypatch, [(9, 4)], ())
    missing = {name: dispatch._why_missing(name) for name in ("cuda", "triton")}
    assert missing == {"cuda": "this torch is built without CUDA", "triton": None}
    monkeypatch.setattr(dispatch, "MISSING", {"cuda": missing["cuda"]})
    for op in dispatch.KERNELS:
        assert dispatch.resolve(op, torch.device("cuda:0"), None) == "triton"
        with pytest.raises(BackendUnavailableError, match="'cuda' cannot serve"):
            dispatch.resolve(op, torch.device("cuda:0"), "cuda")
    # An AMD GPU's version says nothing of what runs on it.
    assert gpus.asked == []


# Two GPUs of different kinds in one process, and a library with code for one of them.
def test_each_gpu_is_served_by_what_has_code_for_it(monkeypatch):
    gpus = Gpus(monkeypatch, [(9, 0), (10, 3)], ("9.0", "12.0+PTX"), current=1)
    first, second = torch.device("cuda:0"), torch.device("cuda:1")
    for _ in range(2):
        assert dispatch.resolve("sample_latent", first, None) == "cuda"
        assert dispatch.resolve("sample_latent", second, None) == "triton"
        assert dispatch.resolve("sample_latent", CUDA, None) == "triton"
    assert gpus.asked == [0, 1]
    # Without an index it is the current one, which may change.
    gpus.current = 0
    assert dispatch.resolve("sample_latent", CUDA, None) == "cuda"
    reason = r"its library has no code for compute capability 10\.3 \(built for 9\.0, 12\.0\+PTX\)"
    with pytest.raises(BackendUnavailableError, match=reason):
        dispatch.resolve("sample_latent", second, "cuda")
    assert dispatch.resolve("sample_latent", first, "cuda") == "cuda"
    # Both by one backend, an op and what it falls back to.
    found = dispatch.resolve_or_fall_back("lepo_loss", second, None)
    assert found == ("lepo_loss", "triton")


def test_a_gpu_without_code_and_without_triton_is_served_by_the_reference(monkeypatch):
    Gpus(monkeypatch, [(7, 5)], ("8.0",))
    monkeypatch.setattr(dispatch, "MISSING", {"triton": "triton is not installed"})
    assert dispatch.resolve("sample_latent", torch.device("cuda:0"), None) == "reference"


def test_the_description_says_which_gpu_the_library_has_no_code_for(monkeypatch, capsys):
    Gpus(monkeypatch, [(9, 0), (10, 3)], ("9.0",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fine, lacking = lepo_kernels.info()["gpus"]
    assert fine == {"name": "GPU of 9.0", "capability": "9.0", "no_cuda_code": None}
    assert lacking["capability"] == "10.3"
    assert "no code for compute capability 10.3" in lacking["no_cuda_code"]["reason"]
    assert main(["info"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "cuda on GPU 1 (GPU of 10.3): its library has no code for compute cap" in shown
    assert "LEPO_CUDA_ARCH_LIST=10.3" in shown
    assert "cuda on GPU 0" not in shown
    monkeypatch.setattr(dispatch, "MISSING", {"cuda": "it is not here"})
    assert [gpu["no_cuda_code"] for gpu in lepo_kernels.info()["gpus"]] == [None, None]


# In a process of its own: which functions the compiler knows is decided when it first runs.
@pytest.mark.parametrize("architectures", [("9.0",), ("8.0", "12.0+PTX")])
def test_the_choice_for_a_gpu_is_a_constant_of_a_compiled_graph(architectures):
    call = f"from tests import test_dispatch as t; t.check_constant_choice({architectures!r})"
    ran = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def check_constant_choice(architectures):
    """Traced before any call, and not again when an eager call has looked at the GPU."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        compile_a_choice(architectures, monkeypatch)


def compile_a_choice(architectures, monkeypatch):
    (gpu,) = Gpus(monkeypatch, [(9, 0)], architectures).found

    # As the compiler treats the function that it stands for.
    @torch.compiler.assume_constant_result
    def properties(index):
        return gpu

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    device = torch.device("cuda:0")
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def choosing(x):
        return x + (1 if dispatch.resolve("sample_latent", device, None) == "cuda" else 2)

    torch.compiler.reset()
    compiled = torch.compile(choosing, fullgraph=True, backend=backend)
    wanted = {"cuda": 1, "triton": 2}["cuda" if architectures == ("9.0",) else "triton"]
    assert compiled(torch.zeros(1)).item() == wanted
    assert dispatch._NO_CODE == {}
    assert choosing(torch.zeros(1)).item() == wanted
    assert list(dispatch._NO_CODE) == [0]
    assert compiled(torch.zeros(1)).item() == wanted
    assert len(graphs) == 1


@pytest.mark.usefixtures("table")
def test_no_backend_at_all_is_an_error(monkeypatch):
    monkeypatch.setattr(dispatch, "MISSING", dict.fromkeys(dispatch.BACKENDS, "it is broken"))
    with pytest.raises(BackendUnavailableError, match="no backend serves op on cpu"):
        dispatch.resolve("op", CPU, None)


FALLING_BACK = {"op": ("f", ("cuda", "reference")), "parts": ("g", ("cuda", "cpu", "reference"))}


# A backend without a kernel for the op, one with, and a dtype that the kernel is not for.
@pytest.mark.parametrize(
    ("name", "dtype", "served"),
    [
        ("cpu", torch.float32, "parts"),
        ("reference", torch.float32, "op"),
        ("reference", torch.float16, "parts"),
    ],
)
def test_an_op_is_served_by_itself_or_by_what_it_falls_back_to(name, dtype, served, monkeypatch):
    monkeypatch.setattr(dispatch, "KERNELS", FALLING_BACK)
    monkeypatch.setattr(dispatch, "FALLBACKS", {"op": "parts"})
    monkeypatch.setattr(dispatch, "NO_FLOAT16", {"op"})
    monkeypatch.setattr(dispatch, "MISSING", {})
    assert dispatch.resolve_or_fall_back("op", CPU, name, dtype) == (served, name)
    assert dispatch.resolve_or_fall_back("parts", CPU, name, dtype) == ("parts", name)


def test_the_description_names_no_kernel_where_a_missing_backend_is_forced():
    with lepo_kernels.backend("cuda"):
        kernels = lepo_kernels.info()["kernels"]
    assert {name: kernel["chosen"] for name, kernel in kernels.items()} == dict.fromkeys(kernels)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="backend=: unknown backend 'cudnn'; known: cuda, triton"):
        dispatch.resolve("mix_embeddings", CPU, "cudnn")
    with pytest.raises(ValueError, match="backend=: unknown backend array"):
        dispatch.resolve("mix_embeddings", CPU, np.array(["cpu", "reference"]))
    with (
        pytest.raises(ValueError, match=r"backend\(\): unknown backend 'cudnn'"),
        lepo_kernels.backend("cudnn"),
    ):
        pass


def test_public_ops_pass_their_backend_on():
    arguments = {
        "mix_embeddings": (torch.zeros(1, 1).long(), torch.ones(1, 1), torch.ones(2, 2)),
        "philox_words": (0, torch.arange(1), 0, torch.arange(1)),
        "gumbel_noise": (0, torch.arange(1), 0, torch.arange(1)),
        "normal_noise": (0, torch.arange(1), 0, torch.arange(1)),
        "sample_latent": (torch.zeros(1, 2),),
        "latent_step": (torch.zeros(1, 2), torch.ones(2, 2)),
        "linear_log_probs": (torch.ones(1, 2), torch.ones(3, 2), torch.zeros(1, 1).long()),
        "gather_log_probs": (torch.zeros(1, 2), torch.zeros(1, 1).long()),
        "gumbel_softmax_embedding": (torch.zeros(1, 2), torch.ones(2, 2), 0.5),
        "linear_gumbel_softmax_embedding": (torch.ones(1, 2), torch.ones(3, 2), None, 0.5),
    }
    for name, values in arguments.items():
        op = getattr(lepo_kernels, name)
        op(*values, backend="reference")
        with pytest.raises(BackendUnavailableError, match="'cuda' cannot serve"):
            op(*values, backend="cuda")
        with (
            lepo_kernels.backend("cuda"),
            pytest.raises(BackendUnavailableError, match="'cuda' cannot serve"),
        ):
            op(*values)


def run_python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_environment_names_a_backend():
    code = "import torch, lepo_kernels as lk; lk.sample_latent(torch.zeros(1, 2))"
    done = run_python(code, LEPO_BACKEND="cuda")
    assert done.returncode == 1
    assert "BackendUnavailableError: backend 'cuda' cannot serve sample_latent" in done.stderr


def test_importing_the_package_is_cheap():
    code = """
import sys, lepo_kernels
heavy = {"triton", "transformers", "matplotlib", "rich", "datasets"} & set(sys.modules)
assert not heavy, heavy
import torch
assert not torch.cuda.is_initialized()
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_kernels_are_shielded_from_autocast(monkeypatch):
    module = types.ModuleType("lepo_kernels.backends.reference.probe")
    module.probe = lambda x: x @ x
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(dispatch.KERNELS, "probe", ("probe", ("reference",)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        assert dispatch.load("probe", "reference")(torch.ones(2, 2)).dtype == torch.float32
