"""Memory that ends, or begins, at a page that nothing may touch: one byte too far is a crash.

Anything that may overrun runs in a process of its own, which tells of the crash by its exit code.
"""

import ctypes
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

SIDES = ("end", "start")
_PROT_NONE = 0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class GuardedMemory:
    """``size`` bytes between two pages without access, flush with the one at ``side``."""

    def __init__(self, size: int, side: str):
        assert side in SIDES
        page = mmap.PAGESIZE
        inner = max(page, -(-size // page) * page)
        self._pages = mmap.mmap(-1, inner + 2 * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._pages))
        for guard in (base, base + page + inner):
            if _libc.mprotect(guard, page, _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        first = base + page
        self.address = first + inner - size if side == "end" else first
        # All of the accessible bytes, those behind or before the guarded ones too.
        self._inner = (ctypes.c_char * inner).from_address(first)
        self._inner.raw = b"\xff" * inner
        self._gap = (inner - size, side)
        self.bytes = (ctypes.c_char * size).from_address(self.address)

    def untouched_beside(self) -> bool:
        """Whether the bytes on the side that is not guarded are as they were."""
        gap, side = self._gap
        beside = self._inner.raw[:gap] if side == "end" else self._inner.raw[len(self.bytes) :]
        return beside == b"\xff" * gap


def run_apart(module: str, *arguments: str, **environment: str) -> str:
    """Run ``python -m module``, which prints what it is about to do; returns its output.

    Raises:
        AssertionError: it died or failed; says at what.
    """
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", module, *arguments],
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    at = (done.stdout.strip().splitlines() or ["its start"])[-1]
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise AssertionError(f"{name} at: {at}\n{done.stderr[-4000:]}")
    assert done.returncode == 0, f"failed at: {at}\n{done.stderr[-4000:]}"
    return done.stdout
