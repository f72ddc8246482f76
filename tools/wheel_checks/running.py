"""The unpacked wheel at work under the torch of this Python, once per instruction set."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tools.wheel_checks.wheel import Expected, Wheel

PROBE = Path(__file__).with_name("probe.py")


def check_running(wheel: Wheel, expected: Expected) -> tuple[list[str], list[str]]:
    """Failures, and the instruction sets that ran: those that this machine offers."""
    best = _probe(wheel, "")
    if isinstance(best, str):
        return [best], []
    failures, ran = _describe(best, expected), []
    *lesser, fastest = best["instruction_sets"] or [None]
    for name in lesser:
        found = _probe(wheel, name)
        if isinstance(found, str):
            failures.append(f"LEPO_CPU_CAPABILITY={name}: {found}")
        elif found["libraries"]["_C_cpu.so"]["instruction_set"] != name:
            failures.append(f"LEPO_CPU_CAPABILITY={name}: uses another instruction set")
        else:
            ran.append(name)
    return failures, [*ran, fastest] if fastest else ran


def _describe(found: dict, expected: Expected) -> list[str]:
    """Does the wheel say of itself what was asked for?"""
    failures = []
    for name in expected.libraries:
        if found["libraries"].get(f"{name}.so") is None:
            reason = found["why_not"][name]
            failures.append(f"lepo_kernels/{name}.so: not loaded ({reason})")
    cuda = found["libraries"].get("_C_cuda.so")
    if cuda and "_C_cuda" in expected.libraries:
        if cuda["cuda"] != expected.cuda:
            failures.append(f"_C_cuda.so says CUDA {cuda['cuda']}, not {expected.cuda}")
        if tuple(cuda["architectures"]) != expected.architectures:
            failures.append(f"_C_cuda.so says it is for {cuda['architectures']}")
    return failures


def _probe(wheel: Wheel, capability: str) -> dict | str:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("LEPO_")},
        "PYTHONPATH": str(wheel.folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LEPO_CPU_CAPABILITY": capability,
    }
    done = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", str(PROBE)],
        env=environment,
        cwd=wheel.folder,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        return "does not run: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
    found: dict = json.loads(done.stdout.splitlines()[-1])
    # An editable installation would quietly fill in what the wheel lacks.
    for file in found["files"]:
        if wheel.folder.resolve() not in Path(file).resolve().parents:
            return f"does not run: imports {file}, which is not part of it"
    return found
