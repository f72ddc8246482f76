"""The rollout: latent steps, a forced suffix, then discrete steps.

Contract: a row's samples depend on (its prompt, seed, its row key, the settings), not on the batch
it is in, on padding, or on rows that leave the batch, up to floating-point noise of the model.
Noise of completion step t is keyed by (seed, row key, t). Log-probabilities are those of
softmax(logits / temperature) over the whole vocabulary, whatever the filters kept.

Design note: the loop feeds ``inputs_embeds`` [B, 1, D] to a cache; it waits for the device at most
once a step (to see whether rows are done), and not at all while no row can end.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticCache,
)

from lepo_kernels.ops.sample_latent import LatentSample, sample_latent
from lepo_kernels.ops.scores import hard_log_prob, soft_log_prob
from lepo_kernels.rollout._modules import evaluating, output_embeddings, unwrap_model
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.soft_embedding import SoftEmbedding, add_embedding_noise
from lepo_kernels.validation import INDEX_DTYPES, check_integer, check_tensor, checks_enabled

# The sampler's name for each kind of noise on latent steps; "soft" perturbs the embedding instead.
_SAMPLER_NOISE = {
    "gumbel": "gumbel",
    "gaussian": "gaussian",
    "dirichlet": "dirichlet",
    "multiplex": "categorical",
    "soft": "none",
    "none": "none",
}

# A mixture wider than this is stored only as wide as the kept entries need.
_WIDE = 256


@torch.no_grad()
def latent_generate(
    model: Any,
    input_ids: Tensor,  # [B, P]
    attention_mask: Tensor,  # [B, P]
    config: LatentGenerationConfig,
    *,
    num_return_sequences: int = 1,
    seed: int = 0,
    row_keys: Tensor | None = None,  # [B * num_return_sequences]
    progress: Callable[[int, int], None] | None = None,
    backend: str | None = None,
) -> LatentRollout:
    """Sample completions that start with latent steps (LEPO, arXiv 2604.17892).

    The model runs in eval mode for the duration; the mode of each of its modules comes back, also
    after an exception.

    Args:
        model: a decoder-only transformers model, possibly inside DDP or peft. It is run without
            its DDP or ``torch.compile`` wrapper. Sharded weights (FSDP2, ZeRO-3) must be gathered
            for the whole call: ranks finish after different numbers of steps.
        input_ids: [B, P] int64 or int32, left-padded prompts.
        attention_mask: [B, P] bool or integer, 1 on the prompt's tokens.
        config: see `LatentGenerationConfig`.
        num_return_sequences: samples R per prompt, side by side in the result. They share the pass
            over their prompt, except with a static cache.
        seed: any 64-bit integer.
        row_keys: [B R] int64, a key per sample: the same key gives the same noise. Default: 0, 1,
            and so on.
        progress: called after each step with (steps done, steps at most).
        backend: see `lepo_kernels.backend`.

    Returns:
        `LatentRollout` of B R rows, with as many completion steps as the longest row has.

    Raises:
        TypeError: an argument has the wrong type or dtype, or the model is no causal LM.
        ValueError: an argument has the wrong shape or device; a prompt is empty or not
            left-padded; an id of the settings is outside the vocabulary; a model whose inputs
            cannot be mixtures.
    """
    base = unwrap_model(model)
    check_integer("num_return_sequences", num_return_sequences, 1)
    _check_arguments(base, input_ids, attention_mask, config, seed, row_keys, num_return_sequences)
    soft = SoftEmbedding(base, backend=backend)
    with evaluating(base):
        decoder = _Decoder(
            base,
            soft,
            input_ids,
            attention_mask,
            config,
            num_return_sequences,
            seed,
            row_keys,
            backend,
        )
        return decoder.run(progress)


class _Choice(NamedTuple):
    """What the live rows do at a step: n rows, K entries of the mixture that is fed next."""

    ids: Tensor  # [n, K]
    weights: Tensor  # [n, K]
    kept: Tensor  # [n]: entries the sampler kept
    token: Tensor  # [n]: shadow, forced or sampled id
    log_prob: Tensor  # [n]
    entropy: Tensor  # [n]
    latent: Tensor  # [n] bool
    forced: Tensor  # [n] bool


class _Decoder:
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
        self.suffix = torch.tensor(config.latent_suffix_ids, dtype=torch.int64, device=device)
        accepted = inspect.signature(base.forward).parameters
        self.last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

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

        self.cache: Any
        if config.cache_implementation == "static":
            self.cache = StaticCache(config=base.config, max_cache_len=P + T)
        else:
            self.cache = DynamicCache(config=base.config)
        # Whether rows of the cache can be repeated and dropped.
        self.cache_is_flexible = all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in self.cache.layers
        )
        self.record = _Record(B, config, device)

    def run(self, progress: Callable[[int, int], None] | None) -> LatentRollout:
        """Decode until every row is done or the length limit is reached."""
        total = self.config.max_new_tokens
        logits = self._prefill()
        for step in range(total):
            choice = self._choose(logits, step)
            stopped = self._stopped(choice)
            self.record.write(step, self.rows, self.live, choice, stopped)
            self._follow_entropy(choice, step)
            self.live = self.live & ~stopped
            if progress is not None:
                progress(step + 1, total)
            live = self._look(step)
            if live == 0 or step + 1 == total:
                break
            if self.cache_is_flexible and 2 * live <= self.live.shape[0]:
                choice = self._drop_finished(choice)
            logits = self._advance(choice, step)
        return self.record.result(step + 1, self)

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

    def _forward(self, **inputs: Any) -> Tensor:
        """Logits [n, V] of the last position."""
        output = self.base(past_key_values=self.cache, use_cache=True, **self.last_only, **inputs)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _seen(self, steps: int) -> Tensor | None:
        """Mask [n, P + steps] of the columns fed so far."""
        return self.mask[:, : self.prompt_ids.shape[1] + steps] if self.padded else None

    def _advance(self, choice: _Choice, step: int) -> Tensor:
        """Feed a step's choice; logits of the next one."""
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
        return self._forward(
            inputs_embeds=embedding[:, None],
            attention_mask=self._seen(step + 1),
            position_ids=self.positions,
        )

    def _choose(self, logits: Tensor, step: int) -> _Choice:
        """Latent rows take a mixture, rows in the suffix its id, the others a token."""
        if step >= self.config.latent_length:
            return self._choose_token(logits, step)
        mixture = self._choose_mixture(logits, step)
        if not self.some_left:
            return mixture
        return _merge(mixture, self._choose_token(logits, step))

    def _choose_mixture(self, logits: Tensor, step: int) -> _Choice:
        config = self.config
        noise, tau = _mixture_settings(config)
        sample = self._sample(
            logits,
            step,
            noise,
            tau=tau,
            noise_clamp=config.noise_clamp if noise == "gumbel" else None,
            num_draws=config.num_draws if noise == "categorical" else 1,
            exclude_ids=self.eos if config.latent_eos == "mask" else None,
        )
        log_prob = soft_log_prob(sample.logits, sample.lse, sample.weights)
        ids, weights = sample.ids, sample.weights
        if ids.shape[1] > _WIDE:
            width = int(sample.count.max())
            ids, weights = ids[:, :width], weights[:, :width]
        latent = step < self.latent_end
        forced = torch.zeros_like(latent)
        return _Choice(
            ids,
            weights,
            sample.count.long(),
            sample.shadow,
            log_prob.float(),
            sample.entropy.float(),
            latent,
            forced,
        )

    def _choose_token(self, logits: Tensor, step: int) -> _Choice:
        noise = "gumbel" if self.config.do_sample else "none"
        sample = self._sample(logits, step, noise)
        token = sample.token
        # The draw is one of the kept entries, once.
        place = (sample.ids == token[:, None]).int().argmax(dim=1)
        log_prob = hard_log_prob(sample.logits.gather(1, place[:, None])[:, 0], sample.lse)
        after = step - self.latent_end
        forced = (after >= 0) & (after < len(self.suffix))
        if len(self.suffix):
            token = torch.where(forced, self.suffix[after.clamp(0, len(self.suffix) - 1)], token)
        return _Choice(
            token[:, None],
            torch.ones_like(token[:, None], dtype=torch.float32),
            torch.ones_like(token),
            token,
            log_prob.float().masked_fill(forced, 0.0),
            sample.entropy.float().masked_fill(forced, 0.0),
            torch.zeros_like(forced),
            forced,
        )

    def _sample(self, logits: Tensor, step: int, noise: str, **mixture: Any) -> LatentSample:
        config = self.config
        return sample_latent(
            logits,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            noise=noise,
            noise_scale=config.noise_scale,
            seed=self.seed,
            row_keys=self.keys,
            step=step,
            backend=self.backend,
            **mixture,
        )

    def _stopped(self, choice: _Choice) -> Tensor:
        """[n] bool: rows that end with this step.

        A shadow id is an EOS only where ``latent_eos="stop"`` let it be; a forced id never is.
        """
        return (choice.token[:, None] == self.eos).any(dim=1)

    def _follow_entropy(self, choice: _Choice, step: int) -> None:
        """Cold stop: send rows that have been sure for long enough on to the suffix."""
        threshold = self.config.cold_stop_entropy
        if threshold is None or step >= self.config.latent_length:
            return
        cold = choice.latent & (choice.entropy < threshold)
        self.cold_steps = torch.where(cold, self.cold_steps + 1, 0)
        leaves = choice.latent & (self.cold_steps >= self.config.cold_stop_steps)
        self.latent_end = torch.where(leaves, step + 1, self.latent_end)

    def _look(self, step: int) -> int:
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

    def _drop_finished(self, choice: _Choice) -> _Choice:
        """Shrink the batch to its live rows."""
        keep = self.live.nonzero()[:, 0]
        for name in ("rows", "live", "keys", "latent_end", "cold_steps", "mask", "positions"):
            setattr(self, name, getattr(self, name)[keep])
        self.cache.batch_select_indices(keep)
        return _Choice(*(tensor[keep] for tensor in choice))


class _Record:
    """The growing ``LatentRollout``: buffers for all rows, written a step at a time."""

    def __init__(self, B: int, config: LatentGenerationConfig, device: torch.device):
        T, L = config.max_new_tokens, config.latent_length

        def buffer(*shape: int, dtype: torch.dtype, fill: float = 0) -> Tensor:
            return torch.full(shape, fill, dtype=dtype, device=device)

        self.completion_ids = buffer(B, T, dtype=torch.int64, fill=config.pad_token_id)
        self.completion_mask = buffer(B, T, dtype=torch.bool)
        self.latent_mask = buffer(B, T, dtype=torch.bool)
        self.action_mask = buffer(B, T, dtype=torch.bool)
        self.log_probs = buffer(B, T, dtype=torch.float32)
        self.entropy = buffer(B, T, dtype=torch.float32)
        self.latent_ids = buffer(B, L, 0, dtype=torch.int64)
        self.latent_weights = buffer(B, L, 0, dtype=torch.float32)
        self.latent_count = buffer(B, L, dtype=torch.int64)
        self.stopped = buffer(B, dtype=torch.bool)
        self.latent_length = L
        self.pad_token_id = config.pad_token_id

    def write(
        self, step: int, rows: Tensor, live: Tensor, choice: _Choice, stopped: Tensor
    ) -> None:
        """Store a step of the rows ``rows``; finished ones among them store padding."""
        self.completion_ids[rows, step] = choice.token.masked_fill(~live, self.pad_token_id)
        self.completion_mask[rows, step] = live
        self.action_mask[rows, step] = live & ~choice.forced
        self.log_probs[rows, step] = choice.log_prob.masked_fill(~live, 0.0)
        self.entropy[rows, step] = choice.entropy.masked_fill(~live, 0.0)
        self.stopped[rows] |= live & stopped
        if step >= self.latent_length:
            return
        latent = live & choice.latent
        self.latent_mask[rows, step] = latent
        K = choice.ids.shape[1]
        self._widen(K)
        self.latent_ids[rows, step, :K] = choice.ids * latent[:, None]
        self.latent_weights[rows, step, :K] = choice.weights.float() * latent[:, None]
        self.latent_count[rows, step] = choice.kept * latent

    def _widen(self, K: int) -> None:
        """Make room for K entries; rare, since only an unlimited top-k changes its width."""
        more = K - self.latent_ids.shape[2]
        if more > 0:
            self.latent_ids = torch.nn.functional.pad(self.latent_ids, (0, more))
            self.latent_weights = torch.nn.functional.pad(self.latent_weights, (0, more))

    def result(self, steps: int, decoder: _Decoder) -> LatentRollout:
        """The first ``steps`` steps as a ``LatentRollout``."""
        return LatentRollout(
            prompt_ids=decoder.prompt_ids,
            prompt_mask=decoder.prompt_mask,
            completion_ids=self.completion_ids[:, :steps],
            completion_mask=self.completion_mask[:, :steps],
            latent_mask=self.latent_mask[:, :steps],
            action_mask=self.action_mask[:, :steps],
            latent_ids=self.latent_ids[:, :steps],
            latent_weights=self.latent_weights[:, :steps],
            latent_count=self.latent_count[:, :steps],
            log_probs=self.log_probs[:, :steps],
            entropy=self.entropy[:, :steps],
            row_keys=decoder.row_keys,
            truncated=~self.stopped,
            seed=decoder.seed,
            embedding_noise=_embedding_noise(decoder.config),
        )


def _merge(mixture: _Choice, token: _Choice) -> _Choice:
    """Rows in the latent phase take ``mixture``, the others ``token``."""
    latent = mixture.latent
    K = mixture.ids.shape[1]
    one = torch.nn.functional.pad(token.weights, (0, K - 1))
    wide = token._replace(ids=token.ids.expand(-1, K), weights=one)
    merged = (
        torch.where(latent[:, None] if a.dim() == 2 else latent, a, b)
        for a, b in zip(mixture, wide, strict=True)
    )
    return _Choice(*merged)


def _mixture_settings(config: LatentGenerationConfig) -> tuple[str, float]:
    """The sampler's noise and tau on latent steps."""
    noise = _SAMPLER_NOISE[config.noise] if config.do_sample else "none"
    return noise, config.tau if noise == "gumbel" else 1.0


def _embedding_noise(config: LatentGenerationConfig) -> float:
    """Strength of the noise on the mixed embedding."""
    return config.noise_scale if config.noise == "soft" and config.do_sample else 0.0


def _check_arguments(
    base: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    config: LatentGenerationConfig,
    seed: int,
    row_keys: Tensor | None,
    num_return_sequences: int,
) -> None:
    if not isinstance(config, LatentGenerationConfig):
        raise TypeError(f"config: expected a LatentGenerationConfig, got {type(config).__name__}")
    output_embeddings(base)
    if "inputs_embeds" not in inspect.signature(base.forward).parameters:
        raise ValueError(f"model: {type(base).__name__}.forward takes no inputs_embeds")
    check_tensor("input_ids", input_ids, ("B", "P"), INDEX_DTYPES)
    B, P = input_ids.shape
    if B == 0 or P == 0:
        raise ValueError(f"input_ids: expected at least one row and one column, got {[B, P]}")
    mask_dtypes = (torch.bool, *INDEX_DTYPES)
    check_tensor("attention_mask", attention_mask, (B, P), mask_dtypes, input_ids.device)
    check_integer("seed", seed, -(2**63), 2**64 - 1)
    if row_keys is not None:
        check_tensor(
            "row_keys", row_keys, (B * num_return_sequences,), (torch.int64,), input_ids.device
        )
    _check_left_padded(attention_mask)
    vocab = base.config.get_text_config().vocab_size
    for name in ("eos_token_ids", "latent_suffix_ids"):
        outside = [i for i in getattr(config, name) if i >= vocab]
        if outside:
            raise ValueError(f"{name}: expected ids in [0, {vocab}), got {outside}")
    if config.pad_token_id >= vocab:
        raise ValueError(f"pad_token_id: expected an id in [0, {vocab}), got {config.pad_token_id}")
    if checks_enabled(input_ids.device):
        low, high = (int(x) for x in torch.aminmax(input_ids))
        if low < 0 or high >= vocab:
            raise ValueError(
                f"input_ids: expected values in [0, {vocab}), got {low if low < 0 else high}"
            )


def _check_left_padded(attention_mask: Tensor) -> None:
    used = attention_mask.bool()
    empty = ~used[:, -1]
    broken = (used[:, :-1] & ~used[:, 1:]).any(dim=1)
    for i, (is_empty, is_broken) in enumerate(torch.stack([empty, broken], dim=1).tolist()):
        if is_broken:
            raise ValueError(
                f"attention_mask: expected left padding (0s, then 1s) in every row, row {i} has a "
                "0 after a 1"
            )
        if is_empty:
            raise ValueError(f"attention_mask: expected a prompt in every row, row {i} has none")
