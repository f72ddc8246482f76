"""Names of models: built-in ones, which need no hub, and everything ``from_pretrained`` knows."""

import os
from collections.abc import Callable

from lepo_kernels.tasks import smollm2

Report = Callable[[str], None]

# A built-in name -> the function that puts the model into the cache and returns its folder.
BUILT_IN: dict[str, Callable[[Report], str]] = {smollm2.NAME: smollm2.prepare}


def resolve_model(name: str, report: Report = print) -> str:
    """Turn a model's name into what ``from_pretrained`` takes.

    Args:
        name: a built-in name (a key of ``BUILT_IN``), or a hub id or folder, which is returned
            unchanged but for a ``~`` that stands for the home folder.
        report: called with one line of text per stage of long work.

    Returns:
        A hub id or a folder.

    Raises:
        ModelNotInstalledError: the built-in model's package is missing.
    """
    prepare = BUILT_IN.get(name.lower())
    if prepare is not None:
        return prepare(report)
    return os.path.expanduser(name)
