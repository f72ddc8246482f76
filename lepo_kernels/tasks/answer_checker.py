"""A process that checks answers, and ends when one takes too long.

Packages that compare answers run code on what a model wrote, and that may take forever: a tower of
powers, say. What they do about it works on the main thread alone, and does not work inside a long
arithmetic operation. A process can always be ended.

It is started with the first answer and kept. It is an interpreter that runs ``checker_process.py``
and nothing else: no part of the user's program, no torch. It bounds itself, so that it cannot
outlive a killed run by more than the time of one answer.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

# What the process may take for one answer.
HARD_SECONDS = 20

_PROGRAM = Path(__file__).with_name("checker_process.py")
_logger = logging.getLogger(__name__)


class AnswerChecker:
    """Asks a process; may be shared by threads, which then wait for each other.

    Args:
        setup: what the process checks with: its name in ``checker_process.CHECKERS`` as
            ``checker``, and what that needs; JSON's own types.
        hard_seconds: after so long over one answer the process ends.
    """

    def __init__(self, setup: dict[str, Any], hard_seconds: float = HARD_SECONDS) -> None:
        self.setup = setup
        self.hard_seconds = hard_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._end: Any = None

    def ask(self, *question: Any) -> Any:
        """What the process makes of an answer; None if it took too long or crashed.

        Args:
            question: JSON's own types; the last one is the answer.

        Raises:
            ImportError: the process cannot import what it needs.
        """
        with self._lock:
            process = self._started()
            try:
                reply = _ask(process, question)
            except BaseException:
                # An interrupt leaves a reply behind, which the next answer must not be given.
                self._close()
                raise
            if reply:
                return json.loads(reply)
            self._close()
            _logger.warning(
                "%s took more than %g s over an answer, or crashed; the answer counts as wrong: "
                "%.200r",
                self.setup["checker"],
                self.hard_seconds,
                str(question[-1])[-200:],
            )
            return None

    def close(self) -> None:
        """End the process; the next answer starts another."""
        with self._lock:
            self._close()

    def _started(self) -> "subprocess.Popen[str]":
        if self._owner != os.getpid():
            self._process = None  # a fork's copy: the pipes are its parent's
        if self._process is None:
            process = subprocess.Popen(
                # -I: neither the folder of the file nor the environment may hide a module.
                [sys.executable, "-I", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
            self._process, self._owner = process, os.getpid()
            # Also when the checker is forgotten, and when the interpreter ends.
            self._end = weakref.finalize(self, _end, process, self._owner)
            try:
                reply = _ask(process, (sys.path, self.hard_seconds, self.setup))
            except BaseException:
                self._close()
                raise
            started = json.loads(reply) if reply else "it ended at once"
            if started != "ready":
                self._close()
                raise ImportError(f"{self.setup['checker']}: cannot be used: {started}")
        return self._process

    def _close(self) -> None:
        self._process = None
        if self._end is not None:
            self._end()


def _ask(process: "subprocess.Popen[str]", question: tuple[Any, ...]) -> str:
    """The line that answers a question; empty if the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


def _end(process: "subprocess.Popen[str]", owner: int) -> None:
    if os.getpid() == owner:
        process.kill()
        with process:  # closes its pipes and waits for its end
            pass
