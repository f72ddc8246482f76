"""Runs the everyday tests of the ops and of csrc on kernels built with ASan and UBSan.

``python -m tests.csrc.sanitize [words for pytest]``, from the checkout's root. The package and its
tests are copied to build/sanitize, so that the sanitized library is never found by anything else.
Torch's tensors come from malloc: ASan watches the bytes around each of them. Leaks are not looked
for, since Python keeps much until it ends.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from lepo_kernels.native import CAPABILITIES
from tests.csrc.building import build, build_folder

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "build" / "sanitize"
REPORTS = TREE / "reports"
SANITIZERS = "address,undefined"
PARTS = ("CMakeLists.txt", "csrc", "lepo_kernels", "pyproject.toml", "tests")
# Workers, so that a report ends one of them and not the whole run. Most tests call the ops without
# naming a backend, which gives them the native kernels.
OPTIONS = (
    *("-p", "no:benchmark", "-p", "no:cacheprovider", "-n", "2", "--max-worker-restart=4", "-q"),
    # Backends without a line of what is sanitized; its tests may have their names in theirs.
    *("-m", "not slow", "-k", "not (reference or cuda or triton) or _cpu or simd_layer"),
)
# What goes through all instruction sets by itself.
ALREADY_ALL = (
    "--ignore=tests/ops/test_guard_pages.py",
    "--ignore=tests/ops/test_cpu_determinism.py",
)

# Reads the element behind a tensor, by way of a sanitized library. Must be caught.
OVERRUN = """
import sys, torch
from tests.csrc.layer import Layer
layer, name = Layer(sys.argv[1]), sys.argv[2]
x = torch.zeros(7, dtype=getattr(torch, name))
target = torch.zeros_like(x)
layer.copy_one(name, x.data_ptr() + 6 * x.element_size(), target.data_ptr())
print("inside", flush=True)
layer.copy_one(name, x.data_ptr() + 7 * x.element_size(), target.data_ptr())
print("beyond")
"""


def copy_tree() -> None:
    """Bring the copy up to date; what CMake built there stays."""
    for name in PARTS:
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, TREE / name)
            continue
        shutil.rmtree(TREE / name, ignore_errors=True)
        ignore = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, TREE / name, ignore=ignore)


def runtimes() -> str:
    """What LD_PRELOAD must name, since Python itself is not sanitized."""
    compiler = os.environ.get("CXX") or "c++"
    found = []
    for name in ("libasan.so", "libubsan.so"):
        command = [*shlex.split(compiler), f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(path).is_absolute():
            raise SystemExit(f"{compiler} has no {name}; GCC is needed, and its sanitizers")
        found.append(path)
    return " ".join(found)


def run(*words: str, capture: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy, sanitized."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=TREE,
        env=os.environ
        | {
            "LD_PRELOAD": runtimes(),
            "ASAN_OPTIONS": f"detect_leaks=0:log_path={REPORTS / 'report'}",
            "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={REPORTS / 'report'}",
            "OMP_NUM_THREADS": "1",
        }
        | environment,
        capture_output=capture,
        text=True,
    )


def take_reports() -> list[str]:
    """What the sanitizers wrote since the last call."""
    found = []
    for path in sorted(REPORTS.iterdir()):
        found.append(path.read_text(errors="replace"))
        path.unlink()
    return found


def check_that_overruns_are_caught(best: str) -> None:
    """A sanitizer that is not at work would let everything pass."""
    library = build_folder(TREE) / f"simd_layer_{best}.so"
    for name in ("float32", "bfloat16", "float16"):
        done = run("-c", OVERRUN, str(library), name, capture=True)
        caught = any("heap-buffer-overflow" in report for report in take_reports())
        if done.stdout != "inside\n" or not caught:
            raise SystemExit(f"the sanitizers missed an overrun: {done.stdout}{done.stderr}")


def main(words: list[str]) -> int:
    TREE.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir()
    copy_tree()
    build(TREE, "_C_cpu", "simd_layers", sanitize=SANITIZERS)
    shutil.copy2(build_folder(TREE) / "_C_cpu.so", TREE / "lepo_kernels")
    code = "from lepo_kernels import native; print(native.cpu_capability())"
    best = run("-c", code, capture=True).stdout.strip()
    if best not in CAPABILITIES:
        raise SystemExit("the sanitized library does not load")
    check_that_overruns_are_caught(best)
    failed = []
    for name in CAPABILITIES[: CAPABILITIES.index(best) + 1]:
        print(f"--- {name}, with {SANITIZERS}", flush=True)
        tests = ("tests/ops", "tests/csrc") if name == best else ("tests/ops", *ALREADY_ALL)
        done = run("-m", "pytest", *OPTIONS, *tests, *words, LEPO_CPU_CAPABILITY=name)
        reports = take_reports()
        for report in reports:
            # The place, and where the memory is from; then follow threads and shadow bytes.
            print(*report.splitlines()[:60], sep="\n")
        if done.returncode or reports:
            failed.append(name)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
