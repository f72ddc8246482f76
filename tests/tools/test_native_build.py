"""What a build does, by its environment and by what the machine has; every refusal says why."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lepo_kernels.native import why_no_code
from tools import native_build
from tools.native_build import BuildError

TORCH_CPU = native_build.Torch(Path("/torch/include"), "2.13.0", None)
ROOT = Path(__file__).parents[2]


def torch_for(cuda):
    return lambda: native_build.Torch(Path("/torch/include"), "2.13.0", cuda)


@pytest.fixture
def no_usual_toolkit(monkeypatch):
    """Neither nvcc on PATH nor /usr/local/cuda."""
    which = native_build.shutil.which
    monkeypatch.setattr(
        native_build.shutil, "which", lambda name, **k: None if name == "nvcc" else which(name, **k)
    )
    is_file = Path.is_file
    monkeypatch.setattr(
        Path, "is_file", lambda path: "/usr/local/cuda" not in str(path) and is_file(path)
    )


def test_the_toolkit_is_looked_for_in_order(make_toolkit, monkeypatch):
    ours, usual, on_path = (
        make_toolkit("ours", "13.4"),
        make_toolkit("usual", "13.1"),
        make_toolkit("path", "13.2"),
    )
    monkeypatch.setenv("PATH", f"{on_path}/bin:/usr/bin:/bin")
    assert native_build.find_toolkit() == native_build.Toolkit(on_path, "13.2")
    monkeypatch.setenv("CUDA_HOME", str(usual))
    assert native_build.find_toolkit() == native_build.Toolkit(usual, "13.1")
    monkeypatch.setenv("LEPO_CUDA_HOME", str(ours))
    found = native_build.find_toolkit()
    assert (found.home, found.version, found.tag) == (ours, "13.4", "cu134")


def test_a_link_to_nvcc_leads_to_its_toolkit(make_toolkit, monkeypatch, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "nvcc").symlink_to(make_toolkit("real") / "bin" / "nvcc")
    monkeypatch.setenv("PATH", f"{tmp_path}/links:/usr/bin:/bin")
    assert native_build.find_toolkit().home == tmp_path / "real"


@pytest.mark.usefixtures("no_usual_toolkit")
def test_a_script_named_nvcc_is_no_toolkit(make_toolkit, monkeypatch):
    script = make_toolkit("script", headers=False) / "bin" / "nvcc"
    monkeypatch.setattr(native_build.shutil, "which", lambda name: str(script))
    with pytest.raises(BuildError) as error:
        native_build.find_toolkit()
    message = str(error.value)
    assert f"nvcc on PATH ({script}): no {script.parents[1]}/include/cuda_runtime.h" in message
    assert "/usr/local/cuda: no /usr/local/cuda/bin/nvcc" in message
    assert "LEPO_BUILD_CUDA=0" in message


def test_a_toolkit_that_is_named_but_missing_is_not_replaced(make_toolkit, monkeypatch):
    monkeypatch.setenv("PATH", f"{make_toolkit('path')}/bin:/usr/bin:/bin")
    monkeypatch.setenv("LEPO_CUDA_HOME", "/nowhere")
    with pytest.raises(BuildError, match="LEPO_CUDA_HOME=/nowhere: no /nowhere/bin/nvcc"):
        native_build.find_toolkit()


@pytest.mark.parametrize(
    ("wanted", "cuda", "version", "built"),
    [
        ("0", "13.0", "13.0", False),
        ("1", None, "13.0", True),  # asked for: the machine that builds need not run it
        ("1", "12.8", "13.0", True),
        ("auto", None, "13.0", False),  # a torch without CUDA would never load it
        ("auto", "12.8", "13.0", False),
        ("auto", "13.2", "13.0", True),
        ("", "13.0", "13.4", True),
    ],
)
def test_when_the_cuda_library_is_built(wanted, cuda, version, built, make_toolkit, monkeypatch):
    monkeypatch.setenv("LEPO_BUILD_CUDA", wanted)
    monkeypatch.setenv("LEPO_CUDA_HOME", str(make_toolkit("cuda", version)))
    monkeypatch.setattr(native_build, "find_torch", torch_for(cuda))
    assert (native_build.wanted_toolkit() is not None) == built


@pytest.mark.usefixtures("no_usual_toolkit")
def test_no_toolkit_is_an_error_only_if_cuda_was_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(native_build, "find_torch", torch_for("13.0"))
    assert native_build.wanted_toolkit() is None
    assert "Building without CUDA kernels" in capsys.readouterr().err
    monkeypatch.setenv("LEPO_BUILD_CUDA", "1")
    with pytest.raises(BuildError, match="no CUDA toolkit was found"):
        native_build.wanted_toolkit()


def test_architectures_come_from_the_environment(make_toolkit, monkeypatch):
    toolkit = native_build.Toolkit(make_toolkit("cuda"), "13.0")
    assert native_build.architectures(toolkit) == ("8.0", "9.0+PTX", "10.0", "12.0+PTX")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0+PTX")
    assert native_build.architectures(toolkit) == ("8.0", "9.0+PTX")
    monkeypatch.setenv("LEPO_CUDA_ARCH_LIST", "10.0f;9.0a")
    assert native_build.architectures(toolkit) == ("10.0f", "9.0a")


# Data centres, workstations and small boards of every generation, and one that is still to come.
@pytest.mark.parametrize("major", [8, 9, 10, 11, 12, 13])
def test_the_default_architectures_serve_every_gpu_from_ampere_on(major):
    listed = native_build.DEFAULT_ARCHITECTURES.split(";")
    for minor in (0, 1, 3, 6, 9):
        assert why_no_code(listed, (major, minor)) is None


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("Hopper", "'Hopper' is no CUDA architecture"),
        ("8.0;90", "'90' is no CUDA architecture"),
        ("9.0x", "'9.0x' is no CUDA architecture"),
        ("7.0", "CUDA 13.0 does not compile 7.0"),
        (";", "names no architecture"),
    ],
)
def test_a_wrong_architecture_is_named(listed, message, make_toolkit, monkeypatch):
    monkeypatch.setenv("LEPO_CUDA_ARCH_LIST", listed)
    with pytest.raises(BuildError, match=f"LEPO_CUDA_ARCH_LIST={listed}: {message}"):
        native_build.architectures(native_build.Toolkit(make_toolkit("cuda"), "13.0"))


def test_a_switch_takes_its_words_only(monkeypatch):
    monkeypatch.setenv("LEPO_BUILD_CUDA", "maybe")
    with pytest.raises(BuildError, match="LEPO_BUILD_CUDA: expected 0, 1 or auto, got 'maybe'"):
        native_build.wanted_toolkit()


@pytest.mark.parametrize(
    ("wanted", "kind", "version"),
    [
        ("", "1", ""),
        ("site.1", "1", "+site.1"),
        ("auto", "1", "+cu134"),
        ("auto", "0", "+cpu"),
    ],
)
def test_the_local_version_is_opt_in(wanted, kind, version, make_toolkit, monkeypatch):
    monkeypatch.setenv("LEPO_LOCAL_VERSION", wanted)
    monkeypatch.setenv("LEPO_BUILD_CUDA", kind)
    monkeypatch.setenv("LEPO_CUDA_HOME", str(make_toolkit("cuda", "13.4")))
    assert native_build.local_version() == version


def test_a_pure_build_with_cuda_is_refused(monkeypatch):
    monkeypatch.setenv("LEPO_BUILD_NATIVE", "0")
    assert not native_build.native_wanted()
    monkeypatch.setenv("LEPO_BUILD_CUDA", "1")
    with pytest.raises(BuildError, match="contradict each other"):
        native_build.native_wanted()


def test_a_pure_build_has_no_automatic_local_version(monkeypatch):
    monkeypatch.setenv("LEPO_BUILD_NATIVE", "0")
    monkeypatch.setenv("LEPO_LOCAL_VERSION", "auto")
    assert native_build.local_version() == ""


def test_the_plan_holds_what_the_environment_says(make_toolkit, monkeypatch):
    monkeypatch.setattr(native_build, "find_torch", lambda: TORCH_CPU)
    plan = native_build.make_plan("1.2")
    assert plan.libraries == ("_C_cpu",)
    assert {"-DLEPO_WERROR=OFF", "-DLEPO_CUDA_ARCHITECTURES=", "-DLEPO_VERSION=1.2"} <= set(
        plan.configure
    )
    home = make_toolkit("cuda")
    for name, value in {
        "LEPO_BUILD_CUDA": "1",
        "LEPO_CUDA_HOME": str(home),
        "LEPO_WERROR": "1",
        "LEPO_FAIL_ON_SPILL": "1",
        "LEPO_SANITIZE": "address,undefined",
        "LEPO_CCACHE": "true-ccache",
        "MAX_JOBS": "7",
        "CMAKE_ARGS": "-DA='b c' -Wdev",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BuildError, match="LEPO_CCACHE=true-ccache: there is no such program"):
        native_build.make_plan("1.2")
    monkeypatch.setenv("LEPO_CCACHE", "env")  # a program that every machine has
    full = native_build.make_plan("1.2")
    assert full.libraries == ("_C_cpu", "_C_cuda")
    assert full.folder != plan.folder
    assert full.folder.name == "cmake-cu130-address-undefined"
    assert full.compile[-2:] == ("--parallel", "7")
    assert full.configure[-2:] == ("-DA=b c", "-Wdev")
    assert {
        "-DLEPO_WERROR=ON",
        "-DLEPO_FAIL_ON_SPILL=ON",
        "-DLEPO_SANITIZE=address,undefined",
        "-DLEPO_CUDA_ARCHITECTURES=8.0;9.0+PTX;10.0;12.0+PTX",
        f"-DCMAKE_CUDA_COMPILER={home}/bin/nvcc",
    } <= set(full.configure)
    assert any(x.startswith("-DCMAKE_CUDA_COMPILER_LAUNCHER=/") for x in full.configure)


@pytest.mark.parametrize(
    ("said", "version", "fails"),
    [
        ("", "13.0", False),
        ("0", "13.0", False),
        ("1", "13.4", True),
        ("reference", "13.0", True),
        ("reference", "13.4", False),
    ],
)
def test_a_spill_fails_where_that_was_asked_for(said, version, fails, make_toolkit, monkeypatch):
    monkeypatch.setenv("LEPO_FAIL_ON_SPILL", said)
    monkeypatch.setenv("LEPO_BUILD_CUDA", "1")
    monkeypatch.setenv("LEPO_CUDA_HOME", str(make_toolkit("cuda", version)))
    monkeypatch.setattr(native_build, "find_torch", lambda: TORCH_CPU)
    assert native_build.REFERENCE_TOOLKIT == "13.0"
    switch = f"-DLEPO_FAIL_ON_SPILL={'ON' if fails else 'OFF'}"
    assert switch in native_build.make_plan("1.2").configure


def test_the_words_of_the_spill_switch(make_toolkit, monkeypatch):
    monkeypatch.setenv("LEPO_FAIL_ON_SPILL", "never")
    with pytest.raises(BuildError, match="expected 0, 1, reference or auto, got 'never'"):
        native_build.fails_on_spill(native_build.Toolkit(make_toolkit("cuda"), "13.0"))


# nvcc of the packages of CUDA 13.0 and 13.1 says lib64, where they have lib.
PROFILE = """
TOP = $(_HERE_)/..
CICC_PATH = $(TOP)/nvvm/bin
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH += $(CICC_PATH):$(_HERE_):
INCLUDES += "-I$(TOP)/include" $(_SPACE_)
SYSTEM_INCLUDES += "-isystem" "$(TOP)/include/cccl" $(_SPACE_)
LIBRARIES =+ $(_SPACE_) "-L$(TOP)/lib64/stubs" "-L$(TOP)/lib64"
"""


def package_layout(folder):
    """The installed toolkit, laid out in ``folder`` as its packages are."""
    home = native_build.find_toolkit().home
    runtime = next(home.rglob("libcudart_static.a"), None)
    if runtime is None:
        pytest.skip("the CUDA toolkit has no static runtime")
    (folder / "bin").mkdir(parents=True)
    for path in (home / "bin").iterdir():
        (folder / "bin" / path.name).symlink_to(path)
    for name in ("nvcc", "nvcc.profile"):
        (folder / "bin" / name).unlink()
    # It looks for the rest beside itself.
    shutil.copy(home / "bin" / "nvcc", folder / "bin" / "nvcc")
    (folder / "bin" / "nvcc.profile").write_text(PROFILE)
    (folder / "lib").symlink_to(runtime.parent)
    for name in ("include", "nvvm"):
        (folder / name).symlink_to(home / name)
    return folder


# A space, as a folder of a home may have.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["packages", "my packages"])
def test_a_toolkit_of_packages_links_and_spills_are_warnings(name, tmp_path, monkeypatch):
    try:
        home = package_layout(tmp_path / name)
        torch = native_build.find_torch()
    except BuildError as error:
        pytest.skip(str(error))
    for variable, value in {
        "LEPO_BUILD_CUDA": "1",
        "LEPO_CUDA_HOME": str(home),
        "LEPO_CUDA_ARCH_LIST": "8.0",
        "LEPO_FAIL_ON_SPILL": "0",
    }.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(native_build, "find_torch", lambda: torch)
    plan = native_build.make_plan("1.2")
    folder = tmp_path / "build"
    command = [str(folder) if word == str(plan.folder) else word for word in plan.configure]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rules = (folder / "build.ninja").read_text()
    assert re.search(rf"-L\S*.*{home.name}/lib[\s\"]", rules.replace("\\ ", " ").replace("$ ", " "))
    assert "--warn-on-spills" in rules
    assert "--warning-as-error" not in rules


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(native_build, "find_torch", lambda: TORCH_CPU)
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(BuildError, match=r"C\+\+17 compiler.*looked for CXX=no-such-compiler"):
        native_build.make_plan("1.2")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BuildError, match=r"looked for c\+\+, g\+\+, clang\+\+ on PATH"):
        native_build.make_plan("1.2")


def test_missing_tools_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(native_build.sysconfig, "get_path", lambda name: str(tmp_path))
    for name in ("cmake", "ninja"):
        with pytest.raises(BuildError, match=f"needs {name}.*(?s:.*)pip install cmake ninja"):
            native_build.find_tool(name)


def test_torch_is_found_without_importing_it(monkeypatch, tmp_path):
    folder = tmp_path / "torch"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    (folder / "version.py").write_text("__version__ = '2.10.1+cu128'\ncuda = '12.8'\n")
    spec = native_build.importlib.util.spec_from_file_location(
        "torch", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    monkeypatch.setattr(native_build.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(BuildError, match=r"need torch 2.11 or later; .* is 2.10.1"):
        native_build.find_torch()
    (folder / "version.py").write_text("__version__ = '2.11.0+cu128'\ncuda = '12.8'\n")
    with pytest.raises(BuildError, match=r"without its C\+\+ headers"):
        native_build.find_torch()
    (folder / "include/torch/csrc/stable").mkdir(parents=True)
    (folder / "include/torch/csrc/stable/library.h").touch()
    assert native_build.find_torch().cuda == "12.8"


def test_the_packagers_page_lists_every_variable():
    source = (ROOT / "tools" / "native_build.py").read_text()
    page = (ROOT / "docs" / "wheels.md").read_text()
    names = re.findall(r'"(\w+)"', " ".join(re.findall(r"(?:flag|environ.get)\([^)]*\)", source)))
    steering = {name for name in names if name.isupper() and name != "PATH"}
    assert len(steering) >= 10
    assert [name for name in sorted(steering) if f"`{name}`" not in page] == []


# -S and -I: a Python that sees no installed package, as one in pip's isolated build without torch.
def test_setup_without_torch_says_what_to_do():
    code = (
        "import runpy, sys\n"
        f"build = runpy.run_path({str(ROOT / 'tools' / 'native_build.py')!r})\n"
        "try: build['make_plan']('1')\n"
        "except SystemExit as e: sys.exit(e.code)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "there is no torch in the Python that builds" in done.stderr
    assert "pip install --no-build-isolation ." in done.stderr
    assert "LEPO_BUILD_NATIVE=0 pip install ." in done.stderr
    assert "Traceback" not in done.stderr


# A build backend runs setup.py with neither the root nor its folder's `tools` to be imported.
def test_setup_needs_no_path_to_its_tools(tmp_path):
    (tmp_path / "tools.py").write_text("raise ImportError('somebody else's tools')")
    code = (
        "import runpy, sys; sys.argv = ['setup.py', '--version'];"
        f"sys.path[:0] = [{str(tmp_path)!r}];"
        f"runpy.run_path({str(ROOT / 'setup.py')!r}, run_name='__main__');"
        f"assert {str(ROOT / 'tools')!r} not in sys.path"
    )
    environment = {**os.environ, "LEPO_BUILD_NATIVE": "0"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+\.\d+\S*", done.stdout.splitlines()[-1])


def test_every_tool_has_one_name():
    """Imported as ``tools.x``, from the root: no script puts folders on the path by itself."""
    files = [
        ROOT / "setup.py",
        *(ROOT / "tools").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
    ]
    edits = [x for x in files if re.search(r"sys\.path[.\[]", x.read_text(encoding="utf-8"))]
    assert edits == []
