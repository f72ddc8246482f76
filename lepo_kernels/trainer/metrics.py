"""Running means and maxima of metrics between two logs."""

import torch
from accelerate.utils import gather_object
from torch import Tensor


class MetricMeans:
    """Means, and maxima, of everything added since the last `pop`."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._largest: dict[str, float] = {}

    def add(self, values: dict[str, float]) -> None:
        """Add one value per name, each counting once."""
        for name, value in values.items():
            self._add(name, value, 1.0)

    def add_masked(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Add every entry of ``values`` where ``mask`` holds."""
        count = float(mask.sum())
        if count > 0:
            total = torch.where(mask, values.double(), 0.0).sum()
            self._add(name, float(total), count)

    def add_ratio(self, name: str, part: float, whole: float) -> None:
        """Add to a quotient of two sums; nothing where ``whole`` is 0."""
        if whole > 0:
            self._add(name, part, whole)

    def add_max(self, name: str, value: float) -> None:
        """Add a value of which the largest counts."""
        self._largest[name] = max(value, self._largest.get(name, value))

    def pop(self, num_processes: int = 1) -> dict[str, float]:
        """The means by name over all processes, in order of first appearance, then the maxima.

        They are reset.
        """
        mine = [(name, total, self._counts[name]) for name, total in self._sums.items()]
        self._sums, self._counts = {}, {}
        for name, total, count in gather_object(mine) if num_processes > 1 else mine:
            self._add(name, total, count)
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        largest, self._largest = list(self._largest.items()), {}
        for name, value in gather_object(largest) if num_processes > 1 else largest:
            self.add_max(name, value)
        means |= self._largest
        self._largest = {}
        return means

    def _add(self, name: str, total: float, count: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + total
        self._counts[name] = self._counts.get(name, 0.0) + count
