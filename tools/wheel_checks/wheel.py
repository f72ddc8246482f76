"""An unpacked wheel, and what it is expected to be."""

import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Expected:
    """What the wheel was asked to be."""

    libraries: tuple[str, ...]  # of _C_cpu and _C_cuda; none for the pure-Python wheel
    cuda: str | None = None  # such as "13.0"
    architectures: tuple[str, ...] = ()  # such as "9.0" and "12.0+PTX"
    allowed_spill: int = 0  # bytes of stack of a thread that are named, and fail nothing


@dataclass(frozen=True)
class Wheel:
    """A wheel file and the folder it is unpacked in."""

    path: Path
    folder: Path

    @classmethod
    def unpack(cls, path: Path, folder: Path) -> "Wheel":
        """Unpack ``path`` into the empty ``folder``."""
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        return cls(path, folder)

    @property
    def files(self) -> set[str]:
        """All files, relative to the root of the wheel."""
        return {
            str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()
        }

    @property
    def metadata_folder(self) -> Path:
        """The ``.dist-info`` folder that the file name announces."""
        name, version = self.path.name.split("-")[:2]
        return self.folder / f"{name}-{version}.dist-info"

    @property
    def libraries(self) -> list[Path]:
        """The native libraries."""
        return sorted(self.folder.rglob("*.so*"))

    def about(self, library: Path) -> str:
        """How a failure names a library."""
        return str(library.relative_to(self.folder))
