"""The record of a rollout: what its loss needs, and nothing of size [B, V] or [B, T, D].

Contract: one row per sample. The prompt is left-padded, the completion right-padded, so completion
step t of every row is predicted at column P + t - 1. Which steps were latent is said by a mask per
row, never by position or by a magic id.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from lepo_kernels.validation import check_tensor


@dataclass(frozen=True)
class LatentRollout:
    """Samples of a policy, with the log-probabilities they were drawn with.

    B rows, P prompt columns, T completion steps, L <= T steps that may be latent, K entries of a
    mixture. Policy means softmax(logits / temperature) over the whole vocabulary.

    Attributes:
        prompt_ids: [B, P] int64, left-padded.
        prompt_mask: [B, P] bool, True on the prompt's tokens.
        completion_ids: [B, T] int64: the shadow id on latent steps, then forced and sampled ids,
            then padding.
        completion_mask: [B, T] bool, True on steps that exist, an ending EOS included.
        latent_mask: [B, T] bool, True on latent steps.
        action_mask: [B, T] bool, True on steps the policy chose: latent or sampled, not forced.
        latent_ids: [B, L, K] int64, entries of the mixture at step t (0 where not latent).
        latent_weights: [B, L, K] float32, their weights (0 where unused or not latent).
        latent_count: [B, L] int64, number of entries the sampler kept (0 where not latent).
        latent_scores: [B, L, K] float32, what the method's score needs of each entry (-inf where
            there is none); [B, L, 0] where it needs nothing. See ``record_scores`` of
            `LatentGenerationConfig`.
        log_probs: [B, T] float32: sum_k w_k log pi(id_k) on latent steps, log pi(id) on sampled
            ones, 0 elsewhere.
        entropy: [B, T] float32, of the policy over the whole vocabulary; 0 where not an action.
        row_keys: [B] int64, the key of each row's noise.
        truncated: [B] bool, True where the length limit ended the row.
        seed: the seed of the noise.
        embedding_noise: strength of the gaussian noise on latent embeddings; 0 means none.

    Raises:
        TypeError, ValueError: a tensor has the wrong dtype, shape or device.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor
    latent_mask: Tensor
    action_mask: Tensor
    latent_ids: Tensor
    latent_weights: Tensor
    latent_count: Tensor
    latent_scores: Tensor
    log_probs: Tensor
    entropy: Tensor
    row_keys: Tensor
    truncated: Tensor
    seed: int = 0
    embedding_noise: float = 0.0

    def __post_init__(self) -> None:
        check_tensor("prompt_ids", self.prompt_ids, ("B", "P"), (torch.int64,))
        check_tensor("completion_ids", self.completion_ids, ("B", "T"), (torch.int64,))
        check_tensor("latent_ids", self.latent_ids, ("B", "L", "K"), (torch.int64,))
        B, P = self.prompt_ids.shape
        T = self.completion_ids.shape[1]
        L, K = self.latent_ids.shape[1:]
        if L > T:
            raise ValueError(f"latent_ids: expected at most {T} steps (completion_ids), got {L}")
        steps, latent = (B, T), (B, L)
        wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "prompt_ids": ((B, P), torch.int64),
            "prompt_mask": ((B, P), torch.bool),
            "completion_ids": (steps, torch.int64),
            "completion_mask": (steps, torch.bool),
            "latent_mask": (steps, torch.bool),
            "action_mask": (steps, torch.bool),
            "latent_ids": ((B, L, K), torch.int64),
            "latent_weights": ((B, L, K), torch.float32),
            "latent_count": (latent, torch.int64),
            "log_probs": (steps, torch.float32),
            "entropy": (steps, torch.float32),
            "row_keys": ((B,), torch.int64),
            "truncated": ((B,), torch.bool),
        }
        for name, (shape, dtype) in wanted.items():
            check_tensor(name, getattr(self, name), shape, (dtype,), self.prompt_ids.device)
        device = self.prompt_ids.device
        check_tensor("latent_scores", self.latent_scores, (B, L, "K"), (torch.float32,), device)
        if self.latent_scores.shape[2] not in (0, K):
            raise ValueError(
                f"latent_scores: expected {K} entries per step (latent_ids), or none, got "
                f"{self.latent_scores.shape[2]}"
            )

    def __len__(self) -> int:
        return self.prompt_ids.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.prompt_ids.device

    def select(self, index: Tensor) -> "LatentRollout":
        """Take some rows.

        Args:
            index: [M] int64 row numbers, or [B] bool.
        """
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> "LatentRollout":
        """Move every tensor to ``device``."""
        return self._map(lambda tensor: tensor.to(device))

    def crop(self, steps: int) -> "LatentRollout":
        """Keep the first ``steps`` completion steps, and drop prompt columns that only pad."""
        used = self.prompt_mask.any(dim=0)
        first = int(used.to(torch.uint8).argmax())
        cut: dict[str, Tensor] = {}
        for name in ("prompt_ids", "prompt_mask"):
            cut[name] = getattr(self, name)[:, first:]
        for name in _PER_STEP:
            cut[name] = getattr(self, name)[:, :steps]
        return replace(self, **cut)  # type: ignore[arg-type]

    @classmethod
    def cat(cls, parts: "list[LatentRollout]", pad_token_id: int) -> "LatentRollout":
        """Stack rollouts of the same prompts' width and settings, padding the shorter ones.

        Args:
            parts: at least one rollout; all with the same P, seed and embedding noise.
            pad_token_id: fills ``completion_ids`` where a part ends before the longest.

        Raises:
            ValueError: the parts differ in P, seed or embedding noise.
        """
        first = parts[0]
        for part in parts[1:]:
            same = part.prompt_ids.shape[1] == first.prompt_ids.shape[1]
            if not same or (part.seed, part.embedding_noise) != (first.seed, first.embedding_noise):
                raise ValueError("parts: expected rollouts with the same P, seed and settings")
        joined: dict[str, Tensor] = {}
        for name in _tensor_names():
            tensors = [getattr(part, name) for part in parts]
            sizes = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
            fill = {"completion_ids": pad_token_id, "latent_scores": -torch.inf}.get(name, 0)
            joined[name] = torch.cat([_padded(tensor, sizes, fill) for tensor in tensors])
        return replace(first, **joined)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as a plain dict of tensors, for ``torch.save`` or safetensors."""
        state: dict[str, Tensor] = {name: getattr(self, name) for name in _tensor_names()}
        signed = (self.seed + 2**63) % 2**64 - 2**63
        state["seed"] = torch.tensor(signed, dtype=torch.int64)
        state["embedding_noise"] = torch.tensor(self.embedding_noise, dtype=torch.float64)
        return state

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "LatentRollout":
        """Rebuild what ``state_dict`` gave; the seed comes back as a signed 64-bit number.

        Raises:
            ValueError: an entry is missing or unknown.
        """
        wanted = {f.name for f in fields(cls)}
        if set(state) != wanted:
            missing, unknown = sorted(wanted - set(state)), sorted(set(state) - wanted)
            raise ValueError(f"state: missing {missing}, unknown {unknown}")
        values: dict[str, Any] = dict(state)
        values["seed"] = int(values["seed"])
        values["embedding_noise"] = float(values["embedding_noise"])
        return cls(**values)

    def _map(self, change: Any) -> "LatentRollout":
        return replace(self, **{name: change(getattr(self, name)) for name in _tensor_names()})


torch.serialization.add_safe_globals([LatentRollout])


_PER_STEP = (
    "completion_ids",
    "completion_mask",
    "latent_mask",
    "action_mask",
    "latent_ids",
    "latent_weights",
    "latent_count",
    "latent_scores",
    "log_probs",
    "entropy",
)


def _padded(tensor: Tensor, sizes: list[int], fill: float) -> Tensor:
    """``tensor`` [M, ...] with its trailing dimensions padded at the end to ``sizes``."""
    if list(tensor.shape[1:]) == sizes:
        return tensor
    wide = tensor.new_full((tensor.shape[0], *sizes), fill)
    wide[tuple(slice(size) for size in tensor.shape)] = tensor
    return wide


def _tensor_names() -> list[str]:
    return [f.name for f in fields(LatentRollout) if f.type is Tensor]
