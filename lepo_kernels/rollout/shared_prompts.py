"""Each prompt of a rollout run once for all of its samples, with gradient.

Contract: samples of one prompt differ only in their completions, so the prompt is run once, its
keys and values are repeated, and the completions run on top of them, rows of like length together,
so that little padding is run. Autograd goes through the cache. All passes lie within one call of
the (wrapped) model, so that DDP, FSDP and peft see one forward.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lepo_kernels.rollout._modules import swapped_forward
from lepo_kernels.rollout.layout import Steps, fed_steps, rows_of
from lepo_kernels.rollout.model_cache import cache_argument, check_grown, make_cache
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.rotary import changes_with_length
from lepo_kernels.rollout.soft_embedding import soft_inputs

# What a pass costs beside its tokens, in tokens: on a GPU, some 60 launches per layer for forward
# and backward, which take as long as a few hundred tokens of a model of 1 to 3 billion weights.
_PASS = 256


class PromptGroups(NamedTuple):
    """Which rows of a rollout have the same prompt."""

    first: Tensor  # [U] int64, a row of each prompt
    of_row: Tensor  # [B] int64, the prompt of each row


def prompt_groups(rollout: LatentRollout) -> PromptGroups:
    """Group the rows of a rollout by their prompts."""
    mask = rollout.prompt_mask.long()
    masked = rollout.prompt_ids * mask + mask - 1  # padding is -1, whatever its id
    prompts, of_row = torch.unique(masked, dim=0, return_inverse=True)
    rows = torch.arange(len(rollout), device=rollout.device)
    first = rows.new_full((len(prompts),), len(rollout))
    return PromptGroups(first.scatter_reduce(0, of_row, rows, "amin"), of_row)


class SharedPrompts:
    """Each prompt once, and completions on top of it.

    Args:
        base: the unwrapped model.
        rollout: the rows and steps to run.
        steps: the selected steps: what comes after a row's last one is not run.
        several_passes: whether completions may be run in several passes, by their lengths.
        backend: see `lepo_kernels.backend`.
    """

    name = "shared"

    def __init__(
        self,
        base: Any,
        rollout: LatentRollout,
        steps: Steps,
        *,
        several_passes: bool = True,
        backend: str | None = None,
    ):
        self._base, self._rollout, self._backend = base, rollout, backend
        self.groups = prompt_groups(rollout)
        fed = fed_steps(rollout, steps)
        longest_first = fed.argsort(descending=True, stable=True)
        widths: list[int] = fed[longest_first].tolist()
        sizes = cut_by_length(widths, _PASS if several_passes else len(widths) * max(widths))
        self._passes = list(zip(longest_first.split(sizes), _first_of(widths, sizes), strict=True))
        if self._passes[-1][1] == 0:  # rows of which only the prompt's last state is asked for
            self._passes.pop()
        self._hidden: list[Tensor] = []

    @property
    def tokens(self) -> int:
        """How many tokens it runs, padding included."""
        prompts = len(self.groups.first) * self._rollout.prompt_ids.shape[1]
        return prompts + sum(len(rows) * width for rows, width in self._passes)

    @property
    def passes(self) -> int:
        """How many passes the completions take; none where prompts predict all that is asked."""
        return len(self._passes)

    @property
    def cost(self) -> int:
        """The tokens, and one further pass for each part of the completions."""
        return self.tokens + _PASS * self.passes

    def arguments(self) -> dict[str, Any]:
        """What the model is called with."""
        ids, mask = rows_of(self._rollout)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
            "use_cache": False,
        }

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What the call lies in."""
        with swapped_forward(self._base, functools.partial(self._forward, self._base.forward)):
            yield

    def hidden_of_steps(self, hidden: Tensor, steps: Steps) -> Tensor | None:
        """The states that predict the steps; None while another pass comes."""
        self._hidden.append(hidden)
        if len(self._hidden) <= len(self._passes):
            return None
        of_prompts, *parts = self._hidden
        states = [of_prompts[:, -1], *(part.flatten(0, 1) for part in parts)]
        return torch.cat(states).index_select(0, self._places(steps))

    def _places(self, steps: Steps) -> Tensor:  # [M]
        """Where in the passes' states, laid end to end, those that predict the steps are."""
        before = len(self.groups.first)
        start = torch.empty_like(self.groups.of_row)
        for rows, width in self._passes:
            start[rows] = before + torch.arange(len(rows), device=rows.device) * width
            before += len(rows) * width
        fed = start[steps.row] + steps.step - 1
        return torch.where(steps.step == 0, self.groups.of_row[steps.row], fed)

    def _forward(
        self,
        plain: Callable[..., Any],
        *,
        input_ids: Tensor,  # [B, P + T - 1]
        attention_mask: Tensor,  # [B, P + T - 1]
        position_ids: Tensor,  # [B, P + T - 1]
        **others: Any,
    ) -> Any:
        first, P = self.groups.first, self._rollout.prompt_ids.shape[1]
        cache = make_cache(self._base, "dynamic", 0)
        name = cache_argument(self._base)
        others |= {name: cache, "use_cache": True}
        outputs = plain(
            input_ids=input_ids[first, :P],
            attention_mask=attention_mask[first, :P],
            position_ids=position_ids[first, :P],
            **others,
        )
        check_grown(self._base, cache, P)
        for rows, width in self._passes:
            others[name] = _repeated(cache, self.groups.of_row[rows])
            with soft_inputs(
                self._base, self._rollout, places=self._latent(rows, width), backend=self._backend
            ):
                outputs = plain(
                    input_ids=input_ids[rows, P : P + width],
                    attention_mask=attention_mask[rows, : P + width],
                    position_ids=position_ids[rows, P : P + width],
                    **others,
                )
        return outputs

    def _latent(self, rows: Tensor, width: int) -> Tensor:  # [B, L]
        """Where a pass has each row's latent steps; -1 where it does not."""
        B, L = self._rollout.latent_ids.shape[:2]
        step = torch.arange(L, device=rows.device)
        places = torch.full((B, L), -1, device=rows.device)
        start = torch.arange(len(rows), device=rows.device)[:, None] * width
        places[rows] = torch.where(step < width, start + step, -1)
        return places


def cut_by_length(
    widths: list[int],  # descending
    pass_cost: int,
) -> list[int]:
    """Sizes of consecutive parts, such that rows padded to their part's longest waste little.

    A part is cut where that saves the most padding, as long as it saves ``pass_cost``.
    """
    saved = [(len(widths) - i) * (widths[0] - widths[i]) for i in range(len(widths))]
    cut = max(range(len(widths)), key=saved.__getitem__)
    if saved[cut] <= pass_cost:
        return [len(widths)]
    return cut_by_length(widths[:cut], pass_cost) + cut_by_length(widths[cut:], pass_cost)


def _first_of(widths: list[int], sizes: list[int]) -> list[int]:
    """The widest of each part."""
    places = [sum(sizes[:part]) for part in range(len(sizes))]
    return [widths[place] for place in places]


def why_no_sharing(base: Any) -> str | None:
    """Why a model's cache cannot stand for its prompts in training; None where it can."""
    if base.training and getattr(base, "is_gradient_checkpointing", False):
        return "gradient checkpointing switches its cache off"
    if changes_with_length(base.config):
        return "its rotary embedding changes with the sequence's length"
    try:
        cache_argument(base)
    except ValueError:
        return "its forward takes no key-value cache"
    layers = make_cache(base, "dynamic", 0).layers
    if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return "its cache holds other layers than attention's keys and values"
    return None


def _repeated(cache: Any, of_row: Tensor) -> Any:
    """A cache with every row's keys and values, with gradient into those of its prompt."""
    repeated = copy.copy(cache)
    repeated.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in repeated.layers:
        # The cache's own way indexes, whose backward adds numbers one by one on a CPU.
        layer.keys = layer.keys.index_select(0, of_row)
        layer.values = layer.values.index_select(0, of_row)
    return repeated
