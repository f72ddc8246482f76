"""Builds the native libraries into the package; the metadata lives in pyproject.toml.

How to build is told in docs/wheels.md; tools/native_build.py finds the tools and runs CMake.
"""

import os
import re
import shutil
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent


def load(name):
    """A module of tools/ by its file: pip builds where the root is not to be imported from.

    Everything else imports it as ``tools.NAME``. It may use the standard library alone.
    """
    spec = spec_from_file_location(f"tools.{name}", ROOT / "tools" / f"{name}.py")
    module = module_from_spec(spec)
    # Dataclasses look for the module that they are in.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


native_build = load("native_build")
PACKAGE = ROOT / "lepo_kernels"
VERSION = re.search(r'^__version__ = "(.+)"$', (PACKAGE / "version.py").read_text(), re.M)[1]


class DistInfo(dist_info):
    """Metadata, which pip wants first."""

    def run(self):
        """Find out what the build will lack before pip fetches the dependencies."""
        if native_build.native_wanted():
            native_build.make_plan(VERSION)
        super().run()


class SourceDist(sdist):
    """The sources, which are the same whatever is built of them."""

    def finalize_options(self):
        """Drop the local version, which names a build."""
        self.distribution.metadata.version = VERSION
        super().finalize_options()


class BuildNative(build_ext):
    """Runs CMake in the place of setuptools' own compiler."""

    def get_ext_filename(self, name):
        """Without the tag of one Python version: any of them loads it."""
        return name.replace(".", os.sep) + ".so"

    def get_outputs(self):
        """What ``run`` makes."""
        libraries = native_build.make_plan(VERSION).libraries
        return [self.get_ext_fullpath(f"lepo_kernels.{name}") for name in libraries]

    def run(self):
        """Build the libraries and put them into the package, and nothing else of their kind."""
        plan = native_build.make_plan(VERSION)
        native_build.run_plan(plan)
        folder = PACKAGE if self.inplace else Path(self.build_lib) / "lepo_kernels"
        folder.mkdir(parents=True, exist_ok=True)
        for stale in set(folder.glob("_C_*.so")) - {folder / f"{x}.so" for x in plan.libraries}:
            stale.unlink()
        for name in plan.libraries:
            replace(plan.folder / f"{name}.so", folder / f"{name}.so")


class Wheel(bdist_wheel):
    """One wheel for every Python: the libraries do not use its API."""

    def get_tag(self):
        """The platform is the only part that counts."""
        tag = super().get_tag()
        return ("py3", "none", tag[2]) if self.distribution.has_ext_modules() else tag


def replace(source, target):
    """Copy a library over one that a running process may have loaded."""
    fresh = target.with_suffix(".new")
    shutil.copyfile(source, fresh)
    fresh.chmod(0o755)
    fresh.replace(target)


setup(
    version=VERSION + native_build.local_version(),
    # The names only say that there is something to build; make_plan decides what.
    ext_modules=[Extension("lepo_kernels._C_cpu", [])] if native_build.native_wanted() else [],
    cmdclass={
        "bdist_wheel": Wheel,
        "build_ext": BuildNative,
        "dist_info": DistInfo,
        "sdist": SourceDist,
    },
)
