"""`Method`: how one paper samples latent steps and trains them, and the registry of all."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from lepo_kernels.formulas.latent_scores import SOFT, latent_score
from lepo_kernels.suggest import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of the family, by its name.

    Attributes:
        name: what ``lepo train --method`` and ``LEPOConfig(method=...)`` call it.
        title: the paper's name for it.
        paper: its arXiv number; "" for a method without one.
        trains: whether it has a loss; the others only sample.
        latent_score: what the loss makes of a latent row, by the name it is registered under in
            `lepo_kernels.formulas.latent_scores`.
        latent_ratio: whether latent rows have clipped importance ratios, as discrete ones have.
        records: what the rollout records for the score, as ``record_scores`` of
            `LatentGenerationConfig` says it, or None.
        off_policy: whether the loss holds after the policy has moved, that is, with several updates
            per rollout.
        defaults: the published settings, by the names of `LEPOConfig`, for those that are not set.
        fixed: settings without which it would be another method: a name and the values it may have.

    Raises:
        ValueError: there is no such score, or a default contradicts ``fixed``.
    """

    name: str
    title: str
    paper: str = ""
    trains: bool = True
    latent_score: str = SOFT
    latent_ratio: bool = False
    records: str | None = None
    off_policy: bool = True
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        latent_score(self.latent_score)
        for name, allowed in self.fixed.items():
            if name in self.defaults and self.defaults[name] not in allowed:
                raise ValueError(
                    f"defaults: {self.name} has {name}={self.defaults[name]!r}, which is not one "
                    f"of {allowed}"
                )

    def check(self, settings: Any) -> None:
        """Refuse settings under which it would be another method.

        Args:
            settings: an object with some of `LEPOConfig`'s fields.

        Raises:
            ValueError: naming the setting.
        """
        for name, allowed in self.fixed.items():
            value = getattr(settings, name, allowed[0])
            if value not in allowed:
                wanted = " or ".join(map(repr, allowed))
                raise ValueError(f"{name}: method={self.name!r} takes {wanted}, got {value!r}")


_METHODS: dict[str, Method] = {}


def register_method(method: Method) -> Method:
    """Make a method known by its name; returns it.

    A variant of a method is ``register_method(dataclasses.replace(method, name=..., ...))``.

    Raises:
        ValueError: another method has the name.
    """
    if _METHODS.setdefault(method.name, method) != method:
        raise ValueError(f"name: there is another method {method.name!r} already")
    return method


def method_named(name: Any) -> Method:
    """The method of a name.

    Raises:
        TypeError: ``name`` is not a text.
        ValueError: there is none; with the nearest name.
    """
    if not isinstance(name, str):
        raise TypeError(f"method: expected a str, got {type(name).__name__}")
    if name not in _METHODS:
        raise ValueError(f"method: there is no {name!r}; {did_you_mean(name, _METHODS)}")
    return _METHODS[name]


def methods() -> tuple[Method, ...]:
    """All methods, in the order of their registration."""
    return tuple(_METHODS.values())
