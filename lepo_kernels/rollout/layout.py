"""How a forward over a rollout lies in a batch: which tokens are run, and where a step's state is.

Contract: every layout gives the hidden states and gradients of the plain one, up to rounding:

- plain: one row per sample, prompt and completion, padded to the longest of each;
- `SharedPrompts`: each prompt once, then the completions on top of its keys and values;
- `PackedRows`: rows laid end to end, without padding.

`choose_layout` takes the cheapest one that the model can run.
"""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.soft_embedding import soft_inputs


class LayoutSettings(NamedTuple):
    """Which layouts may be taken beside the plain one."""

    share_prompts: bool = True
    packing: bool = True


class Steps(NamedTuple):
    """M selected steps of a rollout."""

    row: Tensor  # [M] int64
    step: Tensor  # [M] int64


class Layout(Protocol):
    """One call of a model over a rollout's rows."""

    name: str

    @property
    def tokens(self) -> int:
        """How many tokens it runs, padding included."""

    @property
    def cost(self) -> int:
        """What it costs, in tokens: those that it runs, and what further passes cost beside."""

    def arguments(self) -> dict[str, Any]:
        """What the model is called with."""

    def entered(self) -> AbstractContextManager[None]:
        """What the call lies in: mixtures come in the place of latent steps' ids."""

    def hidden_of_steps(
        self,
        hidden: Tensor,  # [b, S, D], what the head is given
        steps: Steps,
    ) -> Tensor | None:
        """[M, D], the states that predict the steps; None while another pass of the call comes."""


class PlainRows:
    """One row per sample.

    Args:
        base: the unwrapped model.
        rollout: the rows and steps to run.
        backend: see `lepo_kernels.backend`.
    """

    name = "plain"

    def __init__(self, base: Any, rollout: LatentRollout, *, backend: str | None = None):
        self._base, self._rollout, self._backend = base, rollout, backend

    @property
    def tokens(self) -> int:
        """How many tokens it runs, padding included."""
        ids = self._rollout.prompt_ids.shape[1] + self._rollout.completion_ids.shape[1] - 1
        return len(self._rollout) * ids

    @property
    def cost(self) -> int:
        """The tokens: there is one pass."""
        return self.tokens

    def arguments(self) -> dict[str, Any]:
        """What the model is called with."""
        ids, mask = rows_of(self._rollout)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
            "use_cache": False,
        }

    def entered(self) -> AbstractContextManager[None]:
        """What the call lies in."""
        return soft_inputs(self._base, self._rollout, backend=self._backend)

    def hidden_of_steps(self, hidden: Tensor, steps: Steps) -> Tensor | None:
        """The states that predict the steps; None while another pass comes."""
        return hidden[steps.row, self._rollout.prompt_ids.shape[1] - 1 + steps.step]


def rows_of(rollout: LatentRollout) -> tuple[Tensor, Tensor]:  # [B, P + T - 1], int64 both
    """Ids and mask of prompt and completion. The last step is predicted, never fed."""
    ids = torch.cat([rollout.prompt_ids, rollout.completion_ids[:, :-1]], dim=1)
    mask = torch.cat([rollout.prompt_mask, rollout.completion_mask[:, :-1]], dim=1).long()
    return ids, mask


def fed_steps(rollout: LatentRollout, steps: Steps) -> Tensor:  # [B] int64
    """How many completion steps each row must be fed, for all of its selected ones."""
    none = torch.zeros(len(rollout), dtype=torch.int64, device=rollout.device)
    return none.scatter_reduce(0, steps.row, steps.step, "amax")
