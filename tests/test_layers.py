"""Imports go downwards, from what users call to the kernels; names say what is where."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lepo_kernels
from lepo_kernels import dispatch

ROOT = Path(lepo_kernels.__file__).parent
# From the bottom. What is on one floor does not import from another part of that floor.
FLOORS = (
    ("validation", "structures", "dtypes", "version", "suggest", "extras", "streams", "printable"),
    ("formulas", "native", "console"),
    ("backends", "methods"),
    ("dispatch",),
    ("ops",),
    ("parallel", "environment"),
    ("rollout",),
    ("tasks", "report"),
    ("trainer",),
    ("cli",),
)
FLOOR_OF = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}


def part_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_parts(file: Path) -> Iterator[str]:
    """Parts of the package that a file imports when it is imported itself; later ones are free."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lepo_kernels"):
            _, *rest = (node.module or "").split(".")
            yield from rest[:1] or (name.name for name in node.names)


def test_every_part_has_a_floor():
    parts = {part_of(file) for file in ROOT.rglob("*.py")} - {"__init__"}
    assert parts == set(FLOOR_OF)


@pytest.mark.parametrize("part", FLOOR_OF)
def test_imports_go_downwards(part):
    upwards = {
        f"{file.relative_to(ROOT)}: {other}"
        for file in ROOT.rglob("*.py")
        if part_of(file) == part
        for other in imported_parts(file)
        if other != part and FLOOR_OF.get(other, -1) >= FLOOR_OF[part]
    }
    assert upwards == set()


@pytest.mark.parametrize("part", FLOOR_OF)
def test_nothing_imports_what_the_package_offers(part):
    """The package's own names are those of every floor: a part imports modules by name."""
    parts = set(FLOOR_OF)
    taken = {
        f"{file.relative_to(ROOT)}: {name.name}"
        for file in ROOT.rglob("*.py")
        if part_of(file) == part
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "lepo_kernels"
        for name in node.names
        if name.name not in parts
    }
    assert taken == set()


def compiled_functions(file: Path) -> Iterator[str]:
    """Those of a file that Triton compiles."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            if any(name.startswith("triton.") for name in decorators):
                yield node.name


def functions_of(file: Path) -> set[str]:
    nodes = ast.parse(file.read_text()).body
    return {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_names_of_triton_files_say_host_or_kernel():
    mixed = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "backends" / "triton").rglob("*.py")
        if set(compiled_functions(file))
        != (functions_of(file) if file.stem.endswith("_kernels") else set())
    }
    assert mixed == set()


def test_an_op_leads_to_its_tests_in_one_guess():
    files = (ROOT.parent / "tests" / "ops").glob("test_*.py")
    stems = {file.stem.removeprefix("test_") for file in files}
    families = {family for family, _ in dispatch.KERNELS.values()}
    assert stems >= families
    names = (*dispatch.BACKENDS, "gpu", "kernels")
    special = {f"{family}_{name}" for family in families for name in names}
    assert {stem for stem in stems if stem.startswith(tuple(families))} <= families | special
