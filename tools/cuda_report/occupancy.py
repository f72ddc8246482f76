"""How many blocks of a kernel a multiprocessor holds at a time.

The limits are those of the CUDA programming guide's table of technical specifications; the rules of
allocation are those of the occupancy calculator.
"""

from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor of one architecture offers; memory in bytes."""

    warps: int
    blocks: int
    shared: int
    shared_per_block: int


LIMITS = {
    "sm_80": Limits(warps=64, blocks=32, shared=164 << 10, shared_per_block=163 << 10),
    "sm_90": Limits(warps=64, blocks=32, shared=228 << 10, shared_per_block=227 << 10),
    "sm_100": Limits(warps=64, blocks=32, shared=228 << 10, shared_per_block=227 << 10),
    "sm_120": Limits(warps=48, blocks=24, shared=100 << 10, shared_per_block=99 << 10),
}
# The same on all of these. Registers are split among four schedulers, and each warp lives on one.
REGISTERS = 64 << 10
SCHEDULERS = 4
REGISTER_UNIT = 256
SHARED_UNIT = 128
# What the system takes of the shared memory of each block.
RESERVED_SHARED = 1024


def blocks_per_multiprocessor(architecture: str, threads: int, registers: int, shared: int) -> int:
    """Blocks of ``threads``, with ``registers`` a thread and ``shared`` bytes a block."""
    limits = LIMITS[architecture]
    if shared > limits.shared_per_block:
        return 0
    warps = -(-threads // WARP)
    registers_per_warp = _rounded_up(registers * WARP, REGISTER_UNIT)
    warps_with_registers = REGISTERS // SCHEDULERS // registers_per_warp * SCHEDULERS
    return min(
        limits.blocks,
        limits.warps // warps,
        warps_with_registers // warps,
        limits.shared // _rounded_up(shared + RESERVED_SHARED, SHARED_UNIT),
    )


def occupancy(architecture: str, threads: int, blocks: int) -> float:
    """The share of a multiprocessor's warps that ``blocks`` of ``threads`` fill."""
    return blocks * -(-threads // WARP) / LIMITS[architecture].warps


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
