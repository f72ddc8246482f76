"""Whether a model or a data set can be had from the Hugging Face hub, found out within seconds.

The hub's client tries for a minute before it says that there is no network. Here it is asked once,
with a short wait; whatever answers, even with an error, counts as reached, and the client says the
rest.
"""

import difflib
import os
from pathlib import Path
from typing import Any

from lepo_kernels import extras

PROBE_SECONDS = 5.0

# A folder with one of these holds a model.
_MODEL_FILES = ("config.json", "adapter_config.json")


class ModelNotFoundError(OSError):
    """There is no such folder, or no such model that could be had now."""


def reach_model(name: str, **arguments: Any) -> dict[str, Any]:
    """Check that a model can be had, before anything waits for it.

    Args:
        name: a folder or a hub id.
        arguments: for ``from_pretrained``; ``cache_dir``, ``revision`` and ``local_files_only``
            count here.

    Returns:
        The arguments, with ``local_files_only`` where the hub cannot be reached and the model is in
        its cache.

    Raises:
        ModelNotFoundError: a name of a folder that is not there, or a hub id that is not in the
            cache while the hub cannot be reached.
        MissingExtraError: it is an adapter, and peft is not installed.
    """
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        if (folder / "adapter_config.json").exists():
            extras.require("peft")
        return arguments
    # More than one slash, or a start that no hub id has.
    if (
        name.startswith(("/", ".", "~"))
        or name.count("/") > 1
        or (os.sep != "/" and os.sep in name)
    ):
        raise ModelNotFoundError(f"model: there is no folder {name}{_near(folder)}")
    if _is_offline() or arguments.get("local_files_only"):
        return arguments
    reason = why_unreachable()
    if reason is None:
        return arguments
    if _is_cached(name, arguments):
        return {**arguments, "local_files_only": True}
    raise ModelNotFoundError(
        f"model: {name} is no folder here{_near(folder)} and not in the cache of the Hugging Face "
        f"hub, which can't be reached ({reason}); name a folder that holds the model"
    )


def why_unreachable() -> str | None:
    """Why the hub can't be reached; None if something answers there."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    # Its client raises errors of the package that it is built on, which has changed.
    except Exception as error:
        return f"{constants.ENDPOINT}: {error or type(error).__name__}"
    return None


def dataset_unreachable(hub_id: str) -> str | None:
    """Why a data set can't be had; None if the hub answers, or an earlier download may serve."""
    from datasets import config

    saved = Path(config.HF_DATASETS_CACHE) / hub_id.replace("/", "___")
    if _is_offline() or config.HF_HUB_OFFLINE or saved.exists():
        return None
    return why_unreachable()


def _is_offline() -> bool:
    """Whether the environment forbids to ask the hub: its client then says so at once."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _is_cached(name: str, arguments: dict[str, Any]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    where = {key: arguments[key] for key in ("cache_dir", "revision") if key in arguments}
    try:
        found = [try_to_load_from_cache(name, file, **where) for file in _MODEL_FILES]
    except ValueError:  # no hub id at all
        return False
    return any(isinstance(file, str) for file in found)


def _near(folder: Path) -> str:
    """The folders beside it whose name is nearly the same, as part of a sentence."""
    try:
        names = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(folder.name, names, n=1)
    return f" (did you mean {folder.parent / near[0]}?)" if near else ""
