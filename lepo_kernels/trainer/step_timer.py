"""The time of an update, as it is logged."""

import time


class StepTimer:
    """Seconds per update since the last log."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin a run, whose first update is not known yet."""
        self._since = time.perf_counter()
        self._step: int | None = None

    def begin(self, step: int) -> None:
        """Note how many updates were done when the run began; later calls change nothing."""
        if self._step is None:
            self._step = step

    def pop(self, step: int) -> float:
        """The mean time of the updates since the last call."""
        now = time.perf_counter()
        seconds = (now - self._since) / max(1, step - (self._step or 0))
        self._since, self._step = now, step
        return seconds

    def leave_out(self, seconds: float) -> None:
        """Count time that something else took, such as an evaluation, for no update."""
        self._since += seconds
