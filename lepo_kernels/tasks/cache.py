"""Where things that are made once are kept."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """The cache: ``$LEPO_CACHE``, or ``lepo_kernels`` in the platform's own cache folder."""
    if chosen := os.environ.get("LEPO_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "lepo_kernels"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home()) / "lepo_kernels" / "cache"
    chosen = os.environ.get("XDG_CACHE_HOME")
    return (Path(chosen) if chosen else Path.home() / ".cache") / "lepo_kernels"


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, filled by ``make`` unless it is there already.

    ``make`` fills a folder beside it that takes the name when it is whole: a process that is
    killed leaves nothing half done behind the name, and of two that race, one wins.

    Args:
        name: the folder's name in the cache; should name the version of what ``make`` makes.
        make: gets an empty folder to fill.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        make(workshop)
        # mkdtemp made it private to one user.
        workshop.chmod(0o755)
        try:
            workshop.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    return folder
