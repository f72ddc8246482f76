"""What there is to confirm, most important first, and how the output of each step is read."""

import re
from collections import Counter
from dataclasses import dataclass, field

# compute-sanitizer's exit status where it found something.
SANITIZER_FOUND = 66
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# pytest's lines with -v: the test, then its outcome.
OUTCOME = re.compile(r"^\S+::.*? (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.M)
SANITIZER_SUMMARY = re.compile(r"(ERROR|RACECHECK) SUMMARY: (\d+)")


@dataclass(frozen=True)
class Step:
    """One command, run from the root of the repository; what it needs is an earlier step."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    needs_library: bool = True


def steps(python: str, architecture: str, sanitizer: str | None) -> list[Step]:
    """All steps. Without compute-sanitizer its steps are there, with no command."""
    build = {"LEPO_BUILD_CUDA": "1", "LEPO_CUDA_ARCH_LIST": architecture}
    # Warnings of another version of torch are no reason to stop here.
    pytest = (python, "-m", "pytest", "-v", "--tb=short", "-W", "default", "-p", "no:cacheprovider")
    found = [
        Step("build", (python, "setup.py", "-q", "build_ext", "--inplace"), build, False),
        Step("philox words", (*pytest, "tests/gpu/test_philox_vectors.py")),
        Step("contract", (*pytest, "-m", "not slow", "-k", "cuda", "tests/ops")),
        Step("device", (*pytest, "tests/gpu", "--ignore=tests/gpu/test_philox_vectors.py")),
    ]
    for tool in SANITIZER_TOOLS:
        # Our kernels alone; and what torch's own calls to CUDA return is torch's to check.
        options = ["--tool", tool, "--kernel-name", "kns=lepo", "--print-limit", "20"]
        options += ["--error-exitcode", str(SANITIZER_FOUND)]
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []
        cases = (python, "-m", "tests.gpu.sanitizer_cases")
        command = (sanitizer, *options, *cases) if sanitizer else ()
        # An allocation for each tensor: torch's cache would hide an overrun.
        found.append(Step(tool, command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))
    return found


def counts(output: str) -> dict[str, int]:
    """Tests by outcome, or the number of a sanitizer's findings; nothing where there is neither."""
    found = dict(Counter(outcome.lower() for outcome in OUTCOME.findall(output)))
    for _, number in SANITIZER_SUMMARY.findall(output):
        found["findings"] = found.get("findings", 0) + int(number)
    return found


def architecture_of(capability: tuple[int, int]) -> str:
    """What LEPO_CUDA_ARCH_LIST calls a device; `a` is code for Hopper or Blackwell alone."""
    major, minor = capability
    return f"{major}.{minor}" + ("a" if capability in ((9, 0), (10, 0)) else "")
