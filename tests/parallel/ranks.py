"""One of the processes that run the checks of this folder together.

``python -m tests.parallel.ranks RANK RANKS FOLDER BACKEND...`` runs every check on every backend
and writes what failed to FOLDER/RANK.json.
"""

import contextlib
import json
import sys
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import lepo_kernels
from tests import cuda_backend, triton_backend
from tests.parallel.checks import CHECKS
from tests.parallel.team import PATIENCE

GPU_BACKENDS = {"cuda": cuda_backend, "triton": triton_backend}


def main(rank: int, ranks: int, folder: Path, backends: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=ranks,
        timeout=3 * PATIENCE,
    )
    failures = {}
    for backend in backends:
        with contextlib.ExitStack() as stack:
            if backend in GPU_BACKENDS:
                patch = stack.enter_context(pytest.MonkeyPatch.context())
                stack.enter_context(GPU_BACKENDS[backend].serving(patch))
            stack.enter_context(lepo_kernels.backend(backend))
            for check in CHECKS:
                try:
                    check(backend)
                except Exception:
                    failures[f"{check.__name__}[{backend}]"] = traceback.format_exc()
                # Those that failed catch up with the others.
                dist.barrier()
    (folder / f"{rank}.json").write_text(json.dumps(failures))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
