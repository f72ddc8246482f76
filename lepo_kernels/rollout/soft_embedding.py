"""The embedding of a mixture of tokens, as the model itself would embed it.

Contract: ``mix`` with weight 1 on one id equals the model's own embedding of that id bit for bit,
whatever the model does there (Gemma scales, an adapter adds). Its gradient goes where that one's
goes: none to the row of the table's ``padding_idx``, which training leaves as it is. Both the
rollout and the training forward go through this file, so they cannot disagree.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lepo_kernels.ops.latent_step import latent_step
from lepo_kernels.ops.mix_embeddings import mix_embeddings
from lepo_kernels.ops.philox import normal_noise
from lepo_kernels.ops.sample_latent import LatentSample, sample_latent
from lepo_kernels.rollout._modules import runs_plain_forward, swapped_forward, unwrap_model
from lepo_kernels.rollout.record import LatentRollout

# The stream of random numbers that belongs to noise on embeddings; lower ones serve the sampler.
EMBEDDING_NOISE_DRAW = 32


class SoftEmbedding:
    """A model's input embedding, for mixtures of ids.

    Args:
        model: a decoder-only transformers model, possibly inside DDP, FSDP or peft.
        backend: see `lepo_kernels.backend`.

    Raises:
        TypeError: not such a model.
        ValueError: a model whose inputs cannot be mixtures.
    """

    def __init__(self, model: Any, *, backend: str | None = None):
        base = unwrap_model(model)
        config = base.config.get_text_config()
        if getattr(config, "hidden_size_per_layer_input", 0):
            raise ValueError(
                f"model: {type(base).__name__} looks ids up in every layer (per-layer embeddings), "
                "so a mixture of ids has no embedding there; expected a model that embeds once"
            )
        module = base.get_input_embeddings()
        if not isinstance(module, nn.Module):
            raise ValueError(f"model: expected an input embedding, {type(base).__name__} has none")
        self.module = module
        self._backend = backend
        # Taken now, so that it stays the plain one while ``soft_inputs`` lends the module another.
        self._plain_forward = module.forward
        self._fast: bool | None = True if runs_plain_forward(module, nn.Embedding) else None
        self._scale: Tensor | None = None

    @property
    def rows(self) -> int:
        """How many ids can be embedded."""
        module: Any = self.module
        # A quantised table is packed.
        return int(getattr(module, "num_embeddings", None) or module.weight.shape[0])

    def mix(
        self,
        ids: Tensor,  # [..., K]
        weights: Tensor,  # [..., K]
    ) -> Tensor:  # [..., D]
        """Embed mixtures: ``sum_k weights_k * embed(ids_k)``, with gradient into the table.

        Returns:
            [..., D] in the dtype of the table; sums are formed in float32.
        """
        if self._fast is None:
            self._fast = self._find_scale()
        if not self._fast:
            return self._mix_looked_up(ids, weights)
        return self._scaled(mix_embeddings(ids, weights, self._table(), backend=self._backend))

    def embed(
        self,
        ids: Tensor,  # [...]
    ) -> Tensor:  # [..., D]
        """The model's own embedding of ids, which is also `mix` of each with weight 1."""
        embedded: Tensor = self._plain_forward(ids)
        return embedded

    def is_like(self, other: "SoftEmbedding") -> bool:
        """Whether it embeds by the same module in the same way."""
        return self.module is other.module and self._plain_forward == other._plain_forward

    def mix_recorded(
        self,
        rollout: LatentRollout,
        row: Tensor,  # [M] int64
        step: Tensor,  # [M] int64
    ) -> Tensor:  # [M, D]
        """What a rollout fed at latent steps of it, noise included, with gradient into the table.

        Args:
            rollout: the recorded samples.
            row, step: [M], the steps.
        """
        mixed = self.mix(rollout.latent_ids[row, step], rollout.latent_weights[row, step])
        if rollout.embedding_noise == 0:
            return mixed
        return add_embedding_noise(
            mixed,
            rollout.embedding_noise,
            seed=rollout.seed,
            row_keys=rollout.row_keys[row],
            step=step,
            backend=self._backend,
        )

    def latent_step(
        self,
        logits: Tensor,  # [n, V]
        **draw: Any,
    ) -> tuple[LatentSample, Tensor | None]:
        """Draw mixtures, and embed them in the same call where the module allows it.

        Args:
            logits: [n, V].
            **draw: the other arguments of `sample_latent`.

        Returns:
            The draw, and what `mix` gives for it, [n, D], to the bit; None if `mix` has yet to be
            called.
        """
        if self._fast is None:
            self._fast = self._find_scale()
        if not self._fast or self.rows < logits.shape[1]:
            return sample_latent(logits, backend=self._backend, **draw), None
        sample, mixed = latent_step(logits, self._table(), backend=self._backend, **draw)
        return sample, self._scaled(mixed)

    def embedded(
        self,
        ids: Tensor,  # [..., K]
    ) -> Tensor:  # [..., K, D]
        """The embeddings of tokens, as the module gives them."""
        rows: Tensor = self._plain_forward(ids)
        return rows

    def _table(self) -> Tensor:
        module: Any = self.module
        table: Tensor = module.weight
        return table if module.padding_idx is None else _with_fixed_row(table, module.padding_idx)

    def _scaled(self, mixed: Tensor) -> Tensor:
        return mixed if self._scale is None else mixed * self._scale.to(mixed)

    def _find_scale(self) -> bool:
        """Whether the module is a lookup times its ``embed_scale``; tried out on a few ids."""
        module: Any = self.module
        scale = getattr(module, "embed_scale", None)
        table = getattr(module, "weight", None)
        if not isinstance(module, nn.Embedding) or not isinstance(scale, Tensor | float):
            return False
        if not isinstance(table, Tensor) or not table.is_floating_point():
            return False
        probe = torch.linspace(0, module.num_embeddings - 1, 8, device=table.device).long()
        with torch.no_grad():
            candidate = torch.as_tensor(scale, device=table.device)
            expected = table[probe] * candidate.to(table.dtype)
            if not torch.equal(self._plain_forward(probe), expected):
                return False
        self._scale = candidate
        return True

    def _mix_looked_up(self, ids: Tensor, weights: Tensor) -> Tensor:
        """The same for a module of unknown kind, such as one with an adapter."""
        rows: Tensor = self._plain_forward(ids)
        kept = rows.float().masked_fill((weights == 0)[..., None], 0.0)
        return (weights[..., None] * kept).sum(dim=-2).to(rows.dtype)


class _FixedRow(torch.autograd.Function):
    """A table, one row of which gets no gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, row: int) -> Tensor:
        ctx.row = row
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # In place: nobody else holds what the mixture's backward has just made, and a copy would be
        # one of the whole table.
        grad[ctx.row] = 0
        return grad, None


def _with_fixed_row(table: Tensor, row: int) -> Tensor:
    fixed: Tensor = _FixedRow.apply(table, row)
    return fixed


def add_embedding_noise(
    embedding: Tensor,  # [N, D]
    strength: float,
    *,
    seed: int | Tensor,
    row_keys: Tensor,  # [N]
    step: int | Tensor,
    backend: str | None = None,
) -> Tensor:  # [N, D]
    """Add gaussian noise with sigma = strength * RMS(embedding) per row.

    The "soft" noise of LEPO's ablation, after Soft Tokens (arXiv 2509.19170). The noise depends on
    (seed, row key, step, dimension) only, so the training forward finds it again. sigma is treated
    as a constant by the gradient.

    Args:
        embedding: [N, D] floating point.
        strength: sigma in units of the row's root mean square.
        seed: 64-bit seed.
        row_keys: [N] int64.
        step: an int, or [N] int64.
        backend: see `lepo_kernels.backend`.
    """
    sigma, noise = embedding_noise(
        embedding, strength, seed=seed, row_keys=row_keys, step=step, backend=backend
    )
    return (embedding.float() + sigma * noise).to(embedding.dtype)


def embedding_noise(
    embedding: Tensor,  # [N, D]
    strength: float,
    *,
    seed: int | Tensor,
    row_keys: Tensor,  # [N]
    step: int | Tensor,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # [N, 1], [N, D]
    """Sigma, and the normal numbers that it multiplies; see `add_embedding_noise`."""
    dimensions = torch.arange(embedding.shape[-1], device=embedding.device)
    noise = normal_noise(
        seed, row_keys, step, dimensions, draw=EMBEDDING_NOISE_DRAW, backend=backend
    )
    sigma = strength * embedding.detach().float().pow(2).mean(dim=-1, keepdim=True).sqrt()
    return sigma, noise


@contextmanager
def soft_inputs(
    model: Any,
    rollout: LatentRollout,
    *,
    places: Tensor | None = None,  # [B, L]
    backend: str | None = None,
) -> Iterator[None]:
    """Let ``model(input_ids=...)`` see the rollout's mixtures at its latent steps.

    Inside the ``with`` block, call the model on the prompt followed by any number of completion
    steps: ``input_ids`` is [B, S] with P <= S <= P + T. The mixtures are formed again from the
    stored (ids, weights) with the current table, with gradient. It happens inside the embedding
    module's own forward, so wrappers (peft, DDP, FSDP) work as always.

    Args:
        model: a decoder-only transformers model, possibly wrapped.
        rollout: the recorded samples.
        places: [B, L] int64: where a batch of another layout has step t of a row, counted through
            the flattened ``input_ids``; -1 where it does not have it. None stands for [B, S].
        backend: see `lepo_kernels.backend`.

    Raises:
        TypeError, ValueError: as ``SoftEmbedding``; inside the block, a call of another shape.
    """
    soft = SoftEmbedding(model, backend=backend)
    plain = soft.module.forward
    latent = rollout.latent_mask[:, : rollout.latent_ids.shape[1]]
    if places is not None:
        latent = latent & (places >= 0)
    rows, steps = latent.nonzero(as_tuple=True)
    if rows.numel() == 0:
        yield
        return

    def forward(input: Tensor) -> Tensor:
        embedded: Tensor = plain(input)
        row, step, width = rows, steps, input.shape[1]
        if places is None:
            _check_input_ids(input, rollout)
            inside = rollout.prompt_ids.shape[1] + steps < width
            row, step = rows[inside], steps[inside]
            place = row * width + rollout.prompt_ids.shape[1] + step
        else:
            place = places[row, step]
        mixed = soft.mix_recorded(rollout, row, step)
        # No view: FSDP2 watches what this returns.
        return embedded.index_put((place // width, place % width), mixed.to(embedded.dtype))

    with swapped_forward(soft.module, forward):
        yield


def _check_input_ids(ids: Tensor, rollout: LatentRollout) -> None:
    B, P = rollout.prompt_ids.shape
    T = rollout.completion_ids.shape[1]
    if ids.dim() != 2 or ids.shape[0] != B or not P <= ids.shape[1] <= P + T:
        raise ValueError(
            f"input_ids: inside soft_inputs expected shape [{B}, {P} to {P + T}], "
            f"got {list(ids.shape)}"
        )
