"""Ends a session of pytest in time, and when its device takes no more work."""

import time
from typing import Any

import pytest

from benchmarks.saving import case_of
from benchmarks.session import RUN


class Ending:
    """A plugin of pytest.

    A case that may take longer than what is left is not begun: one takes about as long as another.
    None is begun on a device that no longer works.

    Attributes:
        measured: cases that were begun, and so ended.
        left: cases that were not.
        lost: whether that is because the device no longer works.
    """

    def __init__(self, deadline: float, skip: int = 0) -> None:
        """``deadline`` is a reading of `time.monotonic`; ``skip`` counts cases that were done."""
        self.deadline, self.skip = deadline, skip
        self.measured, self.left, self.lost = 0, 0, False
        self._case, self._runs = "", False
        self._start, self._longest = 0.0, 0.0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Leave a test out by saying that it is done."""
        if case_of(item) != self._case:
            self._begin(item)
        return None if self._runs else True

    def _begin(self, item: pytest.Item) -> None:
        now = time.monotonic()
        if self._runs:
            self._longest = max(self._longest, now - self._start)
        self._case, self._start = case_of(item), now
        if self.skip > 0:
            self.skip -= 1
            self._runs = False
            return
        self.lost = self.lost or not item.config.stash[RUN].device.works()
        self._runs = not self.left and not self.lost and now + self._longest <= self.deadline
        if self._runs:
            self.measured += 1
        else:
            self.left += 1
