"""What belongs together in the arguments of ops, from the public function to the kernel.

A public function fills these structures, its torch op carries them (`lepo_kernels.ops._library`
makes torch's flat list of arguments of their fields), and the kernels of all backends take them.
An argument that an op gains is a field here: it is named where it is checked, and where it is used.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Needs(NamedTuple):
    """Which gradients of a head are wanted."""

    need_dhidden: bool
    need_dlm_head: bool
    need_dbias: bool


class HeadGradients(NamedTuple):
    """Gradients of a head; those not needed are empty, [0]."""

    dhidden: Tensor  # [N, D]
    dlm_head: Tensor  # [V, D]
    dbias: Tensor  # [V]


class Head(NamedTuple):
    """What logits are made of: ``cap(hidden @ lm_head^T + bias)``."""

    hidden: Tensor  # [N, D]
    lm_head: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    softcap: float | None

    def at(self, rows: slice | Tensor) -> "Head":
        """Of some of the rows."""
        return Head(self.hidden[rows], *self[1:])

    def columns(self, count: int) -> "Head":
        """Of the first columns of the vocabulary."""
        bias = None if self.bias is None else self.bias[:count]
        return self._replace(lm_head=self.lm_head[:count], bias=bias)

    def empty_gradients(self, needs: Needs) -> HeadGradients:
        """Uninitialised tensors of the shapes and dtypes of the gradients."""
        return HeadGradients(
            empty_gradient(self.hidden, needs.need_dhidden),
            empty_gradient(self.lm_head, needs.need_dlm_head),
            self.lm_head.new_empty(self.lm_head.shape[0] if needs.need_dbias else 0),
        )


class Selection(NamedTuple):
    """Which logits of a row are selected, and what all of its logits are multiplied by."""

    ids: Tensor  # [N, K]
    inv_temperature: Tensor  # [N] or [1]

    def at(self, rows: slice | Tensor) -> "Selection":
        """Of some of the rows."""
        return Selection(self.ids[rows], per_row(self.inv_temperature, rows))


class Statistics(NamedTuple):
    """Log-sum-exp and entropy of rows of logits."""

    lse: Tensor  # [N]
    entropy: Tensor  # [N]

    def at(self, rows: slice | Tensor) -> "Statistics":
        """Of some of the rows."""
        return Statistics(self.lse[rows], self.entropy[rows])


class Upstream(NamedTuple):
    """Gradients of selected logits, log-sum-exp and entropy."""

    grad_logits: Tensor  # [N, K]
    grad_lse: Tensor  # [N]
    grad_entropy: Tensor  # [N]

    def at(self, rows: slice | Tensor) -> "Upstream":
        """Of some of the rows."""
        return Upstream(*(x[rows] for x in self))


class Noise(NamedTuple):
    """How the Gumbel-softmax mixtures perturb logits, and the temperature of their weights."""

    tau: Tensor  # [N] or [1]
    temperature: Tensor  # [N] or [1]
    seed: Tensor  # []
    row_keys: Tensor  # [N]
    step: Tensor  # [N] or [1]
    first_id: int  # the vocabulary id of the first column

    def at(self, rows: slice | Tensor) -> "Noise":
        """Of some of the rows."""
        return self._replace(
            tau=per_row(self.tau, rows),
            temperature=per_row(self.temperature, rows),
            row_keys=self.row_keys[rows],
            step=per_row(self.step, rows),
        )

    def contiguous(self) -> "Noise":
        """As native kernels read it."""
        return self._replace(
            tau=self.tau.contiguous(),
            temperature=self.temperature.contiguous(),
            row_keys=self.row_keys.contiguous(),
            step=self.step.contiguous(),
        )


class Mixtures(NamedTuple):
    """What a Gumbel-softmax mixture leaves to its backward pass."""

    mixed: Tensor  # [N, D]
    deviation: Tensor  # [N, D]
    statistics: Tensor  # [N, 8]

    def at(self, rows: slice | Tensor) -> "Mixtures":
        """Of some of the rows."""
        return Mixtures(*(x[rows] for x in self))


class MixtureUpstream(NamedTuple):
    """Gradients of a Gumbel-softmax mixture, its log-probability and its log-density."""

    grad_embedding: Tensor  # [N, D]
    grad_log_prob: Tensor  # [N]
    grad_log_density: Tensor  # [N]

    def at(self, rows: slice | Tensor) -> "MixtureUpstream":
        """Of some of the rows."""
        return MixtureUpstream(*(x[rows] for x in self))


class Draw(NamedTuple):
    """How a soft token is drawn from a row of logits.

    Where the tensor of tau, temperature, seed or step is None, the number of that name counts.
    """

    tau: Tensor | None  # [N] or [1]
    temperature: Tensor | None  # [N] or [1]
    top_k: int  # in [1, V]
    top_p: float
    min_p: float
    noise: str
    noise_scale: float
    clamp_low: float
    clamp_high: float
    num_draws: int
    exclude_ids: Tensor | None  # [M]
    seed: Tensor | None  # []
    row_keys: Tensor | None  # [N]; None numbers the rows
    step: Tensor | None  # [N] or [1]
    tau_number: float
    temperature_number: float
    seed_number: int
    step_number: int

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tau, temperature, seed and step, for kernels that take no numbers."""
        tau, temperature, seed, step = self.tau, self.temperature, self.seed, self.step
        if tau is None:
            tau = torch.full((1,), self.tau_number, dtype=torch.float64, device=device)
        if temperature is None:
            number = self.temperature_number
            temperature = torch.full((1,), number, dtype=torch.float64, device=device)
        if seed is None:
            seed = torch.full((), self.seed_number, dtype=torch.int64, device=device)
        if step is None:
            step = torch.full((1,), self.step_number, dtype=torch.int64, device=device)
        return tau, temperature, seed, step


# The fields of `lepo_kernels.ops.sample_latent.LatentSample`, as its kernels return them.
DrawnFields = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def empty_gradient(x: Tensor, needed: bool) -> Tensor:
    """An uninitialised tensor like ``x``, contiguous; [0] if it is not needed."""
    return x.new_empty(x.shape if needed else (0,))


def per_row(
    values: Tensor,  # [N] or [1]
    rows: slice | Tensor,
) -> Tensor:  # [R] or [1]
    """The values of some of the rows."""
    return values if len(values) == 1 else values[rows]
