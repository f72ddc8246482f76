"""What a check or a measurement asks of the device, and how long it is planned to take."""

from dataclasses import dataclass

# To plan with, not measured here: what a data-centre GPU of 2023 reaches in bfloat16.
BYTES_PER_SECOND = 3.0e12
FLOPS_PER_SECOND = 7.0e14


@dataclass(frozen=True)
class Work:
    """Bytes that have to be read and written, and operations of matrix products, of one call."""

    bytes: float = 0.0
    flops: float = 0.0

    @property
    def seconds(self) -> float:
        """The longer of the two at the planned rates."""
        return max(self.bytes / BYTES_PER_SECOND, self.flops / FLOPS_PER_SECOND)


def product(rows: int, inner: int, columns: int) -> float:
    """Operations of a matrix product."""
    return 2.0 * rows * inner * columns
