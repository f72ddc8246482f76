"""Runs a script in several processes, and shows what failed where.

``python -m tests.torchrun SCRIPT WORD...`` is what each process runs: the script, with its
exception recorded for torchrun's summary, and the process group destroyed at the end.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import record

from lepo_kernels.trainer.processes import process_group_ends

ROOT = Path(__file__).parents[1]
# Of a failed run's output: a traceback of each process and torchrun's summary.
SHOWN = 8000


def run_processes(script: Path, *words: str, processes: int = 2, timeout: float = 300) -> str:
    """Run a script by torchrun; its output.

    Args:
        script: may import ``tests``.
        *words: the script's arguments.
        processes: how many; 1 runs it without torchrun.
        timeout: seconds.

    Raises:
        AssertionError: a process failed, or it took too long; the message ends with the output.
    """
    launcher = [sys.executable] if processes == 1 else torchrun(processes)
    with subprocess.Popen(
        [*launcher, "-m", "tests.torchrun", str(script), *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            output = process.communicate(timeout=timeout)[0]
            ended = f"status {process.returncode}"
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its workers, which killing it would leave behind
            output = process.communicate(timeout=60)[0]
            ended = f"no end within {timeout:g} s"
    assert process.returncode == 0, f"{script.name} {words}: {ended}\n{output[-SHOWN:]}"
    return output


def torchrun(processes: int) -> list[str]:
    """The beginning of a command that starts processes; ``-m MODULE`` follows."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*command, "--nproc_per_node", str(processes)]


def environment() -> dict[str, str]:
    """A process that a signal ends (an abort at exit) leaves the stack of each thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}


@record
def main() -> None:
    sys.argv = sys.argv[1:]
    with process_group_ends():
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
