"""The checker of wheels passes a good wheel, and names what is wrong with a broken one."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from lepo_kernels import native
from tests.tools.wheels import INFO, compile_library, good_files, write_wheel
from tools import build_wheel, check_wheel
from tools.cuda_report.disassembly import find_tool
from tools.native_build import BuildError, Toolkit, find_toolkit
from tools.wheel_checks import linking
from tools.wheel_checks.contents import check_contents
from tools.wheel_checks.kernels import SMALL_SPILL, Usage, check_kernels, check_usage, spills
from tools.wheel_checks.linking import check_linking, check_platform
from tools.wheel_checks.running import check_running
from tools.wheel_checks.wheel import Expected, Wheel

CPU = Expected(("_C_cpu",))
CPU_LIBRARY = "lepo_kernels/_C_cpu.so"


@pytest.fixture
def files():
    return good_files()


@pytest.fixture
def unpack(tmp_path):
    """Files -> an unpacked wheel of them."""

    def make(contents, tag="py3-none-linux_x86_64"):
        (tmp_path / "unpacked").mkdir()
        return Wheel.unpack(write_wheel(tmp_path, contents, tag), tmp_path / "unpacked")

    return make


def test_a_good_wheel_passes(files, tmp_path, capsys):
    pytest.importorskip("auditwheel")
    assert check_wheel.main([str(write_wheel(tmp_path, files))]) == 0
    shown = capsys.readouterr().out
    best = native.CAPABILITIES.index(native.best_cpu_capability())
    assert "instruction sets: " + ", ".join(native.CAPABILITIES[: best + 1]) in shown
    assert "auditwheel: manylinux_2_" in shown


def test_a_failure_names_the_wheel(files, tmp_path, capsys):
    pytest.importorskip("auditwheel")
    del files["lepo_kernels/dispatch.py"]
    path = write_wheel(tmp_path, files)
    assert check_wheel.main([str(path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert f"FAILED {path.name}: lacks lepo_kernels/dispatch.py" in lines
    assert any("does not run: " in line for line in lines)


def renamed(files):
    return {
        "lepo_kernels/_C_cpu.abi3.so" if name == CPU_LIBRARY else name: data
        for name, data in files.items()
    }


def wider(files):
    name = f"{INFO}/METADATA"
    return files | {name: files[name].replace(b"torch<2.16,", b"torch")}


@pytest.mark.parametrize(
    ("spoil", "failure"),
    [
        (renamed, "holds lepo_kernels/_C_cpu.abi3.so, which was not asked for"),
        (renamed, f"lacks {CPU_LIBRARY}"),
        (lambda files: files | {"tests/conftest.py": b""}, "holds tests/conftest.py, which"),
        (lambda files: files | {"lepo_kernels/_C_cuda.so": b""}, "holds lepo_kernels/_C_cuda.so"),
        (lambda files: files | {f"{INFO}/METADATA": b"Name: x\n"}, "METADATA: wrong Name"),
        (wider, "METADATA: wrong Requires-Dist (torch>=2.11,"),
        (
            lambda files: files | {f"{INFO}/WHEEL": b"Root-Is-Purelib: true\n"},
            "WHEEL: wrong Root-Is-Purelib",
        ),
        (
            lambda files: files | {f"{INFO}/WHEEL": b"Tag: py3-none-any\n"},
            "WHEEL: its tags are not ['py3-none-linux_x86_64']",
        ),
    ],
)
def test_wrong_contents_are_named(spoil, failure, files, unpack):
    failures = check_contents(unpack(spoil(files)), CPU)
    assert any(line.startswith(failure) for line in failures), failures


@pytest.mark.parametrize(
    ("tag", "failure"),
    [
        ("cp311-cp311-linux_x86_64", "tag cp311-cp311: one wheel serves every Python"),
        ("py3-none-any", "tag: platform 'any' with libraries"),
    ],
)
def test_wrong_tags_are_named(tag, failure, files, unpack):
    failures = check_contents(unpack(files, tag), CPU)
    assert any(line.startswith(failure) for line in failures), failures


def test_a_file_that_was_changed_after_the_fact_is_named(files, unpack):
    wheel = unpack(files)
    (wheel.folder / "lepo_kernels/dispatch.py").write_text("# changed")
    (wheel.folder / f"{INFO}/top_level.txt").unlink()
    (wheel.folder / "lepo_kernels/extra.py").touch()
    failures = check_contents(wheel, CPU)
    assert "RECORD: wrong hash of lepo_kernels/dispatch.py" in failures
    assert f"RECORD: names {INFO}/top_level.txt, which is not there" in failures
    assert "RECORD: lacks lepo_kernels/extra.py" in failures


@pytest.mark.parametrize(
    ("source", "options", "failure"),
    [
        ("int f(void); int g(void) { return f(); }", (), "does not name libtorch_cpu.so as needed"),
        (
            "int PyLong_Check(void); int g(void) { return PyLong_Check(); }",
            (),
            "uses Python's API (PyLong_Check)",
        ),
        ("int g;", ("-Wl,-rpath,/build/torch/lib",), "has an RUNPATH of /build/torch/lib"),
        ("int g;", ("-L.", "-lpython3.11"), "needs libpython3.11.so, which a machine may lack"),
        ("int g;", ("-L.", "-lcudart"), "needs libcudart.so, which a machine may lack"),
    ],
)
def test_wrong_linking_is_named(source, options, failure, files, unpack, tmp_path):
    for name in ("python3.11", "cudart"):
        stub = compile_library(tmp_path, "", f"-Wl,-soname,lib{name}.so")
        (tmp_path / f"lib{name}.so").write_bytes(stub)
    library = compile_library(tmp_path, source, "-Wl,--no-as-needed", *options)
    wheel = unpack(files | {CPU_LIBRARY: library})
    assert f"{CPU_LIBRARY}: {failure}" in check_linking(wheel)


def test_our_library_is_linked_as_it_should_be(files, unpack):
    assert check_linking(unpack(files)) == []


def test_the_tag_may_not_promise_more_than_the_library_keeps(files, unpack):
    pytest.importorskip("auditwheel")
    failures, verdict = check_platform(unpack(files, "py3-none-manylinux_2_17_x86_64"))
    assert failures == [f"tag manylinux_2_17_x86_64, but auditwheel says {verdict}"]


def test_a_library_that_auditwheel_does_not_know_is_named(files, unpack, monkeypatch):
    monkeypatch.setattr(
        linking, "audit", lambda path: ("manylinux_2_34_x86_64", {"libtorch_cpu.so", "libx.so"})
    )
    failures, _ = check_platform(unpack(files))
    assert failures == ["auditwheel: external library libx.so"]


def test_a_wheel_that_does_not_load_is_found(files, unpack, tmp_path):
    broken = compile_library(tmp_path, "int f(void); int g(void) { return f(); }")
    (failure,), ran = check_running(unpack(files | {CPU_LIBRARY: broken}), CPU)
    assert failure.startswith(f"{CPU_LIBRARY}: not loaded (_C_cpu.so does not load: ")
    assert "undefined symbol: f" in failure
    assert ran == []


def test_wrong_words_are_found(files, unpack):
    name = "lepo_kernels/backends/cpu/philox.py"
    spoilt = files[name].replace(b"return words", b"return words + 1")
    failures, ran = check_running(unpack(files | {name: spoilt}), CPU)
    assert failures[0].startswith("does not run: wrong random words on backend cpu")
    assert ran == []


def test_a_pure_wheel_runs_on_the_reference(files, unpack):
    del files[CPU_LIBRARY]
    wheel = unpack(files)
    assert check_running(wheel, Expected(())) == ([], [])
    failures, _ = check_running(wheel, CPU)
    assert failures == [f"{CPU_LIBRARY}: not loaded (this installation was built without it)"]


FINE = Usage(registers=20, stack=0, local=0)
BUDGETS = {"lepo::cuda::words": 32}
KERNEL = "kernel lepo::cuda::words"


@pytest.mark.parametrize(
    ("usage", "failure"),
    [
        ({}, f"{KERNEL}: missing"),
        ({"lepo::cuda::words": {"sm_80": FINE}}, f"{KERNEL}: missing for sm_90"),
        (
            {"lepo::cuda::words": dict.fromkeys(("sm_80", "sm_90", "sm_75"), FINE)},
            f"{KERNEL}: sm_75 was not asked for",
        ),
        (
            {"lepo::cuda::words": {"sm_80": FINE, "sm_90": Usage(33, 0, 0)}},
            f"{KERNEL} on sm_90: 33 registers, budget 32",
        ),
        (
            {"lepo::cuda::words": {"sm_80": Usage(20, 16, 0), "sm_90": FINE}},
            f"{KERNEL} on sm_80: stack 16, local 0 bytes",
        ),
        (
            {"lepo::cuda::words": {"sm_80": FINE, "sm_90": Usage(20, 0, 8)}},
            f"{KERNEL} on sm_90: stack 0, local 8 bytes",
        ),
        (
            {
                "lepo::cuda::words": {"sm_80": FINE, "sm_90": FINE},
                "lepo::cuda::other": {"sm_80": FINE, "sm_90": FINE},
            },
            "kernel lepo::cuda::other: has no budget in budgets.json",
        ),
    ],
)
def test_wrong_kernels_are_named(usage, failure):
    assert check_usage(usage, ("8.0", "9.0"), BUDGETS) == [failure]


def test_right_kernels_pass():
    usage = {"lepo::cuda::words": {"sm_80": FINE, "sm_90": FINE}}
    assert check_usage(usage, ("8.0", "9.0+PTX"), BUDGETS) == []


def test_a_small_spill_is_allowed_where_that_was_said():
    per = {"sm_80": Usage(20, SMALL_SPILL, 0), "sm_90": Usage(20, SMALL_SPILL, 1)}
    usage, wanted = {"lepo::cuda::words": per}, ("8.0", "9.0")
    small = f"{KERNEL} on sm_80: stack 16, local 0 bytes"
    large = f"{KERNEL} on sm_90: stack 16, local 1 bytes"
    assert check_usage(usage, wanted, BUDGETS) == [small, large]
    assert check_usage(usage, wanted, BUDGETS, SMALL_SPILL) == [large]
    assert spills(usage, 0, SMALL_SPILL) == [small]


@pytest.mark.parametrize(
    ("words", "allowed"),
    [
        (["--cuda", "13.0"], 0),  # the toolkit that CI has
        (["--cuda", "13.4"], SMALL_SPILL),
        (["--cuda", "13.0", "--allowed-spill", "8"], 8),
        (["--cuda", "13.4", "--allowed-spill", "0"], 0),
        ([], 0),
    ],
)
def test_how_much_may_be_spilled(words, allowed, monkeypatch):
    asked = []
    monkeypatch.setattr(check_wheel, "check", lambda path, wanted: asked.append(wanted) or ([], []))
    assert check_wheel.main([*words, "some.whl"]) == 0
    assert [wanted.allowed_spill for wanted in asked] == [allowed]


@pytest.mark.parametrize(
    ("said", "version", "allowed"),
    [("reference", "13.0", 0), ("reference", "13.4", SMALL_SPILL), ("", "13.0", SMALL_SPILL)],
)
def test_a_spill_fails_the_check_where_it_fails_the_build(
    said, version, allowed, make_toolkit, monkeypatch
):
    monkeypatch.setenv("LEPO_FAIL_ON_SPILL", said)
    toolkit = Toolkit(make_toolkit("cuda", version), version)
    assert build_wheel.expectation(toolkit).allowed_spill == allowed


def test_a_cuda_wheel_without_its_library_is_found(files, unpack):
    expected = Expected(("_C_cpu", "_C_cuda"), "13.0", ("8.0",))
    wheel = unpack(files)
    assert "lacks lepo_kernels/_C_cuda.so" in check_contents(wheel, expected)
    assert check_kernels(wheel, expected) == (["lepo_kernels/_C_cuda.so: missing"], [])


SOURCE = """
namespace lepo { namespace cuda {
template <typename T> __global__ void copy(const T* x, T* y, int n) {
  if (threadIdx.x < n) y[threadIdx.x] = x[threadIdx.x];
}
template __global__ void copy<float>(const float*, float*, int);
__global__ void spill(const int* x, int* y, int n) {
  int held[64] = {};
  for (int i = 0; i < n; ++i) held[x[i] & 63] += i;
  y[threadIdx.x] = held[y[threadIdx.x] & 63];
}
} }
"""


@pytest.fixture(scope="module")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two kernels for sm_80, one of which needs a stack, and PTX."""
    folder: Path = tmp_path_factory.mktemp("cuda")
    try:
        toolkit = find_toolkit()
        find_tool("cuobjdump")
    except (BuildError, FileNotFoundError) as error:
        pytest.skip(str(error))
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    (folder / "kernels.cu").write_text(SOURCE)
    codes = ["-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_80,code=compute_80"]
    command = [str(toolkit.nvcc), "-shared", "-Xcompiler=-fPIC", "-cudart=none", *codes]
    subprocess.run([*command, "kernels.cu", "-o", "_C_cuda.so"], cwd=folder, check=True)
    return (folder / "_C_cuda.so").read_bytes()


def test_the_kernels_of_a_library_are_read_from_it(cuda_library, unpack):
    wheel = unpack({"lepo_kernels/_C_cuda.so": cuda_library})
    budgets = {"lepo::cuda::copy<float>": 40, "lepo::cuda::spill": 40}
    expected = Expected(("_C_cpu", "_C_cuda"), "13.0", ("8.0+PTX",))
    (failure,), lines = check_kernels(wheel, expected, budgets)
    assert failure.startswith(
        "lepo_kernels/_C_cuda.so: kernel lepo::cuda::spill on sm_80: stack 256, local 0 bytes"
    )
    assert [line.partition(":")[0] for line in lines] == ["lepo", "lepo"]

    # The array of 256 bytes, as a spill that is allowed.
    lenient = dataclasses.replace(expected, allowed_spill=256)
    failures, warned = check_kernels(wheel, lenient, budgets)
    assert failures == []
    assert warned == [f"WARNING {failure}", *lines]

    expected = Expected(("_C_cpu", "_C_cuda"), "13.0", ("8.0", "9.0+PTX"))
    failures, _ = check_kernels(wheel, expected, {**budgets, "lepo::cuda::copy<double>": 40})
    assert {
        "lepo_kernels/_C_cuda.so: kernel lepo::cuda::copy<double>: missing",
        "lepo_kernels/_C_cuda.so: kernel lepo::cuda::copy<float>: missing for sm_90",
        "lepo_kernels/_C_cuda.so: PTX for sm_90: missing",
        "lepo_kernels/_C_cuda.so: PTX for sm_80: was not asked for",
    } <= set(failures)


def test_without_cuobjdump_a_cuda_wheel_does_not_pass(unpack, monkeypatch):
    monkeypatch.delenv("CUOBJDUMP", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name, **options: None)
    wheel = unpack({"lepo_kernels/_C_cuda.so": b""})
    expected = Expected(("_C_cpu", "_C_cuda"), "13.0", ("8.0",))
    (failure,), _ = check_kernels(wheel, expected)
    assert "pip install nvidia-cuda-cuobjdump" in failure
