"""What rows do with their logits: a mixture or a token, and the embedding that is fed next.

Contract: nothing here waits for the device while mixtures are at most `WIDE` entries wide. ``step``
is a number or a 0-d tensor; with a tensor, nothing depends on the step's value, so that one graph
serves every step of a phase.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels.formulas.scores import hard_log_prob, soft_log_prob
from lepo_kernels.ops.sample_latent import sample_latent
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.mixture_draw import changed_draw, changes_draw, recorded_scores
from lepo_kernels.rollout.schedule import Phase
from lepo_kernels.rollout.soft_embedding import SoftEmbedding, add_embedding_noise

# A mixture wider than this is stored only as wide as the kept entries need.
WIDE = 256


class Choice(NamedTuple):
    """What n rows do at a step; the mixture, of K entries, counts for those in the latent phase."""

    token: Tensor  # [n] int64: shadow, forced or sampled id
    log_prob: Tensor  # [n] float32
    entropy: Tensor  # [n] float32
    embedding: Tensor  # [n, D], fed next
    ids: Tensor | None = None  # [n, K]; None where no row is in the latent phase
    weights: Tensor | None = None  # [n, K]
    kept: Tensor | None = None  # [n] int32, entries the sampler kept
    scores: Tensor | None = None  # [n, K] float32, what the method records of each entry


class Place(NamedTuple):
    """Where n rows are in a rollout."""

    step: int | Tensor  # []
    keys: Tensor  # [n] int64, of the rows' noise
    latent_end: Tensor  # [n] int64, the step at which a row's latent phase ends


class Chooser:
    """Chooses for any rows of a rollout.

    Args:
        soft: the model's embedding.
        config: how to sample.
        vocab: columns of the model's logits.
        seed: of the noise, a number or a 0-d int64 tensor.
        backend: see `lepo_kernels.backend`.
    """

    def __init__(
        self,
        soft: SoftEmbedding,
        config: LatentGenerationConfig,
        vocab: int,
        seed: int | Tensor,
        backend: str | None,
        device: torch.device,
    ):
        self._soft, self._config = soft, config
        self._seed, self._backend = seed, backend
        self._eos = torch.tensor(config.eos_token_ids, device=device)
        self._suffix = torch.tensor(config.latent_suffix_ids, dtype=torch.int64, device=device)
        self._latent_ends = torch.tensor(config.latent_end_ids, dtype=torch.int64, device=device)
        absent = absent_ids(config, soft, vocab)
        ids = torch.tensor(absent, dtype=torch.int64, device=device)
        unmixed = torch.cat([self._eos, ids]) if config.latent_eos == "mask" else ids
        # Ids that no step, and that no latent step may choose.
        self._absent, self._unmixed = (x if x.numel() else None for x in (ids, unmixed))

    def choose(
        self,
        logits: Tensor,  # [n, V]
        place: Place,
        phase: Phase,
        *,
        may_force: bool,
    ) -> Choice:
        """Latent rows take a mixture, rows in the suffix its id, the others a token.

        Args:
            logits: of the step.
            place: of the rows.
            phase: what the rows may be in.
            may_force: whether any of them may be in the suffix.
        """
        if phase is Phase.TOKEN:
            return self._token(logits, place, may_force)
        mixture = self._mixture(logits, place)
        if phase is Phase.LATENT:
            return mixture
        latent = place.step < place.latent_end
        token = self._token(logits, place, may_force)
        return Choice(
            torch.where(latent, mixture.token, token.token),
            torch.where(latent, mixture.log_prob, token.log_prob),
            torch.where(latent, mixture.entropy, token.entropy),
            torch.where(latent[:, None], mixture.embedding, token.embedding),
            *mixture[4:],
        )

    def goes_on(
        self,
        token: Tensor,  # [n]
    ) -> Tensor:  # [n] bool
        """Which tokens do not end their row.

        A shadow id is an EOS only where ``latent_eos="stop"`` let it be; a forced id never is.
        """
        if self._eos.numel() == 1:
            return token != self._eos
        return (token[:, None] != self._eos).all(dim=1)

    def leave_latents(
        self,
        choice: Choice,
        place: Place,
        cold_steps: Tensor,  # [n] int64
    ) -> tuple[Tensor, Tensor]:  # [n], [n]
        """Rows that end their latent phase with this step, and go on to the suffix.

        They are those of low entropy for enough steps (cold stop), and those whose likeliest id
        says so.

        Returns:
            The rows' steps of low entropy in a row, and where their latent phase ends.
        """
        threshold = self._config.cold_stop_entropy
        latent = place.step < place.latent_end
        leaves = torch.zeros_like(latent)
        if threshold is not None:
            cold = latent & (choice.entropy < threshold)
            cold_steps = torch.where(cold, cold_steps + 1, 0)
            leaves = latent & (cold_steps >= self._config.cold_stop_steps)
        if self._latent_ends.numel():
            leaves = leaves | (latent & (choice.token[:, None] == self._latent_ends).any(dim=1))
        return cold_steps, torch.where(leaves, place.step + 1, place.latent_end)

    def _mixture(self, logits: Tensor, place: Place) -> Choice:
        config = self._config
        # "soft" perturbs the mixed embedding instead.
        noise = config.noise if config.samples_latents and config.noise != "soft" else "none"
        tau = config.tau if noise == "gumbel" else 1.0
        sample, embedding = self._soft.latent_step(
            logits,
            **self._draw(place, noise),
            tau=tau,
            noise_clamp=config.noise_clamp if noise == "gumbel" else None,
            num_draws=config.num_draws if noise == "categorical" else 1,
            exclude_ids=self._unmixed,
        )
        if changes_draw(config):
            sample, embedding = changed_draw(sample, config, tau), None
        if embedding is None:
            embedding = self._soft.mix(sample.ids, sample.weights)
        scores = recorded_scores(
            sample,
            embedding,
            config,
            self._soft,
            seed=self._seed,
            row_keys=place.keys,
            step=place.step,
            backend=self._backend,
        )
        log_prob = soft_log_prob(sample.logits, sample.lse, sample.weights)
        ids, weights = sample.ids, sample.weights
        if ids.shape[1] > WIDE:
            width = int(sample.count.max())
            ids, weights = ids[:, :width], weights[:, :width]
            scores = None if scores is None else scores[:, :width]
        return Choice(
            sample.shadow,
            log_prob.float(),
            sample.entropy.float(),
            self._with_noise(embedding, place),
            ids,
            weights.float(),
            sample.count,
            scores,
        )

    def _with_noise(self, embedding: Tensor, place: Place) -> Tensor:
        strength = embedding_noise(self._config)
        if strength == 0:
            return embedding
        return add_embedding_noise(
            embedding,
            strength,
            seed=self._seed,
            row_keys=place.keys,
            step=place.step,
            backend=self._backend,
        )

    def _token(self, logits: Tensor, place: Place, may_force: bool) -> Choice:
        noise = "gumbel" if self._config.samples_tokens else "none"
        sample = sample_latent(
            logits, **self._draw(place, noise), exclude_ids=self._absent, backend=self._backend
        )
        # The draw is one of the kept entries, once; padding repeats an id, at -inf.
        others = sample.ids != sample.token[:, None]
        at_token = sample.logits.masked_fill(others, -torch.inf).amax(dim=1)
        log_prob = hard_log_prob(at_token, sample.lse).float()
        token, entropy = sample.token, sample.entropy.float()
        if may_force:
            after = place.step - place.latent_end
            forced = (after >= 0) & (after < len(self._suffix))
            suffix = self._suffix[after.clamp(0, len(self._suffix) - 1)]
            token = torch.where(forced, suffix, token)
            log_prob, entropy = log_prob.masked_fill(forced, 0), entropy.masked_fill(forced, 0)
        return Choice(token, log_prob, entropy, self._soft.embed(token))

    def _draw(self, place: Place, noise: str) -> dict[str, Any]:
        """What mixtures and tokens are drawn with alike."""
        config = self._config
        return {
            "temperature": config.temperature,
            "top_k": config.top_k,
            "top_p": config.top_p,
            "min_p": config.min_p,
            "noise": noise,
            "noise_scale": config.noise_scale,
            "seed": self._seed,
            "row_keys": place.keys,
            "step": place.step,
        }


def embedding_noise(config: LatentGenerationConfig) -> float:
    """Strength of the noise on the mixed embedding."""
    return config.noise_scale if config.noise == "soft" and config.samples_latents else 0.0


def absent_ids(config: LatentGenerationConfig, soft: SoftEmbedding, vocab: int) -> list[int]:
    """Columns of the logits without a token."""
    tokens = min(vocab, soft.rows, config.num_tokens or vocab)
    return sorted({*range(tokens, vocab), *(i for i in config.suppress_tokens if i < vocab)})
