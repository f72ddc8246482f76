"""The settings of a latent rollout.

Contract: a ``LatentGenerationConfig`` that exists is valid; everything that can be wrong about it
without a model raises here, by name. What depends on the model is checked by ``latent_generate``.
"""

from dataclasses import dataclass, fields
from typing import Any

from lepo_kernels.rollout.tokens import token_range
from lepo_kernels.validation import (
    MAX_DRAWS,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    check_positive_number,
    check_range,
)

NOISES = ("gumbel", "gaussian", "dirichlet", "soft", "none", "categorical")
LATENT_EOS = ("mask", "stop")
CACHES = ("auto", "dynamic", "static")
DRAW_WEIGHTS = ("uniform", "probability")
# What a rollout can record of each entry of a mixture.
RECORDS = ("kept", "vocab", "embedding_noise")
# The noises that a setting acts on; with any other it must keep its default, or a run would be
# another than its settings say.
ACTS_ON = {
    "tau": ("gumbel",),
    "noise_scale": ("gaussian", "dirichlet", "soft"),
    "noise_clamp": ("gumbel",),
    "num_draws": ("categorical",),
    "draw_weights": ("categorical",),
}


@dataclass(frozen=True, kw_only=True)
class LatentGenerationConfig:
    """How a rollout samples: latent steps, then a forced suffix, then discrete steps.

    The defaults are those of LEPO (arXiv 2604.17892) except for the lengths.

    Attributes:
        eos_token_ids: every id that ends a row; see ``end_tokens`` for where they come from.
        pad_token_id: fills ``completion_ids`` after a row's end.
        num_tokens: ids from here on have no token, though the head may have rows for them (a
            vocabulary padded for speed, as Qwen's): they are never sampled and never mixed. They
            count in log-probabilities and entropies, in the rollout as in training, as do ids that
            top-k drops. None: every row that can be embedded has a token.
        suppress_tokens: further ids that are never sampled and never mixed.
        latent_length: latent steps at the start of the completion; 0 gives plain sampling.
        max_new_tokens: columns of a completion, counting latent steps, suffix and discrete steps.
        latent_suffix_ids: ids forced after the latent phase (also where it is empty).
        noise: what perturbs a latent step: "gumbel" (LEPO), "gaussian" (on the kept logits),
            "dirichlet", "soft" (gaussian, on the mixed embedding), "none", or "categorical" (the
            mean of ``num_draws`` categorical draws: Multiplex Thinking, arXiv 2601.08808).
        tau: temperature of the Gumbel-softmax; 0 takes the argmax.
        noise_scale: strength of the noise: sigma in units of the RMS of what it perturbs
            ("gaussian", "soft"), or the concentration ("dirichlet"); above 0, for these noises
            only: "none" switches them off.
        noise_clamp: range (low, high) the Gumbel noise is clamped to.
        num_draws: draws of "categorical".
        draw_weights: how "categorical" weighs its draws: "uniform", or "probability", renormalised.
        mixture_top_k: entries that a mixture keeps of those that were perturbed, by their perturbed
            logits (Latent-GRPO, arXiv 2604.27998); None keeps all.
        record_scores: what the record holds of each entry, for the method's score: "kept" or
            "vocab", the perturbed logit less the log-sum-exp of the kept entries or of the whole
            vocabulary; "embedding_noise", the projection of the noise "soft" on its embedding over
            sigma; None records nothing.
        temperature: divides the logits before everything else, on latent and discrete steps alike.
        top_k: entries kept of the vocabulary; None keeps all.
        top_p: mass kept of what top-k left.
        min_p: least probability kept, relative to the largest.
        do_sample: False makes latent steps the noise-free softmax mixture over the kept entries and
            discrete steps the argmax.
        do_latent_sample: False does so with latent steps alone.
        do_discrete_sample: False does so with discrete steps alone.
        latent_eos: "mask" keeps the EOS ids out of the mixtures; "stop" ends a row whose most
            likely id at a latent step is one of them.
        cold_stop_entropy: ends the latent phase of a row early once its entropy (in nats) has been
            below this for ``cold_stop_steps`` consecutive steps (Soft Thinking, arXiv 2505.15778).
        cold_stop_steps: see ``cold_stop_entropy``.
        latent_end_ids: ids that end the latent phase of a row, where one is its likeliest: the step
            is the phase's last, and the suffix follows.
        cache_implementation: "dynamic" (finished rows leave the batch), "static" (a cache of fixed
            size, in which all rows stay), or "auto": static where steps are compiled.
        compile_rollout: whether a step (forward, draw, embedding, test for the end) is one compiled
            graph, on a static cache; replayed as a CUDA graph on a GPU. Each size of batch and
            length, rounded up, is compiled once per model, and its cache stays allocated. None: on
            a CUDA device, unless the cache is to be dynamic or the model cannot be compiled, which
            the log says once.

    Raises:
        TypeError, ValueError: a setting has the wrong type, is out of range, or differs from its
            default though the noise ignores it.
    """

    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    num_tokens: int | None = None
    suppress_tokens: tuple[int, ...] = ()
    latent_length: int = 0
    max_new_tokens: int = 256
    latent_suffix_ids: tuple[int, ...] = ()
    noise: str = "gumbel"
    tau: float = 0.5
    noise_scale: float = 1.0
    noise_clamp: tuple[float, float] | None = None
    num_draws: int = 3
    draw_weights: str = "uniform"
    mixture_top_k: int | None = None
    record_scores: str | None = None
    temperature: float = 1.0
    top_k: int | None = 30
    top_p: float = 0.95
    min_p: float = 0.0
    do_sample: bool = True
    do_latent_sample: bool = True
    do_discrete_sample: bool = True
    latent_eos: str = "mask"
    cold_stop_entropy: float | None = None
    cold_stop_steps: int = 256
    latent_end_ids: tuple[int, ...] = ()
    cache_implementation: str = "auto"
    compile_rollout: bool | None = None

    def __post_init__(self) -> None:
        for name in ("eos_token_ids", "latent_suffix_ids", "suppress_tokens", "latent_end_ids"):
            object.__setattr__(self, name, _as_ids(name, getattr(self, name)))
        self._check_lengths()
        self._check_sampling()
        self._check_decoding()

    @property
    def samples_latents(self) -> bool:
        """Whether latent steps are noisy, as far as ``noise`` is any."""
        return self.do_sample and self.do_latent_sample

    @property
    def samples_tokens(self) -> bool:
        """Whether discrete steps are drawn."""
        return self.do_sample and self.do_discrete_sample

    def _check_lengths(self) -> None:
        if not self.eos_token_ids:
            raise ValueError("eos_token_ids: expected at least one id, got none")
        check_integer("pad_token_id", self.pad_token_id, 0)
        if self.num_tokens is not None:
            check_integer("num_tokens", self.num_tokens, 1)
        suppressed = sorted(set(self.suppress_tokens) & set(self.eos_token_ids))
        if suppressed:
            raise ValueError(f"suppress_tokens: expected no EOS id, got {suppressed}")
        check_integer("max_new_tokens", self.max_new_tokens, 1)
        check_integer("latent_length", self.latent_length, 0)
        if self.latent_length > self.max_new_tokens:
            raise ValueError(
                f"latent_length: expected at most max_new_tokens ({self.max_new_tokens}), "
                f"got {self.latent_length}"
            )
        room = self.max_new_tokens - self.latent_length
        if len(self.latent_suffix_ids) > room:
            raise ValueError(
                f"latent_suffix_ids: expected at most {room} ids (max_new_tokens - latent_length), "
                f"got {len(self.latent_suffix_ids)}"
            )
        ends = sorted(set(self.latent_suffix_ids) & set(self.eos_token_ids))
        if ends:
            raise ValueError(f"latent_suffix_ids: expected no EOS id, got {ends}")

    def _check_sampling(self) -> None:
        for flag in ("do_sample", "do_latent_sample", "do_discrete_sample"):
            check_flag(flag, getattr(self, flag))
        check_choice("noise", self.noise, NOISES)
        check_choice("latent_eos", self.latent_eos, LATENT_EOS)
        check_positive_number("tau", self.tau, zero_included=True)
        check_positive_number("noise_scale", self.noise_scale)
        check_positive_number("temperature", self.temperature)
        check_number("top_p", self.top_p, 0.0, 1.0, low_included=False)
        check_number("min_p", self.min_p, 0.0, 1.0)
        check_integer("num_draws", self.num_draws, 1, MAX_DRAWS)
        check_integer("cold_stop_steps", self.cold_stop_steps, 1)
        check_choice("draw_weights", self.draw_weights, DRAW_WEIGHTS)
        if self.mixture_top_k is not None:
            check_integer("mixture_top_k", self.mixture_top_k, 1)
        self._check_record()
        if self.top_k is not None:
            check_integer("top_k", self.top_k, 1)
        if self.cold_stop_entropy is not None:
            check_number("cold_stop_entropy", self.cold_stop_entropy, 0.0)
        if self.noise_clamp is not None:
            low, high = check_range("noise_clamp", self.noise_clamp)
            if low == high:
                raise ValueError(f"noise_clamp: expected (low, high), low < high, got {low, high}")
            object.__setattr__(self, "noise_clamp", (low, high))
        self._check_ignored()

    def _check_decoding(self) -> None:
        check_choice("cache_implementation", self.cache_implementation, CACHES)
        if not (self.compile_rollout is None or isinstance(self.compile_rollout, bool)):
            raise TypeError(
                "compile_rollout: expected True, False or None, got "
                f"{type(self.compile_rollout).__name__}"
            )
        if self.compile_rollout and self.cache_implementation == "dynamic":
            raise ValueError(
                "compile_rollout: steps on a dynamic cache are not compiled; take "
                "cache_implementation 'auto' or 'static'"
            )

    def _check_record(self) -> None:
        if self.record_scores is None:
            return
        check_choice("record_scores", self.record_scores, RECORDS)
        needed = "soft" if self.record_scores == "embedding_noise" else "gumbel"
        if self.noise != needed:
            raise ValueError(
                f"record_scores: {self.record_scores!r} is of noise={needed!r}, got {self.noise!r}"
            )
        if self.record_scores == "embedding_noise" and self.top_k is None:
            raise ValueError("record_scores: 'embedding_noise' needs a top_k, got None")

    def _check_ignored(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for name, noises in ACTS_ON.items():
            value = getattr(self, name)
            if self.noise not in noises and value != defaults[name]:
                raise ValueError(
                    f"{name}: noise={self.noise!r} ignores it (it belongs to {', '.join(noises)}); "
                    f"leave it at {defaults[name]}, got {value}"
                )


def end_tokens(tokenizer: Any, model: Any = None) -> dict[str, Any]:
    """Collect the ids that end a text, from every place that may name one.

    A tokenizer and a model's generation_config often name different ids (a chat model ends a turn
    with one and a text with another); a rollout that misses one never stops.

    Args:
        tokenizer: a transformers tokenizer.
        model: a transformers model whose ``generation_config`` is looked at too, or None.

    Returns:
        ``{"eos_token_ids": ..., "pad_token_id": ...}`` for ``LatentGenerationConfig``, and which
        ids have a token where the tokenizer can say it (`token_range`); the pad id is the
        tokenizer's, else the generation_config's, else the first EOS id.

    Raises:
        ValueError: none of the places names an EOS id, or the tokenizer has more tokens than the
            model has rows.
    """
    generation = getattr(model, "generation_config", None)
    found: list[int] = []
    for place in (tokenizer, generation):
        ids = getattr(place, "eos_token_id", None)
        for i in ids if isinstance(ids, list | tuple) else [ids]:
            if i is not None and int(i) not in found:
                found.append(int(i))
    if not found:
        raise ValueError(
            "eos_token_ids: neither the tokenizer nor the model's generation_config names one"
        )
    pads = [getattr(place, "pad_token_id", None) for place in (tokenizer, generation)]
    pad = next((int(p) for p in pads if p is not None), found[0])
    tokens = token_range(tokenizer, model)
    # An id that ends a row is sampled, even if it decodes to nothing.
    if "num_tokens" in tokens:
        tokens["num_tokens"] = max(tokens["num_tokens"], 1 + max(found))
        tokens["suppress_tokens"] = tuple(set(tokens["suppress_tokens"]) - set(found))
    return {"eos_token_ids": tuple(found), "pad_token_id": pad, **tokens}


def _as_ids(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, int):
        raise TypeError(f"{name}: expected a sequence of ints, got int")
    ids = tuple(value)
    for i in ids:
        check_integer(name, i, 0)
    return ids
