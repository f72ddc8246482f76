"""The head of a model: from last hidden states to log-probabilities, without [B, T, V] logits.

Contract: ``LmHead.log_probs`` equals what the model's own logits give, whatever the model does to
them after its output projection (softcap, scale, a LoRA'd head). How a model treats its logits is
read from its config and then verified on a few numbers that go through the model's own forward; a
model that does something else is refused, not approximated.
"""

import functools
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lepo_kernels.formulas.lepo_objective import LepoLoss, lepo_objective
from lepo_kernels.ops.lepo_loss import lepo_loss
from lepo_kernels.ops.linear_log_probs import LinearLogProbs, gather_log_probs, linear_log_probs
from lepo_kernels.rollout._modules import (
    output_embeddings,
    runs_plain_forward,
    swapped_forward,
    unwrap_model,
)

# Numbers sent through a model's treatment of its logits: both signs, small, and beyond any softcap.
_PROBE = (-200.0, -7.0, -0.5, 0.0, 0.25, 3.0, 40.0)

# Bytes of float32 logits that the unfused path holds at a time.
_CHUNK_BYTES = 64 * 2**20

# Models whose treatment of logits was found to be as described.
_verified: "weakref.WeakKeyDictionary[nn.Module, tuple[float | None, float]]" = (
    weakref.WeakKeyDictionary()
)


class LmHead:
    """The output projection of a causal LM and what the model does to its logits.

    ``logits = scale * cap(hidden @ weight.T + bias)``, ``cap(x) = softcap * tanh(x / softcap)``.

    Args:
        model: a decoder-only transformers model, possibly inside DDP, FSDP or peft.
        backend: see `lepo_kernels.backend`.

    Attributes:
        softcap: bound of the logits (Gemma 2), or None.
        scale: factor on the logits (Cohere's logit_scale, 1 / Granite's logits_scaling).
        fused: whether the fused op serves this head. A head with an adapter runs its own forward
            instead, in chunks of rows, recomputed in the backward pass.

    Raises:
        TypeError: not such a model.
        ValueError: the model has no output projection.
    """

    def __init__(self, model: Any, *, backend: str | None = None):
        self.base = unwrap_model(model)
        self.module = module = output_embeddings(self.base)
        self.softcap, self.scale = _describe(self.base)
        self.fused = runs_plain_forward(module, nn.Linear)
        self._backend = backend
        self._plain_forward = module.forward

    def log_probs(
        self,
        hidden: Tensor,  # [N, D]
        ids: Tensor,  # [N, K]
        *,
        temperature: float = 1.0,
    ) -> LinearLogProbs:
        """Logits at ``ids``, log-sum-exp and entropy of softmax(logits / temperature).

        Args:
            hidden: [N, D], the input of the output projection.
            ids: [N, K] int64.
            temperature: divides the logits.

        Returns:
            See `linear_log_probs`; differentiable in ``hidden`` and the head's parameters.
        """
        if not self.fused:
            return self._unfused(hidden, ids, temperature)
        linear: Any = self.module
        return linear_log_probs(
            hidden,
            linear.weight,
            ids,
            bias=linear.bias,
            softcap=self.softcap,
            inv_temperature=self.scale / temperature,
            backend=self._backend,
        )

    def lepo_loss(
        self,
        hidden: Tensor,  # [N, D]
        ids: Tensor,  # [N, K]
        weights: Tensor,  # [N, K]
        latent: Tensor,  # [N] bool
        advantages: Tensor,  # [N]
        row_weights: Tensor,  # [N]
        *,
        temperature: float = 1.0,
        **settings: Any,
    ) -> LepoLoss:
        """LEPO's loss on softmax(logits / temperature).

        Args:
            hidden: [N, D], the input of the output projection.
            ids, weights, latent, advantages, row_weights: see `lepo_loss`.
            temperature: divides the logits.
            **settings: the other arguments of `lepo_objective`.

        Returns:
            See `lepo_loss`; differentiable in ``hidden`` and the head's parameters.
        """
        facts = (weights, latent, advantages, row_weights)
        if not self.fused:
            scored = self._unfused(hidden, ids, temperature)
            return lepo_objective(scored.logits, scored.lse, *facts, **settings)
        linear: Any = self.module
        return lepo_loss(
            hidden,
            linear.weight,
            ids,
            *facts,
            bias=linear.bias,
            softcap=self.softcap,
            inv_temperature=self.scale / temperature,
            backend=self._backend,
            **settings,
        )

    def _unfused(self, hidden: Tensor, ids: Tensor, temperature: float) -> LinearLogProbs:
        vocab = self.base.config.get_text_config().vocab_size
        chunk = max(1, _CHUNK_BYTES // (4 * vocab))

        def run(hidden: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
            logits = self._plain_forward(hidden).float()
            if self.softcap is not None:
                logits = self.softcap * torch.tanh(logits / self.softcap)
            factor = self.scale / temperature
            return tuple(
                gather_log_probs(logits, ids, inv_temperature=factor, backend=self._backend)
            )

        parts = [
            checkpoint(run, hidden[i : i + chunk], ids[i : i + chunk], use_reentrant=False)
            for i in range(0, max(1, hidden.shape[0]), chunk)
        ]
        return LinearLogProbs(*(torch.cat(column) for column in zip(*parts, strict=True)))

    @contextmanager
    def replaced(self, compute: Callable[[Tensor], tuple[Tensor, ...]]) -> Iterator[None]:
        """Let calls of the model return ``compute(hidden)`` instead of logits.

        ``compute`` runs in the place of the output projection, inside that module's own call, so
        that module hooks gather and release its weight as always; its tensors are what the call of
        the (wrapped) model returns, so that hooks on the model's outputs see them. Nothing of size
        [B, T, V] is formed.

        A mixture of experts with ``output_router_logits`` returns its load-balancing loss last,
        behind the tensors of ``compute``.

        Args:
            compute: takes the last hidden states [B, S, D], returns a tuple of tensors; it may
                call ``log_probs``.

        Raises:
            ValueError: in a call of the model, if it treats its logits in a way not known here.
        """
        computed: list[tuple[Tensor, ...]] = []
        plain = self.base.forward

        def take(module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> Tensor:
            computed.append(output)
            return output[0].new_tensor(_PROBE).reshape(1, 1, -1)

        @functools.wraps(plain)
        def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
            outputs = plain(*args, **kwargs)
            if not computed:
                raise ValueError(
                    f"model: {type(self.base).__name__}.forward does not call its output embeddings"
                )
            self._verify(outputs.logits)
            router_loss = getattr(outputs, "aux_loss", None)
            return computed.pop() + (() if router_loss is None else (router_loss,))

        hook = self.module.register_forward_hook(take)
        try:
            with swapped_forward(self.module, compute), swapped_forward(self.base, forward):
                yield
        finally:
            hook.remove()

    def _verify(self, probed: Tensor) -> None:
        """Check what the model made of the probe; once per model, since it waits for the device."""
        described = (self.softcap, self.scale)
        if _verified.get(self.base) == described:
            return
        expected = torch.tensor(_PROBE, device=probed.device)
        if self.softcap is not None:
            expected = self.softcap * torch.tanh(expected / self.softcap)
        # A model may do this in bfloat16, hence the tolerance.
        if probed.numel() != len(_PROBE) or not torch.allclose(
            probed.detach().float().reshape(-1), self.scale * expected, rtol=2e-2, atol=1e-6
        ):
            raise ValueError(
                f"model: {type(self.base).__name__} changes its logits after the head in a way "
                f"that is not known here: expected {self.scale:g} * logits with softcap "
                f"{self.softcap}, but {list(_PROBE)} became {probed.reshape(-1).tolist()}"
            )
        _verified[self.base] = described


def _describe(base: Any) -> tuple[float | None, float]:
    """Softcap and scale of a model's logits, as its config names them."""
    config = base.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(base, "logit_scale", None)
    scale = float(scale) if isinstance(scale, int | float) else 1.0
    divisor = getattr(config, "logits_scaling", None)
    if isinstance(divisor, int | float) and not math.isclose(divisor, 0.0):
        scale /= float(divisor)
    return (None if softcap is None else float(softcap)), scale
