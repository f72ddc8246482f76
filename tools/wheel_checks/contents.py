"""The wheel's metadata, tags, hashes and list of files."""

import ast
import base64
import csv
import hashlib
import re
from email.parser import Parser
from pathlib import Path

from tools.wheel_checks.wheel import Expected, Wheel

ROOT = Path(__file__).resolve().parents[2]
# What modules read; budgets are for the tests alone.
DATA = ("lepo_kernels/backends/triton/head/strategies.json",)
METADATA_FILES = ("METADATA", "WHEEL", "RECORD", "top_level.txt", "entry_points.txt")


def check_contents(wheel: Wheel, expected: Expected) -> list[str]:
    """All that can be said of a wheel without running anything."""
    if not wheel.metadata_folder.is_dir():
        return [f"no {wheel.metadata_folder.name} inside"]
    return [
        *_check_metadata(wheel),
        *_check_tags(wheel, expected),
        *_check_hashes(wheel),
        *_check_files(wheel, expected),
    ]


def _check_metadata(wheel: Wheel) -> list[str]:
    metadata = Parser().parsestr((wheel.metadata_folder / "METADATA").read_text())
    version = wheel.path.name.split("-")[1]
    found = {_requirement(text) for text in metadata.get_all("Requires-Dist", [])}
    wanted = {_requirement(text) for text in dependencies()}
    facts = {
        "Name": metadata["Name"] == "lepo_kernels",
        "Version": metadata["Version"] == version,
        "Requires-Python": metadata["Requires-Python"] == ">=3.10",
        f"Requires-Dist ({', '.join(dependencies())})": wanted <= found,
    }
    return [f"METADATA: wrong {name}" for name, right in facts.items() if not right]


def dependencies() -> list[str]:
    """What pyproject.toml says that the package needs; Python 3.10 reads no TOML."""
    text = (ROOT / "pyproject.toml").read_text()
    found: list[str] = ast.literal_eval(
        re.findall(r"^dependencies = (\[.*?\])", text, re.M | re.S)[0]
    )
    return found


def _requirement(text: str) -> frozenset[str]:
    """The name and the bounds, whose order counts for nothing."""
    return frozenset(re.findall(r"^[\w.-]+|[<>=!~;][^,;]*", text.replace(" ", "")))


def _check_tags(wheel: Wheel, expected: Expected) -> list[str]:
    python, abi, platform = wheel.path.stem.split("-")[-3:]
    inside = Parser().parsestr((wheel.metadata_folder / "WHEEL").read_text())
    failures = []
    if (python, abi) != ("py3", "none"):
        failures.append(f"tag {python}-{abi}: one wheel serves every Python, so py3-none")
    if bool(expected.libraries) == (platform == "any"):
        failures.append(f"tag: platform {platform!r} with libraries {expected.libraries}")
    tags = {f"{python}-{abi}-{part}" for part in platform.split(".")}
    if set(inside.get_all("Tag", [])) != tags:
        failures.append(f"WHEEL: its tags are not {sorted(tags)}, as the file name has it")
    if inside["Root-Is-Purelib"] != ("false" if expected.libraries else "true"):
        failures.append("WHEEL: wrong Root-Is-Purelib")
    return failures


def _check_hashes(wheel: Wheel) -> list[str]:
    record = wheel.metadata_folder / "RECORD"
    rows = {row[0]: row[1] for row in csv.reader(record.read_text().splitlines())}
    failures = [f"RECORD: lacks {name}" for name in sorted(wheel.files - rows.keys())]
    for name, stated in rows.items():
        path = wheel.folder / name
        if not path.is_file():
            failures.append(f"RECORD: names {name}, which is not there")
        elif path != record:
            digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
            if stated != "sha256=" + digest.rstrip(b"=").decode():
                failures.append(f"RECORD: wrong hash of {name}")
    return failures


def _check_files(wheel: Wheel, expected: Expected) -> list[str]:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "lepo_kernels").rglob("*.py")}
    libraries = {f"lepo_kernels/{name}.so" for name in expected.libraries}
    metadata = {f"{wheel.metadata_folder.name}/{name}" for name in METADATA_FILES}
    wanted = modules.union(DATA, libraries, metadata)
    return [
        *(f"lacks {name}" for name in sorted(wanted - wheel.files)),
        *(f"holds {name}, which was not asked for" for name in sorted(wheel.files - wanted)),
    ]
