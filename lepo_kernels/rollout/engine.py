"""What samples completions for the trainer, for evaluation and for the command line.

Contract: a `RolloutEngine` turns prompts into a `LatentRollout`, whose draws depend on (prompt,
seed, row key, settings) alone. ``transformers`` is built in: it decodes with the trained model
itself. Users choose others by name (``rollout_engine``): a package registers its own by
`register_rollout_engine`, or names an `EngineFactory` as an entry point of the group
``lepo_kernels.rollout_engines``, which is imported when it is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

from torch import Tensor

from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.suggest import did_you_mean

# Called after each decoding step, or now and then, with (steps done, steps at most).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RolloutRequest:
    """Prompts to complete; see `latent_generate`.

    Attributes:
        input_ids: [B, P] int64, left-padded.
        attention_mask: [B, P], 1 on the prompts' tokens.
        config: how to sample.
        num_return_sequences: samples R per prompt.
        seed: of the noise.
        row_keys: [B R] int64, the key of each sample's noise; None counts from 0.
    """

    input_ids: Tensor
    attention_mask: Tensor
    config: LatentGenerationConfig
    num_return_sequences: int = 1
    seed: int = 0
    row_keys: Tensor | None = None


class RolloutEngine(Protocol):
    """Samples completions with a policy's weights."""

    def update_weights(self, model: Any) -> None:
        """Take over the weights of ``model``: called after every change, before `generate`."""

    def generate(
        self, request: RolloutRequest, *, progress: Progress | None = None
    ) -> LatentRollout:
        """Complete the prompts: B R rows on the prompts' device, samples of a prompt together.

        An exception that ``progress`` raises ends the work, and is passed on.
        """


class TransformersEngine:
    """Decodes with the model that is trained, in this process, by `latent_generate`.

    Args:
        model: see `latent_generate`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def update_weights(self, model: Any) -> None:
        """Decode with ``model`` from now on: nothing is copied."""
        self._model = model

    def generate(
        self, request: RolloutRequest, *, progress: Progress | None = None
    ) -> LatentRollout:
        """See `latent_generate`."""
        return latent_generate(
            self._model,
            request.input_ids,
            request.attention_mask,
            request.config,
            num_return_sequences=request.num_return_sequences,
            seed=request.seed,
            row_keys=request.row_keys,
            progress=progress,
        )


# An engine for a model, with the weights that it has now.
EngineFactory = Callable[[Any], RolloutEngine]

_ENTRY_POINTS = "lepo_kernels.rollout_engines"
_factories: dict[str, EngineFactory] = {"transformers": TransformersEngine}


def register_rollout_engine(name: str, make: EngineFactory) -> None:
    """Let ``rollout_engine=name`` stand for an engine.

    Args:
        name: not taken yet.
        make: called with the model, once per run.

    Raises:
        ValueError: the name is taken.
    """
    if _factories.get(name, make) is not make:
        raise ValueError(f"name: there is a rollout engine {name!r} already")
    _factories[name] = make


def check_rollout_engine(name: str) -> None:
    """Check that an engine has this name.

    Raises:
        ValueError: none has.
    """
    installed = {point.name for point in entry_points(group=_ENTRY_POINTS)}
    if name not in _factories and name not in installed:
        known = installed.union(_factories)
        raise ValueError(
            f"rollout_engine: there is no engine {name!r}; {did_you_mean(name, known)}"
        )


def make_rollout_engine(name: str, model: Any) -> RolloutEngine:
    """The engine of this name, for ``model``.

    Raises:
        ValueError: there is none.
    """
    check_rollout_engine(name)
    if name not in _factories:
        (point,) = entry_points(group=_ENTRY_POINTS, name=name)
        register_rollout_engine(name, point.load())
    return _factories[name](model)
