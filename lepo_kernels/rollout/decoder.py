"""The decode loop behind `latent_generate`.

Design note: the loop feeds ``inputs_embeds`` [B, 1, D] to a cache; it waits for the device at most
once a step (to see whether rows are done), and not at all while no row can end.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lepo_kernels.formulas.scores import hard_log_prob, soft_log_prob
from lepo_kernels.ops.sample_latent import sample_latent
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.growing_record import Choice, GrowingRecord
from lepo_kernels.rollout.model_cache import (
    cache_argument,
    check_grown,
    make_cache,
    step_arguments,
)
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.soft_embedding import SoftEmbedding, add_embedding_noise

# A mixture wider than this is stored only as wide as the kept entries need.
_WIDE = 256


class Decoder:
    """One rollout in progress: the rows still in the batch, and the record of all rows."""

    def __init__(
        self,
        base: Any,
        soft: SoftEmbedding,
        input_ids: Tensor,
        attention_mask: Tensor,
        config: LatentGenerationConfig,
        num_return_sequences: int,
        seed: int,
        row_keys: Tensor | None,
        backend: str | None,
    ):
        self.base, self.soft, self.config = base, soft, config
        self.seed, self.backend = seed, backend
        device = input_ids.device
        self.samples = num_return_sequences
        self.prompt_ids = input_ids.long().repeat_interleave(self.samples, dim=0)
        self.prompt_mask = attention_mask.bool().repeat_interleave(self.samples, dim=0)
        B, P = self.prompt_ids.shape
        T = config.max_new_tokens
        self.row_keys = torch.arange(B, device=device) if row_keys is None else row_keys
        self.eos = torch.tensor(config.eos_token_ids, device=device)
        # Ids without a token, and those kept out of a mixture; known with the first logits.
        self.absent: Tensor | None = None
        self.unmixed: Tensor | None = None
        self.suffix = torch.tensor(config.latent_suffix_ids, dtype=torch.int64, device=device)
        self.last_only = step_arguments(base)

        # The rows still in the batch. Entries of finished rows stay until enough of them are gone.
        self.rows = torch.arange(B, device=device)
        self.live = torch.ones(B, dtype=torch.bool, device=device)
        self.keys = self.row_keys
        self.latent_end = torch.full((B,), config.latent_length, device=device)
        self.cold_steps = torch.zeros(B, dtype=torch.int64, device=device)
        self.mask = torch.ones(B, P + T, dtype=torch.int64, device=device)
        self.mask[:, :P] = self.prompt_mask
        self.positions = self.mask[:, :P].cumsum(dim=1) - 1
        # Without padding no mask is passed: transformers would read one back at every step.
        self.padded = not bool(self.prompt_mask.all())
        # Whether a row left the latent phase early; known on the host.
        self.some_left = False

        self.cache = make_cache(base, config.cache_implementation, P + T)
        self.cached = {cache_argument(base): self.cache, "use_cache": True}
        # Whether rows of the cache can be repeated and dropped.
        self.cache_is_flexible = all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in self.cache.layers
        )
        self.record = GrowingRecord(B, config, device)

    def run(self, progress: Callable[[int, int], None] | None) -> LatentRollout:
        """Decode until every row is done or the length limit is reached."""
        total = self.config.max_new_tokens
        logits = self._prefill()
        self._leave_out(logits.shape[1])
        for step in range(total):
            choice = self._choose(logits, step)
            stopped = self._stopped(choice)
            self.record.write(step, self.rows, self.live, choice, stopped)
            self._follow_entropy(choice, step)
            self.live = self.live & ~stopped
            if progress is not None:
                progress(step + 1, total)
            live = self._count_live(step)
            if live == 0 or step + 1 == total:
                break
            if self.cache_is_flexible and 2 * live <= self.live.shape[0]:
                choice = self._drop_finished(choice)
            logits = self._advance(choice, step)
        return self.record.result(
            step + 1,
            prompt_ids=self.prompt_ids,
            prompt_mask=self.prompt_mask,
            row_keys=self.row_keys,
            seed=self.seed,
            embedding_noise=_embedding_noise(self.config),
        )

    def _prefill(self) -> Tensor:
        """Run over the prompts, once for all samples of a prompt where the cache allows it."""
        shared = self.samples if self.cache_is_flexible else 1
        seen = self._seen(0)
        logits = self._forward(
            input_ids=self.prompt_ids[::shared],
            attention_mask=None if seen is None else seen[::shared],
            position_ids=self.positions[::shared].clamp(min=0),
        )
        if shared > 1:
            self.cache.batch_repeat_interleave(shared)
            logits = logits.repeat_interleave(shared, dim=0)
        self.positions = self.positions[:, -1:]
        return logits

    def _leave_out(self, vocab: int) -> None:
        """Note the ids of ``vocab`` logits that no step, and that no latent step may choose."""
        config = self.config
        tokens = min(vocab, self.soft.rows, config.num_tokens or vocab)
        absent = sorted({*range(tokens, vocab), *(i for i in config.suppress_tokens if i < vocab)})
        ids = torch.tensor(absent, dtype=torch.int64, device=self.eos.device)
        unmixed = torch.cat([self.eos, ids]) if config.latent_eos == "mask" else ids
        self.absent, self.unmixed = (x if x.numel() else None for x in (ids, unmixed))

    def _forward(self, **inputs: Any) -> Tensor:
        """Logits [n, V] of the last position."""
        output = self.base(**self.cached, **self.last_only, **inputs)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _seen(self, steps: int) -> Tensor | None:
        """Mask [n, P + steps] of the columns fed so far."""
        return self.mask[:, : self.prompt_ids.shape[1] + steps] if self.padded else None

    def _advance(self, choice: Choice, step: int) -> Tensor:
        """Feed a step's choice; logits of the next one."""
        embedding = choice.embedding
        if embedding is None:
            embedding = self.soft.mix(choice.ids, choice.weights)
        strength = _embedding_noise(self.config)
        if strength > 0 and step < self.config.latent_length:
            noisy = add_embedding_noise(
                embedding,
                strength,
                seed=self.seed,
                row_keys=self.keys,
                step=step,
                backend=self.backend,
            )
            embedding = torch.where(choice.latent[:, None], noisy, embedding)
        self.positions = self.positions + 1
        logits = self._forward(
            inputs_embeds=embedding[:, None],
            attention_mask=self._seen(step + 1),
            position_ids=self.positions,
        )
        if step == 0:
            check_grown(self.base, self.cache, self.prompt_ids.shape[1] + 1)
        return logits

    def _choose(self, logits: Tensor, step: int) -> Choice:
        """Latent rows take a mixture, rows in the suffix its id, the others a token."""
        if step >= self.config.latent_length:
            return self._choose_token(logits, step)
        mixture = self._choose_mixture(logits, step)
        if not self.some_left:
            return mixture
        return _merge(mixture, self._choose_token(logits, step))

    def _choose_mixture(self, logits: Tensor, step: int) -> Choice:
        config = self.config
        noise, tau = _mixture_settings(config)
        sample, embedding = self.soft.latent_step(
            logits,
            **self._draw(step, noise),
            tau=tau,
            noise_clamp=config.noise_clamp if noise == "gumbel" else None,
            num_draws=config.num_draws if noise == "categorical" else 1,
            exclude_ids=self.unmixed,
        )
        log_prob = soft_log_prob(sample.logits, sample.lse, sample.weights)
        ids, weights = sample.ids, sample.weights
        if ids.shape[1] > _WIDE:
            width = int(sample.count.max())
            ids, weights = ids[:, :width], weights[:, :width]
        latent = step < self.latent_end
        forced = torch.zeros_like(latent)
        return Choice(
            ids,
            weights,
            sample.count.long(),
            sample.shadow,
            log_prob.float(),
            sample.entropy.float(),
            latent,
            forced,
            embedding,
        )

    def _choose_token(self, logits: Tensor, step: int) -> Choice:
        noise = "gumbel" if self.config.samples_tokens else "none"
        sample = sample_latent(
            logits, **self._draw(step, noise), exclude_ids=self.absent, backend=self.backend
        )
        token = sample.token
        # The draw is one of the kept entries, once.
        place = (sample.ids == token[:, None]).int().argmax(dim=1)
        log_prob = hard_log_prob(sample.logits.gather(1, place[:, None])[:, 0], sample.lse)
        after = step - self.latent_end
        forced = (after >= 0) & (after < len(self.suffix))
        if len(self.suffix):
            token = torch.where(forced, self.suffix[after.clamp(0, len(self.suffix) - 1)], token)
        return Choice(
            token[:, None],
            torch.ones_like(token[:, None], dtype=torch.float32),
            torch.ones_like(token),
            token,
            log_prob.float().masked_fill(forced, 0.0),
            sample.entropy.float().masked_fill(forced, 0.0),
            torch.zeros_like(forced),
            forced,
        )

    def _draw(self, step: int, noise: str) -> dict[str, Any]:
        """What mixtures and tokens are drawn with alike."""
        config = self.config
        return {
            "temperature": config.temperature,
            "top_k": config.top_k,
            "top_p": config.top_p,
            "min_p": config.min_p,
            "noise": noise,
            "noise_scale": config.noise_scale,
            "seed": self.seed,
            "row_keys": self.keys,
            "step": step,
        }

    def _stopped(self, choice: Choice) -> Tensor:
        """[n] bool: rows that end with this step.

        A shadow id is an EOS only where ``latent_eos="stop"`` let it be; a forced id never is.
        """
        return (choice.token[:, None] == self.eos).any(dim=1)

    def _follow_entropy(self, choice: Choice, step: int) -> None:
        """Cold stop: send rows of low entropy for enough steps on to the suffix."""
        threshold = self.config.cold_stop_entropy
        if threshold is None or step >= self.config.latent_length:
            return
        cold = choice.latent & (choice.entropy < threshold)
        self.cold_steps = torch.where(cold, self.cold_steps + 1, 0)
        leaves = choice.latent & (self.cold_steps >= self.config.cold_stop_steps)
        self.latent_end = torch.where(leaves, step + 1, self.latent_end)

    def _count_live(self, step: int) -> int:
        """Number of live rows; waits for the device only where rows can have ended or left."""
        config = self.config
        latent = step < config.latent_length
        may_leave = latent and config.cold_stop_entropy is not None
        if latent and not may_leave and config.latent_eos == "mask":
            return self.live.shape[0]
        left = self.live & (self.latent_end <= step + 1)
        live, gone = torch.stack([self.live.sum(), left.sum()]).tolist()
        self.some_left = gone > 0
        return int(live)

    def _drop_finished(self, choice: Choice) -> Choice:
        """Shrink the batch to its live rows."""
        keep = self.live.nonzero()[:, 0]
        for name in ("rows", "live", "keys", "latent_end", "cold_steps", "mask", "positions"):
            setattr(self, name, getattr(self, name)[keep])
        self.cache.batch_select_indices(keep)
        return choice.select(keep)


def _merge(mixture: Choice, token: Choice) -> Choice:
    """Rows in the latent phase take ``mixture``, the others ``token``."""
    latent = mixture.latent
    K = mixture.ids.shape[1]
    one = torch.nn.functional.pad(token.weights, (0, K - 1))
    wide = token._replace(ids=token.ids.expand(-1, K), weights=one)
    merged = (
        None if a is None or b is None else torch.where(latent.view(-1, *[1] * (a.dim() - 1)), a, b)
        for a, b in zip(mixture, wide, strict=True)
    )
    return Choice(*merged)  # type: ignore[arg-type]


def _mixture_settings(config: LatentGenerationConfig) -> tuple[str, float]:
    """The sampler's noise and tau on latent steps."""
    # "soft" perturbs the mixed embedding instead.
    noise = config.noise if config.samples_latents and config.noise != "soft" else "none"
    return noise, config.tau if noise == "gumbel" else 1.0


def _embedding_noise(config: LatentGenerationConfig) -> float:
    """Strength of the noise on the mixed embedding."""
    return config.noise_scale if config.noise == "soft" and config.samples_latents else 0.0
