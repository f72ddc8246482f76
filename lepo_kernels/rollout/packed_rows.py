"""Rows of a rollout laid end to end, so that no padding is run.

Contract: transformers' attention takes a batch without a mask, whose positions start at 0 again,
for several sequences, none of which sees another. Rows are put into bins as long as the longest
row, so that attention costs no more than in the plain layout; flash attention, whose cost follows
the sequences, gets one bin of everything. A model in which rows do see each other (recurrent
layers, attention of its own) is found by a few tokens, and not packed.
"""

import weakref
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lepo_kernels.rollout._modules import evaluating
from lepo_kernels.rollout.layout import Steps, fed_steps, rows_of
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.soft_embedding import soft_inputs

# What a row's logits may differ by from those of the row alone, root mean square, of their spread:
# the roundings of some hundred layers in bfloat16 are 2 %; a token at a wrong place changes more.
_SAME = 0.05
# What they may differ by where another row is changed. The kernels and the row's numbers are the
# same, so that nothing is the rule; experts that a row shares with others may round otherwise. In
# half precision that could not be told from seeing a little of the other row.
_ROUNDED = {torch.float32: 1e-5, torch.float64: 1e-5}

_packable: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


class PackedRows:
    """Rows laid end to end.

    Args:
        base: the unwrapped model.
        rollout: the rows and steps to run.
        steps: the selected steps: what comes after a row's last one is not run.
        backend: see `lepo_kernels.backend`.
    """

    name = "packed"

    def __init__(
        self,
        base: Any,
        rollout: LatentRollout,
        steps: Steps,
        *,
        backend: str | None = None,
    ):
        self._base, self._rollout, self._backend = base, rollout, backend
        prompts = rollout.prompt_mask.sum(dim=1)
        self._lengths = prompts + fed_steps(rollout, steps)  # [B]
        lengths: list[int] = self._lengths.tolist()
        one_bin = str(base.config._attn_implementation).startswith("flash")
        self._width = sum(lengths) if one_bin else max(lengths)
        starts, used = fill_bins(lengths, self._width)
        self._starts = torch.tensor(starts, device=rollout.device)  # [B], in the flattened bins
        self._used = torch.tensor(used, device=rollout.device)  # [bins]
        self._first_step = self._starts + prompts  # [B], where step 0 would lie

    @property
    def tokens(self) -> int:
        """How many tokens it runs, padding included."""
        return len(self._used) * self._width

    @property
    def cost(self) -> int:
        """The tokens: there is one pass."""
        return self.tokens

    def arguments(self) -> dict[str, Any]:
        """What the model is called with."""
        ids, _ = rows_of(self._rollout)
        row = torch.arange(len(ids), device=ids.device).repeat_interleave(self._lengths)
        begins = self._lengths.cumsum(0) - self._lengths
        column = torch.arange(len(row), device=ids.device) - begins[row]
        place = self._starts[row] + column
        first = self._rollout.prompt_ids.shape[1] - (self._first_step - self._starts)
        packed = ids.new_zeros(self.tokens)
        packed[place] = ids[row, first[row] + column]
        # The rest of a bin is a sequence of its own.
        positions = torch.arange(self._width, device=ids.device) - self._used[:, None]
        positions.view(-1)[place] = column
        return {
            "input_ids": packed.view(positions.shape),
            "position_ids": positions,
            "use_cache": False,
        }

    def entered(self) -> AbstractContextManager[None]:
        """What the call lies in."""
        L = self._rollout.latent_ids.shape[1]
        places = self._first_step[:, None] + torch.arange(L, device=self._rollout.device)
        places = places.masked_fill(places >= (self._starts + self._lengths)[:, None], -1)
        return soft_inputs(self._base, self._rollout, places=places, backend=self._backend)

    def hidden_of_steps(self, hidden: Tensor, steps: Steps) -> Tensor | None:
        """The states that predict the steps; None while another pass comes."""
        return hidden.flatten(0, 1)[self._first_step[steps.row] + steps.step - 1]


def fill_bins(lengths: list[int], width: int) -> tuple[list[int], list[int]]:
    """Put rows into bins, each into the first one that has room, the longest rows first.

    Args:
        lengths: of the rows, each from 1 to ``width``.
        width: of a bin.

    Returns:
        Where each row starts, counted through all bins; how much of each bin is used.
    """
    starts, used = [0] * len(lengths), list[int]()
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        room = (i for i, taken in enumerate(used) if taken + lengths[row] <= width)
        place = next(room, len(used))
        if place == len(used):
            used.append(0)
        starts[row] = place * width + used[place]
        used[place] += lengths[row]
    return starts, used


@torch.no_grad()
def can_pack(base: Any) -> bool:
    """Whether rows that are laid end to end do not see each other, tried out on a few tokens."""
    table = base.get_input_embeddings().weight
    if not (isinstance(table, nn.Parameter) and table.dim() == 2):
        return False  # flattened or packed: the model cannot be called as it is
    if base not in _packable:
        with evaluating(base):
            _packable[base] = _rows_are_apart(base, table.device)
    return _packable[base]


def _rows_are_apart(base: Any, device: torch.device) -> bool:
    some = torch.arange(1, 10, device=device) % base.config.get_text_config().vocab_size
    first, other, last = some.view(3, 1, 3)
    order = torch.arange(3, device=device)[None]

    def logits(*rows: Tensor) -> Tensor:
        output = base(
            input_ids=torch.cat(rows, dim=1),
            position_ids=order.repeat(1, len(rows)),
            use_cache=False,
        )
        found: Tensor = output.logits[:, -3:]
        return found.float()

    packed, alone = logits(first, last), logits(last)
    seen = _rms(packed - logits(other, last)) / alone.std()
    moved = _rms(packed - alone) / alone.std()
    return bool(seen <= _ROUNDED.get(base.dtype, 0.0)) and bool(moved <= _SAME)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
