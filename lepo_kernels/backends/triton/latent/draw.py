"""The arguments of a latent draw as the kernels take them, and its fields, still to be written."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lepo_kernels.backends.triton.common.launching import stride_of
from lepo_kernels.backends.triton.latent.row_kernels import CATEGORICAL
from lepo_kernels.structures import DrawnFields, per_row

NOISES = {"none": 0, "gumbel": 1, "gaussian": 2, "dirichlet": 3, "categorical": 4}


@dataclass(frozen=True)
class KernelDraw:
    """The arguments of a draw, as the kernels take them."""

    logits: Tensor  # [N, V], entries of a row are neighbours
    tau: Tensor  # [N] or [1]
    temperature: Tensor  # [N] or [1]
    dropped: Tensor | None  # [V + 1] int8
    seed: Tensor  # []
    row_keys: Tensor | None  # [N]
    step: Tensor  # [N] or [1]
    top_k: int
    top_p: float
    log_min_p: float
    noise: int
    noise_numbers: tuple[float, float, float]  # scale, and the clamp's ends
    num_draws: int
    first_row: int = 0

    @property
    def rows(self) -> int:
        """N."""
        return self.logits.shape[0]

    @property
    def vocab(self) -> int:
        """V."""
        return self.logits.shape[1]

    @property
    def width(self) -> int:
        """Of the outputs."""
        return self.num_draws if self.noise == CATEGORICAL.value else self.top_k

    def part(self, rows: slice) -> "KernelDraw":
        """The draw of some of the rows."""
        return replace(
            self,
            logits=self.logits[rows],
            tau=per_row(self.tau, rows),
            temperature=per_row(self.temperature, rows),
            row_keys=None if self.row_keys is None else self.row_keys[rows],
            step=per_row(self.step, rows),
            first_row=self.first_row + rows.start,
        )

    def tempered(self) -> tuple[Any, ...]:
        """Arguments of a kernel, from the logits to the excluded ids."""
        stride = self.logits.stride(0)
        return self.logits, stride, self.temperature, stride_of(self.temperature), self.dropped

    def key(self) -> tuple[Any, ...]:
        """Arguments of a kernel that the noise depends on."""
        return self.seed, self.row_keys, self.step, stride_of(self.step)

    def filters(self) -> dict[str, bool]:
        """Options of a kernel: which filters there are."""
        return {"NUCLEUS": self.top_p < 1}


def dropped_flags(
    exclude_ids: Tensor | None,  # [M]
    vocab: int,
) -> Tensor | None:  # [vocab + 1] int8
    """1 for excluded ids; those out of range are all clamped to the last place, which is none."""
    if exclude_ids is None:
        return None
    flags = torch.zeros(vocab + 1, dtype=torch.int8, device=exclude_ids.device)
    return flags.index_fill_(0, exclude_ids.clamp(-1, vocab), 1)


def empty_fields(draw: KernelDraw) -> DrawnFields:
    """Fields of `lepo_kernels.ops.sample_latent.LatentSample`, in its order, to be written."""
    rows, device = draw.rows, draw.logits.device

    def entries(dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, draw.width, dtype=dtype, device=device)

    def per_row(dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, dtype=dtype, device=device)

    real = torch.float32
    return (
        entries(torch.int64),
        *(entries(real), entries(real), entries(real)),
        per_row(torch.int32),
        *(per_row(real), per_row(real), per_row(real)),
        *(per_row(torch.int64), per_row(torch.int64)),
    )
