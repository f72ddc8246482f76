"""Saves what the native ops give; run by test_cpu_determinism.py, once per instruction set.

Argument: the file to write, case name -> outputs.
"""

import sys

import torch

from tests.ops.native_cases import cases, native_ops

# Many vectors and a rest; a little more than the vocabulary of SmolLM2, which is worth splitting.
WIDTHS = (1000, 49155)


def main(path: str) -> None:
    torch.set_num_threads(1)
    torch.save(
        {case.name: case.run("cpu") for op in native_ops() for case in cases(op, WIDTHS)}, path
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
