"""Makes a wheel of this tree without building anything, and small libraries to spoil it with."""

import base64
import hashlib
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tools.wheel_checks.contents import DATA

ROOT = Path(__file__).parents[2]
INFO = "lepo_kernels-0.1.0.dist-info"
PLATFORM = "linux_x86_64"
METADATA = """\
Metadata-Version: 2.4
Name: lepo_kernels
Version: 0.1.0
Requires-Python: >=3.10
Requires-Dist: numpy<3,>=1.26
Requires-Dist: torch<2.16,>=2.11
Requires-Dist: typing-extensions<5,>=4.10
Requires-Dist: rich<16,>=13; extra == "train"
"""


def good_files() -> dict[str, bytes]:
    """Path in the wheel -> contents, of a CPU wheel that is as it should be."""
    library = ROOT / "lepo_kernels" / "_C_cpu.so"
    if not library.is_file():
        pytest.skip("the CPU library is not built")
    modules = sorted((ROOT / "lepo_kernels").rglob("*.py"))
    modules += [ROOT / name for name in DATA]
    return {
        **{str(path.relative_to(ROOT)): path.read_bytes() for path in modules},
        "lepo_kernels/_C_cpu.so": library.read_bytes(),
        f"{INFO}/METADATA": METADATA.encode(),
        f"{INFO}/WHEEL": (
            f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-{PLATFORM}\n"
        ).encode(),
        f"{INFO}/top_level.txt": b"lepo_kernels\n",
        f"{INFO}/entry_points.txt": b"[console_scripts]\nlepo = lepo_kernels.cli.main:main\n",
    }


def write_wheel(
    folder: Path, files: Mapping[str, bytes], tag: str = f"py3-none-{PLATFORM}"
) -> Path:
    """Zip ``files`` with a RECORD that fits them."""
    path = folder / f"lepo_kernels-0.1.0-{tag}.whl"
    lines = [f"{name},{_digest(data)},{len(data)}" for name, data in files.items()]
    lines.append(f"{INFO}/RECORD,,")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, f"{INFO}/RECORD": "\n".join(lines).encode()}.items():
            archive.writestr(name, data)
    return path


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return "sha256=" + digest.rstrip(b"=").decode()


def compile_library(folder: Path, source: str, *options: str) -> bytes:
    """A shared library of C source."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    (folder / "library.c").write_text(source)
    command = ["cc", "-shared", "-fPIC", "library.c", "-o", "library.so", *options]
    subprocess.run(command, cwd=folder, check=True)
    return (folder / "library.so").read_bytes()
