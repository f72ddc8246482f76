"""Runs other programs; the failure of one ends ours."""

import os
import subprocess
import sys
from pathlib import Path

from tools.native_build import ROOT, BuildError


def run(*command: str | Path, **environment: str) -> None:
    """Run a command in the root of the sources, with these variables added.

    Raises:
        BuildError: the command failed.
    """
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment})
    if done.returncode != 0:
        raise BuildError(f"failed: {' '.join(map(str, command))}")


def pip(*words: str, **environment: str) -> None:
    """Run pip of this Python.

    Raises:
        BuildError: it failed.
    """
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *words, **environment)
