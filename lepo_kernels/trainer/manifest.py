"""The manifest of a checkpoint: which files it has, and that they are whole.

It is written last, when everything else is on the disk, so a folder that has one was written to its
end. It names every file with its size and its CRC-32: the size finds files that were cut short, the
checksum those that a crash of the machine left full of zeros, or that changed on the disk. CRC-32
reads a file about as fast as a disk does; nothing here guards against forgery, which takes a
cryptographic hash and a key.
"""

import functools
import json
import os
import zlib
from pathlib import Path
from typing import Any

MANIFEST = "checkpoint_manifest.json"

_CHUNK = 1 << 22


def write_manifest(folder: Path, **facts: Any) -> None:
    """Bring every file of a checkpoint to the disk, then list them.

    Args:
        folder: the checkpoint, complete but for this.
        **facts: what else the manifest says.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name != MANIFEST:
            _to_disk(path)
            files[path.relative_to(folder).as_posix()] = _measure(path)
    fresh = folder / f".{MANIFEST}.new"
    fresh.write_text(json.dumps({**facts, "files": files}, indent=1), encoding="utf-8")
    _to_disk(fresh)
    os.replace(fresh, folder / MANIFEST)
    _to_disk(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_manifest` wrote.

    Raises:
        OSError, ValueError: there is none, or it cannot be read.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError("it lists no files")
    return manifest


def damage(folder: Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint; None if it is complete and whole.

    Args:
        folder: the checkpoint.
        contents: whether to read every file; without, sizes alone are compared.
    """
    if not folder.is_dir():
        return "there is no such folder"
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        return f"{MANIFEST} is missing, so it was not written to its end"
    except (OSError, ValueError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name, expected in manifest["files"].items():
        try:
            wrong = _difference(folder / name, expected, contents)
        except FileNotFoundError:
            wrong = "is missing"
        except OSError as error:
            wrong = f"cannot be read: {error.strerror}"
        if wrong is not None:
            return f"{name} {wrong}"
    return None


def _difference(path: Path, expected: dict[str, int], contents: bool) -> str | None:
    size = path.stat().st_size
    if size != expected["size"]:
        return f"has {size} bytes of {expected['size']}"
    if contents and _measure(path)["crc32"] != expected["crc32"]:
        return "does not hold what was written to it"
    return None


def _measure(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "crc32": _checksum(path, stat.st_size, stat.st_mtime_ns)}


@functools.lru_cache(maxsize=1 << 14)
def _checksum(path: Path, size: int, changed: int) -> int:
    """CRC-32 of a file; a file that has not changed since is not read again."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
