"""Saves what the native ops give; run by test_cpu_determinism.py, once per instruction set.

Argument: the file to write, case name -> outputs.
"""

import sys

import torch

from tests.ops.native_cases import cases, native_ops

# Less than a vector of any instruction set; many vectors and a rest; the vocabulary of Qwen 2.5.
WIDTHS = (7, 1000, 151936)


def main(path: str) -> None:
    torch.set_num_threads(1)
    torch.save(
        {case.name: case.run("cpu") for op in native_ops() for case in cases(op, WIDTHS)}, path
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
