"""SIGTERM and SIGHUP end a run after a checkpoint.

A scheduler that wants its machine back sends one of them, and SIGKILL some time later; a terminal
that closes sends SIGHUP. The handler only sets a flag. The run reads it at places where it can
be left: after each step of a rollout, before each micro-batch, after each update. There it
raises `RunEnded`, and `LEPOTrainer.train` saves a checkpoint of the last whole update.

Several processes must leave at the same place, or some would wait for the others forever. So a
process leaves its own part of the work (its rollout, its share of an evaluation) as soon as the
flag is set, and then all exchange their flags.
"""

import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

from accelerate.state import PartialState
from accelerate.utils import gather_object

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))

# torchrun, Slurm and systemd may send a process two signals at once, which mean one thing.
_SECONDS_BETWEEN_SIGNALS = 1.0


class RunEnded(SystemExit):
    """A signal ended the run. Left alone it ends Python with status 128 + the signal's number.

    Attributes:
        signal_name: such as SIGTERM.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signal_name = signal.Signals(signum).name


class _CutShortError(Exception):
    """Leaves the work that a process does alone."""


class StopSignals:
    """Records the signals that end a run, while entered; entering again inside has no effect.

    Signals that are handled by someone else already, or ignored (as under ``nohup``), are left
    alone, and so are all signals outside the main thread, where Python allows no handlers. A second
    signal, a second or more after the first, ends the process at once.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._since = 0.0
        self._depth = 0
        self._owner = 0
        self._taken: list[int] = []

    def __enter__(self) -> "StopSignals":
        self._depth += 1
        if self._depth == 1:
            self.requested, self._owner = None, os.getpid()
            if threading.current_thread() is threading.main_thread():
                for signum in SIGNALS:
                    if signal.getsignal(signum) is signal.SIG_DFL:
                        signal.signal(signum, self._note)
                        self._taken.append(signum)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            for signum in self._taken:
                if signal.getsignal(signum) == self._note:
                    signal.signal(signum, signal.SIG_DFL)
            self._taken = []

    def look(self, *_: object) -> None:
        """Leave the block of `alone` that this is called in, if a signal came.

        Takes and ignores what progress functions are given.
        """
        if self.requested is not None:
            raise _CutShortError

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A block that each process works through without the others; `look` may end it.

        Raises:
            RunEnded: a process got a signal; raised by all of them, after the block.
        """
        with contextlib.suppress(_CutShortError):
            yield
        self.agree()

    def agree(self) -> None:
        """To be called by all processes at the same place.

        Raises:
            RunEnded: one of them got a signal.
        """
        requested = [self.requested]
        if PartialState().num_processes > 1:
            try:
                requested = gather_object(requested)
            except RuntimeError:
                # Another process was killed by the same signal.
                if self.requested is None:
                    raise
        for signum in requested:
            if signum is not None:
                raise RunEnded(signum)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = self.requested is not None
        if os.getpid() != self._owner or (again and now - self._since >= _SECONDS_BETWEEN_SIGNALS):
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        if again:
            return
        self.requested, self._since = signum, now
        if hasattr(signal, "SIGHUP") and signum == signal.SIGHUP:
            _leave_dead_terminal()
        name = signal.Signals(signum).name
        text = f"\n{name}: ending where the run can be resumed; another {name} ends it at once\n"
        # The stream may be in the middle of a line of its own: no buffer can be used here.
        with contextlib.suppress(OSError):
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())


def _leave_dead_terminal() -> None:
    """Writing to a terminal that is gone fails, which must not keep the run from its checkpoint."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
            if is_device and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
