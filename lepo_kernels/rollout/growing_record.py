"""The record of a rollout that grows by references: no step writes, the end gathers once."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lepo_kernels.rollout.choosing import Choice
from lepo_kernels.rollout.recorded_steps import RecordedSteps


class _Segment:
    """Steps of the same rows."""

    def __init__(
        self,
        rows: Tensor,  # [n] int64, among the B rows of the rollout
    ):
        self.rows = rows
        self.choices: list[Choice] = []
        self.live: list[Tensor] = []


class GrowingRecord:
    """What the rows of a rollout have done so far.

    Args:
        rows: [B] int64, the rows that are decoded; fewer of them after `continue_with`.
    """

    def __init__(
        self,
        rows: Tensor,  # [B]
    ):
        self._segments = [_Segment(rows)]

    def append(
        self,
        choice: Choice,
        live: Tensor,  # [n] bool
    ) -> None:
        """Add a step of the rows that are decoded, of which some may be finished."""
        self._segments[-1].choices.append(choice)
        self._segments[-1].live.append(live)

    def continue_with(
        self,
        rows: Tensor,  # [m] int64
    ) -> None:
        """Only these rows are decoded from now on."""
        self._segments.append(_Segment(rows))

    def steps(
        self,
        latent_end: Tensor,  # [B]
        unfinished: Tensor,  # [B] bool
    ) -> RecordedSteps:
        """All steps of all rows."""
        fields = ("token", "log_prob", "entropy")
        token, log_prob, entropy = (
            self._gather([[getattr(c, name) for c in s.choices] for s in self._segments])
            for name in fields
        )
        mixed = [[c for c in s.choices if c.ids is not None] for s in self._segments]
        width = max((c.ids.shape[1] for s in mixed for c in s), default=0)  # type: ignore[union-attr]

        def wide(name: str, fill: float = 0) -> list[list[Tensor]]:
            return [
                [pad(t := getattr(c, name), (0, width - t.shape[1]), value=fill) for c in s]
                for s in mixed
            ]

        B = latent_end.shape[0]
        if width == 0:
            ids = token.new_zeros(B, 0, 0)
            weights, kept = log_prob.new_zeros(B, 0, 0), token.new_zeros(B, 0)
            scores = weights
        else:
            ids, weights = self._gather(wide("ids")), self._gather(wide("weights"))
            kept = self._gather([[c.kept for c in s] for s in mixed])  # type: ignore[misc]
            scores = weights[..., :0]
            if any(c.scores is not None for s in mixed for c in s):
                scores = self._gather(wide("scores", -torch.inf))
        live = self._gather([s.live for s in self._segments])
        return RecordedSteps(
            token, log_prob, entropy, live, ids, weights, kept, scores, latent_end, unfinished
        )

    def _gather(self, values: list[list[Tensor]]) -> Tensor:  # [B, S, ...]
        """Stack the steps of each segment; rows that a segment leaves out hold zeros."""
        B = self._segments[0].rows.shape[0]
        parts: list[Any] = []
        for segment, steps in zip(self._segments, values, strict=True):
            if not steps:
                continue
            part = torch.stack(steps, dim=1)
            if part.shape[0] < B:
                whole = part.new_zeros(B, *part.shape[1:])
                part = whole.index_copy_(0, segment.rows, part)
            parts.append(part)
        return torch.cat(parts, dim=1)
