"""What is done, in which order, and how much of the budget each step may take.

`on_gpu` and `on_cpu` are plain lists: what matters most comes first, and moving a line moves the
step. Only what needs the CUDA library has to stand behind what builds and loads it, and the report
behind what it shows.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

from benchmarks import shapes
from benchmarks.gpu_run import left_out
from benchmarks.gpu_run.step import COUNTS, SANITIZER_FOUND, SECONDS, Step

RESULTS = "results.json"
FACTS = "facts.json"
# The model whose kernels are timed first.
FIRST = "Qwen2.5-3B"
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Processes for the contract's tests: most of their time goes to Python, and each has a context of
# its own on the GPU.
WORKERS = 8
# Ends with the reason if the library that was just built cannot be used: without it, the tests
# would fall back on the simulator.
LOAD = (
    "import sys, torch; from lepo_kernels import dispatch; sys.exit("
    "dispatch.MISSING.get('cuda') or dispatch.why_no_code('cuda', torch.device('cuda')))"
)
_VECTORS = "tests/gpu/test_philox_vectors.py"
# Short samples are enough: a kernel takes micro- or milliseconds there.
_SHORT = ("--seconds", "1")
# Of kernels that take some microseconds, Python's launches would be all there is to see.
_REPLAYED = (*_SHORT, "--graphs")


class Commands:
    """Makes the steps of one run.

    Args:
        python: the Python that runs them.
        out: the folder that is left behind, with the results.
        work: the folder for everything else.
    """

    def __init__(self, python: str, out: Path, work: Path) -> None:
        self.python, self.results, self.work = python, out / RESULTS, work
        self.facts = out / FACTS

    def build(self, part: float, architecture: str) -> Step:
        """The native libraries, for one architecture, into the tree."""
        words = (self.python, "setup.py", "-q", "build_ext", "--inplace")
        for_it = {"LEPO_BUILD_CUDA": "1", "LEPO_CUDA_ARCH_LIST": architecture}
        return Step("build", part, words, for_it, gives_library=True)

    def load(self, part: float) -> Step:
        """Whether the CUDA library can be used."""
        words = (self.python, "-c", LOAD)
        return Step("load", part, words, needs_library=True, gives_library=True)

    def smoke(self, part: float, *words: str) -> Step:
        """Whether every op works at all, at real shapes; those of Triton without the library."""
        return Step("smoke", part, (self.python, "-m", "benchmarks.gpu_run.smoke", COUNTS, *words))

    def first_facts(self, part: float, *words: str) -> Step:
        """What plans rest on, saved one by one; other backends are measured without the library."""
        module = (self.python, "-m", "benchmarks.gpu_run.first_facts", str(self.facts), COUNTS)
        return Step("facts", part, (*module, "--within", SECONDS, *words))

    def tests(self, name: str, part: float, *words: str, needs_library: bool = True) -> Step:
        """Tests; left out where a package is missing without which none runs."""
        missing = left_out.lacks(*left_out.TESTS)
        if missing:
            reason = f"{missing} is not installed"
            return Step(name, part, (), needs_library=needs_library, missing=reason)
        # Warnings of another version of torch are no reason to stop here.
        pytest = ("-v", "--tb=short", "-W", "default", "-p", "no:cacheprovider")
        command = (self.python, "-m", "benchmarks.gpu_run.counting", COUNTS, *pytest, *words)
        return Step(name, part, command, needs_library=needs_library)

    def contract(self, name: str, part: float, backend: str, *, needs_library: bool) -> Step:
        """The everyday tests that every backend passes, on the device."""
        # A fault of a kernel spoils the rest of its process: that of one file's tests.
        words = (*parallel(), "-m", "not slow", "tests/ops", "-k", backend)
        step = self.tests(name, part, *words, needs_library=needs_library)
        return replace(step, environment={"OMP_NUM_THREADS": "2"})

    def sanitizer(self, tool: str, part: float, program: str | None) -> Step:
        """A tool of compute-sanitizer, over calls that launch every kernel."""
        options = ["--tool", tool, "--print-limit", "20", "--error-exitcode", str(SANITIZER_FOUND)]
        # Our kernels alone. But initcheck must see what torch's kernels write for ours.
        options += ["--kernel-name", "kns=lepo"] if tool != "initcheck" else []
        # What torch's own calls to CUDA return is torch's to check.
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []
        cases = (self.python, "-m", "tests.gpu.sanitizer_cases")
        command = (program, *options, *cases) if program else ()
        # An allocation for each tensor: torch's cache would hide an overrun.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        missing = "compute-sanitizer was not found"
        return Step(tool, part, command, alone, needs_library=True, missing=missing)

    def measure(self, name: str, part: float, suite: str, *words: str) -> Step:
        """Benchmarks, saved after each case; other backends are measured without the library."""
        missing = left_out.lacks(*left_out.BENCHMARKS)
        if missing:
            return Step(name, part, (), missing=f"{missing} is not installed")
        module = (self.python, "-m", "benchmarks.gpu_run.measuring", str(self.results), COUNTS)
        return Step(name, part, (*module, "--within", SECONDS, "--suite", suite, *words))

    def strategies(self, part: float) -> Step:
        """The ways of Triton's loss head, timed for the table; the tree's own stays as it is."""
        table = str(self.work / "strategies.json")
        words = (self.python, "-m", "benchmarks.strategies", "--write", "--table", table)
        missing = left_out.lacks("triton")
        if missing:
            return Step("strategies", part, (), missing=f"{missing} is not installed")
        return Step("strategies", part, words)

    def report(self, part: float) -> Step:
        """The page and the pictures; the tables are in its log, too."""
        out = str(self.work / "report")
        words = (self.python, "-m", "benchmarks.report", str(self.results), "--out", out)
        return Step("report", part, words)


def on_gpu(
    do: Commands, capability: tuple[int, int], sanitizer: str | None, *, build: bool = True
) -> list[Step]:
    """All steps, for a GPU of this compute capability; without ``build`` the library is here."""
    rest = ",".join(name for name in shapes.MODELS if name != FIRST)
    first = ("--models", FIRST, *_REPLAYED)
    memcheck, racecheck, *other_tools = SANITIZER_TOOLS
    steps = [
        do.build(0.15, architecture_of(capability)),
        do.load(0.01),
        do.smoke(0.08),
        do.first_facts(0.17),
        do.sanitizer(memcheck, 0.05, sanitizer),
        do.sanitizer(racecheck, 0.05, sanitizer),
        do.tests("philox words", 0.02, _VECTORS),
        do.contract("contract", 0.12, "cuda", needs_library=True),
        do.tests("device", 0.03, "tests/gpu", f"--ignore={_VECTORS}"),
        do.measure("kernels", 0.15, "kernels", *first, "--no-compile"),
        do.strategies(0.05),
        do.contract("triton", 0.05, "triton", needs_library=False),
        # What a longer budget, or a library that need not be built, leaves time for.
        do.measure("end to end", 0.02, "end-to-end", *_SHORT),
        *(do.sanitizer(tool, 0.005, sanitizer) for tool in other_tools),
        do.measure("kernels, other models", 0.005, "kernels", "--models", rest, *_REPLAYED,
                   "--no-compile"),
        # Once more, beside what torch.compile makes of the eager expressions.
        do.measure("kernels, torch.compile", 0.005, "kernels", *first),
        do.report(0.03),
    ]  # fmt: skip
    return steps if build else of_the_whole(steps[1:])


def on_cpu(do: Commands) -> list[Step]:
    """A few tests, and everything else at tiny sizes: what a dry run does."""
    tiny = ("--tiny", "--no-compile", "--device", "cpu")
    return [
        do.smoke(0.15, "--tiny"),
        do.first_facts(0.15, "--tiny"),
        do.tests("philox words", 0.1, _VECTORS, needs_library=False),
        do.measure("kernels", 0.3, "kernels", *tiny),
        do.measure("end to end", 0.25, "end-to-end", *tiny),
        do.report(0.05),
    ]


def of_the_whole(some: list[Step]) -> list[Step]:
    """Steps that share the whole budget as they would their parts."""
    whole = sum(step.part for step in some) or 1.0
    return [replace(step, part=step.part / whole) for step in some]


def parallel() -> tuple[str, ...]:
    """Words that let pytest use several processes, where its plugin for that is installed."""
    if importlib.util.find_spec("xdist") is None:
        return ()
    return ("-p", "no:benchmark", "-n", str(WORKERS), "--dist", "loadfile")


def architecture_of(capability: tuple[int, int]) -> str:
    """What LEPO_CUDA_ARCH_LIST calls a device."""
    return "{}.{}".format(*capability)
