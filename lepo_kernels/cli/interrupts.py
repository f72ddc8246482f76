"""Ctrl-C: the first asks a command to end, the second ends it where it is, without a traceback."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130

_SHOW_CURSOR = b"\x1b[?25h"


@contextlib.contextmanager
def second_interrupt_ends() -> Iterator[None]:
    """Within the block, and after it once Ctrl-C was pressed, a second Ctrl-C ends the process.

    Without, it would interrupt what the first one set off, and show that as a traceback. Where
    Ctrl-C does not raise KeyboardInterrupt, or outside the main thread, nothing changes.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, _first)
    try:
        yield
    finally:
        # Python is still to close down after the first: its end is no place for a traceback.
        if signal.getsignal(signal.SIGINT) is _first:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _first(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, _second)
    raise KeyboardInterrupt


def _second(signum: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), _SHOW_CURSOR)
    os._exit(INTERRUPTED)
