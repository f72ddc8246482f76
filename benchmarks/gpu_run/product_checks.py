"""The matrix products around the row kernels, whose lines run on CUDA tensors alone."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.gpu_run.agreement import disagreement
from benchmarks.gpu_run.calls import Sizes
from benchmarks.gpu_run.work import Work, product
from lepo_kernels.backends.gpu.products import add_product, wide_product

# Rows of the loss's matrices begin at multiples of so many entries.
ALIGNMENT = 64


def product_checks(
    sizes: Sizes, device: torch.device
) -> Iterator[tuple[str, Work, Callable[[], None]]]:
    """A name, the work, and what raises an AssertionError if a product is wrong."""
    torch.manual_seed(0)
    rows, vocab, width = sizes.loss_rows, sizes.vocab, sizes.width
    hidden = torch.randn(rows, width, device=device).bfloat16()
    head = torch.randn(vocab, width, device=device).bfloat16()
    da = padded(rows, vocab, torch.bfloat16, device)
    da.copy_(torch.randn(rows, vocab, device=device) / vocab)
    work = Work(flops=product(rows, width, vocab))

    def into_padded_rows() -> None:
        out = padded(rows, vocab, torch.float32, device)
        whole = out._base
        assert whole is not None
        whole.fill_(-7)
        wide_product(hidden, head.T, out=out)
        _compare(out, hidden.float() @ head.float().T, width)
        assert (whole[:, vocab:] == -7).all(), "it wrote between the rows"

    def unpadded() -> None:
        _compare(wide_product(hidden, head.T), hidden.float() @ head.float().T, width)

    def added_in_place() -> None:
        total = torch.ones(vocab, width, device=device)
        add_product(total, da.T, hidden)
        _compare(total, da.float().T @ hidden.float() + 1, rows)

    def transposed() -> None:
        _compare(torch.mm(da.T, hidden), (da.float().T @ hidden.float()).bfloat16(), rows)

    def transposed_into_a_part() -> None:
        out, part = torch.zeros(vocab, width, device=device).bfloat16(), slice(1, vocab - 1)
        torch.mm(da[:, part].T, hidden, out=out[part])
        _compare(out[part], (da[:, part].float().T @ hidden.float()).bfloat16(), rows)

    def back_to_hidden() -> None:
        _compare(wide_product(da, head), da.float() @ head.float(), vocab)

    for name, run in (
        ("product into padded float32 rows", into_padded_rows),
        ("product in float32, odd rows", unpadded),
        ("product added in place", added_in_place),
        ("product with transposed gradients", transposed),
        ("the same into a part of the head", transposed_into_a_part),
        ("product of gradients in float32", back_to_hidden),
    ):
        yield name, work, run


def padded(
    rows: int,
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:  # [rows, columns], rows aligned
    """Part of a matrix whose rows are as long as the next multiple of `ALIGNMENT`."""
    stride = -(-columns // ALIGNMENT) * ALIGNMENT
    return torch.zeros(rows, stride, dtype=dtype, device=device)[:, :columns]


def _compare(ours: Tensor, expected: Tensor, sums: int) -> None:
    if found := disagreement(ours, expected, sums):
        raise AssertionError(found)
