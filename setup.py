"""Build entry point; the metadata lives in pyproject.toml."""

import os
import shutil
import subprocess
from pathlib import Path

import torch
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Runs CMake and puts the library into the package."""

    def get_ext_filename(self, name):
        """Without the tag of one Python version."""
        return name.replace(".", "/") + ".so"

    def run(self):
        """Build."""
        build = ROOT / "build" / "cmake"
        include = Path(torch.__file__).parent / "include"
        subprocess.check_call(
            [
                "cmake",
                "-S",
                str(ROOT),
                "-B",
                str(build),
                "-G",
                "Ninja",
                f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
                "-DCMAKE_BUILD_TYPE=Release",
                f"-DLEPO_TORCH_INCLUDE={include}",
                "-DLEPO_WERROR=ON",
            ]
        )
        subprocess.check_call(
            ["cmake", "--build", str(build), "-j", os.environ.get("MAX_JOBS", "2")]
        )
        shutil.copy2(build / "_C_cpu.so", ROOT / "lepo_kernels" / "_C_cpu.so")


setup(ext_modules=[Extension("lepo_kernels._C_cpu", [])], cmdclass={"build_ext": CMakeBuild})
