"""What there is to confirm, most important first, and how the output of each step is read."""

import importlib.util
import re
from collections import Counter
from dataclasses import dataclass, field

# compute-sanitizer's exit status where it found something.
SANITIZER_FOUND = 66
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# pytest's lines with -v: the test, then its outcome; of several processes, the outcome comes first.
OUTCOME = re.compile(
    r"^(?:\[gw\d+\] \[ *\d+%\] (?=\w+ \S+::)|\S+::.*? )(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b",
    re.M,
)
# Processes for the contract's tests: most of their time goes to Python, and each has a context of
# its own on the GPU.
WORKERS = 8
# Ends with the reason if the library that was just built cannot be used: without it, the tests
# would fall back on the simulator.
LOAD = "import sys; from lepo_kernels import dispatch; sys.exit(dispatch.MISSING.get('cuda'))"
# In a command: replaced by a whole number of seconds.
SECONDS = "{seconds}"
MEASURED = re.compile(r"^measured (\d+) of (\d+) cases", re.M)
SANITIZER_SUMMARY = re.compile(r"(ERROR|RACECHECK) SUMMARY: (\d+)")
# The first line of a finding: all there is of a sanitizer that was stopped before its summary.
SANITIZER_FINDING = re.compile(
    r"^={9} (?:Invalid|Misaligned|Uninitialized|Barrier error|(?i:error|warning): Race)", re.M
)


@dataclass(frozen=True)
class Step:
    """One command, run from the root of the repository.

    Attributes:
        command: `SECONDS` in a word stands for the time that the step may take; empty where it
            cannot be run.
        needs_library: whether it is not run without a usable library.
        gives_library: whether there is one only if it passes.
        missing: why it cannot be run.
        share: what it may take of the time that is left: one that hangs leaves some to the others.
        until: the part of the budget that has to be left untouched by it starts here.
    """

    name: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    needs_library: bool = True
    gives_library: bool = False
    missing: str = "compute-sanitizer was not found"
    share: float = 0.6
    until: float = 1.0


def steps(python: str, architecture: str, sanitizer: str | None) -> list[Step]:
    """All steps. Without compute-sanitizer its steps are there, with no command."""
    build = {"LEPO_BUILD_CUDA": "1", "LEPO_CUDA_ARCH_LIST": architecture}
    # Warnings of another version of torch are no reason to stop here.
    pytest = (python, "-m", "pytest", "-v", "--tb=short", "-W", "default", "-p", "no:cacheprovider")
    # A fault of a kernel spoils the rest of its process: that of one file's tests.
    contract = (*pytest, *parallel(), "-m", "not slow", "tests/ops", "-k")
    threads = {"OMP_NUM_THREADS": "2"}
    found = [
        Step("build", (python, "setup.py", "-q", "build_ext", "--inplace"), build, False, True),
        Step("load", (python, "-c", LOAD), gives_library=True),
        Step("philox words", (*pytest, "tests/gpu/test_philox_vectors.py")),
        Step("contract", (*contract, "cuda"), threads),
        Step("device", (*pytest, "tests/gpu", "--ignore=tests/gpu/test_philox_vectors.py")),
        Step("triton", (*contract, "triton"), threads, needs_library=False),
    ]
    for tool in SANITIZER_TOOLS:
        options = ["--tool", tool, "--print-limit", "20", "--error-exitcode", str(SANITIZER_FOUND)]
        # Our kernels alone. But initcheck must see what torch's kernels write for ours.
        options += ["--kernel-name", "kns=lepo"] if tool != "initcheck" else []
        # What torch's own calls to CUDA return is torch's to check.
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []
        cases = (python, "-m", "tests.gpu.sanitizer_cases")
        command = (sanitizer, *options, *cases) if sanitizer else ()
        # An allocation for each tensor: torch's cache would hide an overrun.
        found.append(Step(tool, command, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}))
    return found


def parallel() -> tuple[str, ...]:
    """Words that let pytest use several processes, where its plugin for that is installed."""
    if importlib.util.find_spec("xdist") is None:
        return ()
    return ("-p", "no:benchmark", "-n", str(WORKERS), "--dist", "loadfile")


def counts(output: str) -> dict[str, int]:
    """Tests by outcome, a sanitizer's findings, or cases measured; nothing where there is none."""
    found = dict(Counter(outcome.lower() for outcome in OUTCOME.findall(output)))
    summaries = [int(number) for _, number in SANITIZER_SUMMARY.findall(output)]
    findings = len(SANITIZER_FINDING.findall(output))
    if summaries or findings:
        found["findings"] = sum(summaries) if summaries else findings
    for measured, cases in MEASURED.findall(output):
        found |= {"measured": int(measured), "cases": int(cases)}
    return found


def architecture_of(capability: tuple[int, int]) -> str:
    """What LEPO_CUDA_ARCH_LIST calls a device; `a` is code for Hopper or Blackwell alone."""
    major, minor = capability
    return f"{major}.{minor}" + ("a" if capability in ((9, 0), (10, 0)) else "")
