"""Whether a model computes the same in every way in which rollout and training run it.

Contract: a model that `check_served` lets pass gives a few probe tokens the same logits through
``input_ids`` alone, through a padded batch as training feeds it, through our embedding, and through
a prompt's pass followed by cached steps, as the rollout runs it. Any other is refused with the
figures before the first rollout: recurrent models that do not mask padding, models that treat what
they look up (Falcon-H1 multiplies it), caches that are not used. Models whose rotary embedding
changes with the length (dynamic NTK, longrope) rotate keys that are cached by one set of
frequencies and those of a full forward by another: they are served up to their original context.

The bound is that of `lepo_kernels.rollout.rounding`.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lepo_kernels.dispatch import is_autocast_enabled
from lepo_kernels.rollout._modules import evaluating, swapped_forward
from lepo_kernels.rollout.lm_head import LmHead
from lepo_kernels.rollout.prompt_then_steps import embedded, prompt_then_steps
from lepo_kernels.rollout.rotary import original_context
from lepo_kernels.rollout.rounding import distance, rounding_bound
from lepo_kernels.rollout.soft_embedding import SoftEmbedding

# Tokens of the two prompts, and of the steps that follow them.
_LONG, _SHORT, _STEPS = 6, 3, 2

_served: "weakref.WeakKeyDictionary[nn.Module, set[tuple[str, str, torch.dtype, str]]]" = (
    weakref.WeakKeyDictionary()
)
_beyond: "weakref.WeakKeyDictionary[nn.Module, dict[str, str]]" = weakref.WeakKeyDictionary()


def check_served(
    base: Any,
    soft: SoftEmbedding,
    implementation: str,
    columns: int,
    *,
    padded: bool = True,
    training: bool = False,
) -> None:
    """Check, once per model, dtype and kind of cache, that the model can be served.

    Args:
        base: an unwrapped transformers model.
        soft: its embedding.
        implementation: the kind of cache, as in `LatentGenerationConfig`.
        columns: how long a prompt with its completion may become.
        padded: whether prompts are padded.
        training: whether its log-probabilities are wanted, too, as training forms them.

    Raises:
        ValueError: it cannot; the message says which way of running it differs, by how much.
    """
    dtype = _computing_dtype(base, soft)
    attention = str(getattr(base.config, "_attn_implementation", ""))
    paths = {
        "alone": (True, _Probe.check_alone),
        "padded": (padded, _Probe.check_padded),
        "head": (training, _Probe.check_head),
    }
    probe = _Probe(base, soft, implementation, dtype)
    for path, (wanted, check) in paths.items():
        key = (path, implementation, dtype, attention)
        if wanted and key not in _served.get(base, ()):
            with torch.no_grad(), evaluating(base):
                check(probe)
            _served.setdefault(base, set()).add(key)
    context = original_context(base.config)
    if context is None or columns <= context:
        return
    verdicts = _beyond.setdefault(base, {})
    if implementation not in verdicts:
        with torch.no_grad(), evaluating(base):
            verdicts[implementation] = probe.beyond(context)
    if verdicts[implementation]:
        raise ValueError(
            f"model: {type(base).__name__} is served up to its original context of {context} "
            f"positions, and prompt with completion may have {columns}: {verdicts[implementation]}"
        )


class _Probe:
    """A few tokens, and the logits that the model gives them in each way of running it."""

    def __init__(self, base: Any, soft: SoftEmbedding, implementation: str, dtype: torch.dtype):
        self.base, self.soft, self.dtype = base, soft, dtype
        self.implementation = implementation
        weight: Any = soft.module.weight
        self.device = weight.device

    @functools.cached_property
    def ids(self) -> Tensor:
        """[1, S], the tokens."""
        return _probe_ids(self.base, self.soft.rows).to(self.device)

    @functools.cached_property
    def logits(self) -> Tensor:
        """[1, S, V], what every other way is held to: one row, and nothing but its ids.

        Raises:
            ValueError: they are not finite; logits of -inf alone are welcome.
        """
        logits = self._alone(self.ids)
        if bool(logits.isnan().any()) or not bool(logits.isfinite().any()):
            raise ValueError(
                "model: its logits for a probe prompt are not finite; check its weights"
            )
        return logits

    @functools.cached_property
    def bound(self) -> float:
        """What rounding may do to them."""
        return self._bound(self.logits)

    def check_alone(self) -> None:
        """Compare ways of running one prompt, without padding.

        Raises:
            ValueError: two differ, or one fails.
        """
        alone = self.logits[0]
        name = "inputs_embeds"
        found = self._run(name, self._through_embedding, ids=self.ids)
        self._compare(name, found[0], alone)
        name = f"a prompt's pass and cached steps, {self.implementation} cache"
        positions = torch.arange(self.ids.shape[1], device=self.device)[None]
        found = self._run(name, self._cached, ids=self.ids, position_ids=positions)
        self._compare(name, found[0], alone[-_STEPS - 1 :])

    def check_padded(self) -> None:
        """Compare a left-padded batch with its rows alone.

        Raises:
            ValueError: two ways of running it differ, or one fails.
        """
        rows = (self.logits[0], self._alone(self.ids[:, _LONG - _SHORT :])[0])
        ids = self.ids.repeat(2, 1)
        mask = torch.ones_like(ids)
        mask[1, : _LONG - _SHORT] = 0
        inputs = {
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
        }
        name = "a left-padded batch through input_ids (training)"
        found = self._run(name, self._full, input_ids=ids, **inputs)
        self._compare(name, found[mask.bool()], torch.cat(rows))
        name = f"a left-padded prompt's pass and cached steps, {self.implementation} cache"
        found = self._run(name, self._cached, ids=ids, **inputs)
        late = torch.cat([row[-_STEPS - 1 :] for row in rows])
        self._compare(name, found.flatten(0, 1), late)

    def check_head(self) -> None:
        """Compare log-probabilities by `LmHead`, as training forms them, with the model's logits.

        Raises:
            ValueError: they differ, or `LmHead` cannot serve the model.
        """
        head = LmHead(self.base)
        name = "log-probabilities by the head (training)"

        def log_probs(hidden: Tensor) -> tuple[Tensor, ...]:
            flat = hidden.flatten(0, 1)
            scored = head.log_probs(flat, self.ids.expand(flat.shape[0], -1))
            return (scored.logits - scored.lse[:, None],)

        def run() -> Tensor:
            with head.replaced(log_probs):
                found: Tensor = self.base(input_ids=self.ids, use_cache=False)[0]
            return found

        wanted = self.logits[0].log_softmax(-1)[:, self.ids[0]]
        self._compare(name, self._run(name, run), wanted)

    def beyond(self, context: int) -> str:
        """Why cached steps past position ``context`` differ from a full forward; "" if they do not.

        The probe's prompt lies inside the original context, so that frequencies are the original
        ones again; its steps are far behind it, since they may change gradually.
        """
        positions = torch.arange(self.ids.shape[1], device=self.device)[None] + context - _LONG - 1
        positions[:, _LONG:] += context
        # With a mask, transformers does not take a gap in positions for the end of a sequence.
        inputs = {"attention_mask": torch.ones_like(positions), "position_ids": positions}
        full = self._run("positions", self._full, input_ids=self.ids, **inputs)
        cached = self._run("positions", self._cached, ids=self.ids, **inputs)
        bound = self._bound(full, **inputs)
        # A short sequence brings the original frequencies back.
        self._alone(self.ids)
        figure = distance(cached[0], full[0, -_STEPS - 1 :], self.dtype)
        if figure <= bound:
            return ""
        return (
            "past it, its rotary embedding changes with the length, so cached steps differ from a "
            f"full forward by {figure:.3g} of the logits' spread (bound {bound:.2g}); "
            "shorten prompts or max_completion_length (max_new_tokens)"
        )

    def _alone(self, ids: Tensor) -> Tensor:
        return self._run("input_ids alone", self._full, input_ids=ids)

    def _run(self, name: str, forward: Callable[..., Tensor], **inputs: Any) -> Tensor:
        """Logits [n, S, V] in float32."""
        try:
            logits = forward(**inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if str(error).startswith("model:"):  # says already what is wrong with it
                raise
            raise ValueError(
                f"model: {type(self.base).__name__} cannot be run by {name}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return logits.double() if logits.dtype == torch.float64 else logits.float()

    def _full(self, **inputs: Any) -> Tensor:
        logits: Tensor = self.base(use_cache=False, **inputs).logits
        return logits

    def _through_embedding(self, ids: Tensor, **inputs: Any) -> Tensor:
        return self._full(inputs_embeds=embedded(self.soft, ids), **inputs)

    def _cached(
        self,
        ids: Tensor,  # [n, S]
        position_ids: Tensor,  # [n, S]
        attention_mask: Tensor | None = None,  # [n, S]
    ) -> Tensor:  # [n, 1 + _STEPS, V]
        return prompt_then_steps(
            self.base,
            self.soft,
            self.implementation,
            ids,
            position_ids,
            attention_mask,
            prompt=_LONG,
        )

    def _bound(
        self,
        logits: Tensor,  # [1, S, V]
        **inputs: Tensor,
    ) -> float:
        """What rounding alone may do to the logits."""
        moved = self._run("input_ids alone", self._moved, input_ids=self.ids, **inputs)
        weight: Any = self.soft.module.weight
        return rounding_bound(
            self.base.config.get_text_config(),
            int(weight.shape[1]),
            self.dtype,
            distance(moved[0], logits[0], self.dtype),
        )

    def _moved(self, **inputs: Tensor) -> Tensor:
        """Logits where each entry of the embeddings has moved by a unit in the last place."""
        plain = self.soft.module.forward

        def forward(ids: Tensor) -> Tensor:
            embedded: Tensor = plain(ids)
            signs = torch.ones_like(embedded)
            signs[..., ::2] = -1
            return embedded * (1 + signs * torch.finfo(self.dtype).eps)

        with swapped_forward(self.soft.module, forward):
            return self._full(**inputs)

    def _compare(self, name: str, found: Tensor, wanted: Tensor) -> None:
        figure = distance(found, wanted, self.dtype)
        if not figure <= self.bound:
            nats = (found.log_softmax(-1) - wanted.log_softmax(-1)).abs().max()
            raise ValueError(
                f"model: {type(self.base).__name__} cannot be served: logits of {name} differ from "
                f"those of input_ids alone by {figure:.3g} of their spread (bound {self.bound:.2g} "
                f"in {str(self.dtype).removeprefix('torch.')}), log-probabilities by up to "
                f"{float(nats):.3g} nats; rollout and training would not be of the same policy"
            )


def _probe_ids(base: Any, rows: int) -> Tensor:  # [1, _LONG + _STEPS]
    """Ids that are spread over the vocabulary, without those of the config (padding, images)."""
    config = base.config.get_text_config()
    named = {value for name, value in vars(config).items() if name.endswith("_token_id")}
    special = {i for value in named if isinstance(value, int) for i in (value,)}
    count = _LONG + _STEPS
    ids = [i for i in range(rows) if i not in special] or list(range(rows))
    stride = max(1, len(ids) // count)
    return torch.tensor([ids[k * stride % len(ids)] for k in range(count)])[None]


def _computing_dtype(base: Any, soft: SoftEmbedding) -> torch.dtype:
    """The coarsest dtype that the model's products are made in."""
    weight: Any = soft.module.weight
    dtypes = [dtype for dtype in (base.dtype, weight.dtype) if dtype.is_floating_point]
    if is_autocast_enabled(weight.device.type):
        dtypes.append(torch.get_autocast_dtype(weight.device.type))
    if weight.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        # TF32 keeps as many bits as float16.
        dtypes.append(torch.float16)
    coarsest: torch.dtype = max([torch.float32, *dtypes], key=lambda dtype: torch.finfo(dtype).eps)
    return coarsest
