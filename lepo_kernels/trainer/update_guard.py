"""Stopping an update whose loss or gradient is not finite, before the optimizer applies it.

One such update makes every weight NaN, and each later checkpoint with it. All processes take part
in the decision, so that none continues alone.
"""

from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers.utils import logging

from lepo_kernels.report.run_folder import NONFINITE_BATCH
from lepo_kernels.trainer.checkpoint import last_complete_checkpoint
from lepo_kernels.trainer.experience import Experience

logger = logging.get_logger(__name__)

# A run that skips such updates must not fill the disk with them.
MOST_KEPT = 8
# How many samples or parameters a message names.
MOST_NAMED = 5


class NonFiniteError(RuntimeError):
    """A loss, a gradient or a weight is NaN or infinite; the message names the step and cause."""


class UpdateGuard:
    """Looks at every update of one process before it is applied.

    An update is bad where a micro-batch's loss is not finite, or the norm of the whole gradient is
    not: an entry is NaN or infinite, or finite entries are so large that clipping by their norm
    would make all of them 0. Under fp16's loss scaling an overflow of the scaled gradient is no
    fault: the scaler skips the update and lowers the scale. It is one when the scale is down
    to 1 and nothing is scaled any more, or when the loss itself is not finite.

    Args:
        accelerator: for the other processes, and the loss scaler.
        output_dir: where bad batches are kept.
        skip: skip bad updates instead of raising.
    """

    def __init__(self, accelerator: Any, output_dir: Path, skip: bool) -> None:
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.skip = skip
        self._taken: list[Tensor] = []
        self._losses: list[Tensor] = []
        self._skipped = 0

    def start(self) -> None:
        """Forget an update that was begun and not finished."""
        self._taken, self._losses = [], []

    def take(
        self,
        index: Tensor,  # [M] int64
    ) -> None:
        """Note which samples of the experience the next micro-batch trains on."""
        self._taken.append(index)

    def add(
        self,
        loss: Tensor,  # []
    ) -> Tensor:  # []
        """Note a micro-batch's loss; returns it, or 0 where it is skipped and would spoil a sum."""
        self._losses.append(loss)
        return torch.where(loss.isfinite(), loss, 0.0) if self.skip else loss

    def finish(
        self, model: nn.Module, experience: Experience, step: int, reward_cause: str | None
    ) -> None:
        """Decide on the update whose gradients ``model`` holds. Waits for the device once.

        Args:
            model: the policy as it is trained.
            experience: what the update's micro-batches were taken from.
            step: the number of the update, from 1.
            reward_cause: what is wrong with the rewards behind the experience, if anything is.

        Raises:
            NonFiniteError: the update is bad on any process, and is not to be skipped. Weights and
                optimizer are as they were before; the batch is in ``output_dir``.
        """
        bad_losses, bad_gradients = self._faults(model)
        if bad_losses or bad_gradients:
            if self._left_to_scaler(bad_losses):
                self._skipped += 1
            else:
                self._refuse(model, experience, step, reward_cause)
        self.start()

    def pop_skipped(self) -> int:
        """How many updates were skipped since the last call."""
        skipped, self._skipped = self._skipped, 0
        return skipped

    def _faults(self, model: nn.Module) -> tuple[int, int]:
        """On how many processes a loss, and the gradient, is not finite."""
        # Scaled gradients may square to infinity with no entry that the scaler would object to.
        order = 2.0 if self.accelerator.scaler is None else float("inf")
        norm = get_total_norm([g for _, g in _gradients(model)], norm_type=order)
        losses = torch.stack(self._losses)
        faults = torch.stack([~losses.isfinite().all(), ~norm.isfinite().to(losses.device)]).int()
        if self.accelerator.num_processes > 1:
            faults = self.accelerator.reduce(faults, "sum")
        bad_losses, bad_gradients = faults.tolist()
        return bad_losses, bad_gradients

    def _left_to_scaler(self, bad_losses: int) -> bool:
        scaler = self.accelerator.scaler
        return scaler is not None and not bad_losses and scaler.get_scale() > 1

    def _refuse(
        self, model: nn.Module, experience: Experience, step: int, reward_cause: str | None
    ) -> None:
        """Raise, or drop the gradients so that the optimizer has nothing to apply."""
        batch = experience.select(torch.cat(self._taken))
        losses = [float(loss) for loss in self._losses]
        causes = _causes(model, batch, losses, reward_cause)
        process = self.accelerator.process_index
        kept = self._keep({"step": step, "causes": causes, "losses": losses}, batch, process)
        told = [f"process {process}: {'; '.join(causes) or 'nothing wrong here'}. {kept}"]
        if self.accelerator.num_processes > 1:
            told = gather_object(told)
        message = f"update {step} is not finite. " + " ".join(told)
        if self.skip:
            logger.warning(f"{message} It is skipped.")
            self._skipped += 1
            _drop_gradients(model, self.accelerator.scaler)
            return
        last = last_complete_checkpoint(self.output_dir)
        raise NonFiniteError(
            f"{message} It was not applied: the weights are those of step {step - 1}; "
            + (f"the last complete checkpoint is {last}. " if last else "there is no checkpoint. ")
            + "skip_nonfinite_updates skips such updates"
        )

    def _keep(self, told: dict[str, Any], batch: Experience, process: int) -> str:
        """Store the batch for inspection; says where, or why not."""
        file = self.output_dir / NONFINITE_BATCH.format(step=told["step"], process=process)
        others = NONFINITE_BATCH.format(step="*", process=process)
        if len(list(self.output_dir.glob(others))) >= MOST_KEPT:
            return f"Its batch is not kept: {self.output_dir} holds {MOST_KEPT} already."
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            torch.save({**told, "experience": batch.state_dict()}, file)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError. What stopped the run must be told first.
            return f"Its batch could not be kept ({error})."
        return f"Its batch is in {file}."


def check_weights(model: nn.Module, step: int) -> None:
    """Check that every trained weight is finite, so that no other is ever saved.

    A finite gradient can still take a weight out of its dtype's range: by a learning rate that is
    far too large, or in float16.

    Raises:
        NonFiniteError: naming the parameters.
    """
    bad = [n for n, p in model.named_parameters() if p.requires_grad and not _finite(p)]
    if bad:
        raise NonFiniteError(
            f"the weights after update {step} are not finite and are not saved: {_some(bad)}; "
            "a lower learning_rate, or weights in a dtype with more range, would avoid it"
        )


def reward_cause(
    names: list[str],
    weights: list[float],
    rewards: Tensor,  # [B, F]
    advantages: Tensor,  # [B]
) -> str | None:
    """What made advantages non-finite in float32: the largest weighted reward; None if none is."""
    bad = ~advantages.float().isfinite()
    if not bool(bad.any()):
        return None
    weighted = (rewards * torch.tensor(weights, dtype=rewards.dtype)).abs()
    # A missing reward is NaN, too, but takes no part; a weight that is NaN does.
    weighted = weighted.nan_to_num(float("inf")).masked_fill(rewards.isnan() | ~bad[:, None], -1.0)
    row, function = divmod(int(weighted.argmax()), len(names))
    return (
        f"the advantages of {int(bad.sum())} of the rollout's {len(bad)} samples are not finite, "
        f"the largest reward behind them is {float(rewards[row, function]):g} of "
        f"reward function {names[function]!r} for sample {row} (weight {weights[function]:g})"
    )


def _causes(
    model: nn.Module, batch: Experience, losses: list[float], reward_cause: str | None
) -> list[str]:
    """What is not finite on this process, first causes first."""
    causes = []
    for name in ("advantages", "token_weights", "old_log_prob", "ref_log_probs"):
        values = getattr(batch, name)
        if values is not None and not _finite(values):
            rows = (~values.isfinite()).reshape(len(batch), -1).any(1).nonzero()[:, 0]
            causes.append(f"{name} of the batch's samples {_some(rows.tolist())}")
            if name == "advantages" and reward_cause is not None:
                causes[-1] += f" ({reward_cause})"
    bad = [f"{loss:g} of micro-batch {i}" for i, loss in enumerate(losses) if not isfinite(loss)]
    if bad:
        causes.append(f"loss {_some(bad)}")
    bad = [name for name, gradient in _gradients(model) if not _finite(gradient)]
    if bad:
        causes.append(f"gradient of {_some(bad)}")
    elif not causes and not _finite(get_total_norm([g for _, g in _gradients(model)])):
        causes.append("the gradient's norm, whose square overflows")
    return causes


def _gradients(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad


def _drop_gradients(model: nn.Module, scaler: Any) -> None:
    """Leave the optimizer nothing to apply; it skips parameters without a gradient."""
    for parameter in model.parameters():
        if scaler is None:
            parameter.grad = None
        elif parameter.grad is not None:
            # A loss scaler wants to see gradients, and skips an update with such ones.
            parameter.grad.fill_(float("nan"))


def _finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def _some(named: Sequence[Any]) -> str:
    """The first few of them, and how many more there are."""
    more = len(named) - MOST_NAMED
    first = ", ".join(str(name) for name in named[:MOST_NAMED])
    return f"{first} and {more} more" if more > 0 else first
