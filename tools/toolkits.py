"""CUDA toolkits made of packages: which there are, and how one is fetched."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools.commands import pip
from tools.native_build import ROOT, BuildError

# All that have a compiler. They are named here and not asked for: the index knows cuda-toolkit for
# CUDA 11 and 12, too, whose packages hold none, and a machine may have no index. ``unlisted`` finds
# out whether the list is old; `make wheels-matrix` says so.
PUBLISHED = ("13.0", "13.1", "13.2", "13.3", "13.4", "13.5")
PARTS = "nvcc,crt,nvvm,cudart,cccl"
FOLDER = ROOT / "build" / "toolkits"


def check_published(version: str) -> None:
    """Refuse what cannot be fetched, before anything is.

    Raises:
        BuildError: ``version`` is no version, or none of those that are published.
    """
    if not re.fullmatch(r"\d+\.\d+", version):
        raise BuildError(f"--toolkit: expected a version such as {PUBLISHED[-1]}, got {version!r}")
    if version not in PUBLISHED:
        reason = " (those of 12.x lack nvcc: docs/wheels.md)" if version.startswith("12.") else ""
        raise BuildError(
            f"--toolkit: there are no packages of CUDA {version}{reason}.\nPublished: "
            f"{', '.join(PUBLISHED)}. For another, install it and point LEPO_CUDA_HOME to it."
        )


def fetch_toolkit(version: str) -> Path:
    """Install a CUDA toolkit from its packages into build/toolkits, once; the path of its home.

    Raises:
        BuildError: it is not published, or cannot be fetched.
    """
    check_published(version)
    prefix = FOLDER / version
    home = Path("nvidia", f"cu{version.split('.')[0]}")
    if not (prefix / home / "bin" / "nvcc").is_file():
        packages = f"cuda-toolkit[{PARTS}]=={version}.*"
        print(f"fetching {packages} into {prefix}", flush=True)
        _install(packages, prefix)
    return prefix / home


def _install(packages: str, prefix: Path) -> None:
    """All or nothing: an installation that broke off would be taken for a toolkit."""
    partial = prefix.with_name(f"{prefix.name}.partial")
    for folder in (partial, prefix):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        # Constraints are for the environment that the program runs in.
        pip("install", "--target", str(partial), packages, PIP_CONSTRAINT="")
    except BuildError as error:
        raise BuildError(
            f"{packages} could not be fetched; pip says why in the lines above. Without a package "
            "index,\nput a toolkit elsewhere and point LEPO_CUDA_HOME to it, without --toolkit."
        ) from error
    partial.rename(prefix)


def unlisted() -> list[str]:
    """Versions that the package index has and ``PUBLISHED`` lacks, from its first on.

    Raises:
        BuildError: there is no answer from the index.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", "cuda-toolkit"]
    done = subprocess.run(command, capture_output=True, text=True)
    listed = re.search(r"Available versions: (.+)", done.stdout)
    if listed is None:
        raise BuildError(f"the package index gives no versions of cuda-toolkit: {done.stderr}")
    found = {tuple(map(int, version.split(".")[:2])) for version in listed[1].split(", ")}
    known = {tuple(map(int, version.split("."))) for version in PUBLISHED}
    return [".".join(map(str, x)) for x in sorted(found - known) if x > min(known)]
