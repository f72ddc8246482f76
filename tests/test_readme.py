"""README's examples run as they stand; the built-in model is a tiny one here."""

import re
import shlex
from pathlib import Path

import pytest

import lepo_kernels
from lepo_kernels import dispatch
from lepo_kernels.cli.options import ALL
from lepo_kernels.tasks import models
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("code", blocks("python"), ids=["ops", "trainer"])
def test_python_examples(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    monkeypatch.setitem(
        models.BUILT_IN, "smollm2-135m-instruct", lambda report: str(tmp_path / "tiny")
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines()])
def test_command_examples(line: str) -> None:
    program, command, *words = shlex.split(line, comments=True)
    if program == "make":
        assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if program == "pip":
        build_tools = (ROOT / "pyproject.toml").read_text().partition("\nbuild = [")[2]
        build_tools = build_tools.partition("]")[0]
        assert command == "install"
        assert all(
            word in (".", "--no-build-isolation") or f'"{word}' in build_tools for word in words
        )
        return
    assert program == "lepo"
    assert (ROOT / "lepo_kernels" / "cli" / f"{command}.py").is_file()
    known = {name for kind in ALL for name in kind.__dataclass_fields__}
    for word in words:
        if word.startswith("--"):
            assert word.removeprefix("--") in known
        elif word.startswith("configs/"):
            assert (ROOT / word).is_file()


def test_the_backends_table_names_what_cuda_lacks() -> None:
    (row,) = re.findall(r"^\| `cuda` .*$", README, re.MULTILINE)
    lacking = {family for family, backends in dispatch.KERNELS.values() if "cuda" not in backends}
    assert set(re.findall(r"`(\w+)`", row)) == {"cuda", *lacking}


def test_names_in_the_methods_table_exist() -> None:
    table = README[README.index("## Methods") : README.index("## Backends")]
    names = set(re.findall(r"`([a-z]\w+)", table)) - {"noise", "noise_clamp", "num_draws"}
    assert len(names) > 8
    for name in names:
        assert hasattr(lepo_kernels, name)
