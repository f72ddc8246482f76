"""Which extra of this package brings a package that is missing."""

import contextlib
import importlib.util
from collections.abc import Iterator

# Name to import -> the extra whose packages it is among. pyproject.toml lists them.
EXTRAS = {
    "transformers": "train",
    "accelerate": "train",
    "datasets": "train",
    "safetensors": "train",
    "tokenizers": "train",
    "huggingface_hub": "train",
    "yaml": "train",
    "rich": "train",
    "matplotlib": "train",
    "tensorboard": "train",
    "peft": "peft",
    "flash_attn": "flash",
    "math_verify": "math",
    "triton": "triton",
    "reasoning_gym": "demo",
    "gguf": "demo",
    "pytest": "bench",
    "pytest_benchmark": "bench",
}

# Where a package has another name than what it is imported by.
_PACKAGES = {"yaml": "pyyaml"}


class MissingExtraError(ModuleNotFoundError):
    """A package of an extra is not installed; the message names the extra to install."""


def is_here(module: str) -> bool:
    """Whether a top-level module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def require(*modules: str) -> None:
    """Check that modules of an extra are here.

    Args:
        modules: keys of ``EXTRAS``.

    Raises:
        MissingExtraError: naming all that are not, and what to install.
    """
    missing = [module for module in modules if not is_here(module)]
    if missing:
        raise MissingExtraError(remedy(missing), name=missing[0])


def remedy(missing: list[str]) -> str:
    """What to do about modules that are missing, in one line."""
    names = [_package(module) for module in missing]
    extras = ",".join(dict.fromkeys(EXTRAS[module] for module in missing))
    plural = len(names) > 1
    return (
        f"the package{'s' if plural else ''} {', '.join(names)} {'are' if plural else 'is'} not "
        f"installed; run: pip install 'lepo_kernels[{extras}]'"
    )


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn the failed import of an extra's module into a `MissingExtraError`."""
    try:
        yield
    except MissingExtraError:
        raise
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS or is_here(module):
            raise
        raise MissingExtraError(remedy([module]), name=module) from error


def _package(module: str) -> str:
    return _PACKAGES.get(module, module.replace("_", "-"))
