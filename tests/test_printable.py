"""Text of others never reaches the terminal as a command."""

import io
import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lepo_kernels.printable import printable
from lepo_kernels.report.tables import completions_table, soft_steps_table
from lepo_kernels.trainer import samples

# A colour, a title, a link that hides its target, the same by C1 controls, a line drawn over, marks
# that turn the direction of writing (an override and an isolate), and text that no one sees.
HOSTILE = {
    "colour": "\x1b[31mred",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\",
    "c1": "\x9b31m\x9d8;;http://evil\x9c",
    "return": "wrong\rright",
    "backspace": "no\x08\x08ok",
    "override": "\u202etxt.exe",
    "isolate": "\u2066x\u2069\u061c\u200f",
    "tags": "a\U000e0041\ufeff\u2028",
    "surrogate": "\ud800",
}


def is_harmless(text: str) -> bool:
    """No character of it is a control, a format mark or half a pair, line feeds apart."""
    return all(
        character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        for character in text
    )


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_what_a_terminal_obeys_is_shown(text: str) -> None:
    assert not is_harmless(text)
    shown = printable(text)
    assert is_harmless(shown)
    # What is harmless stays, in its place.
    kept = [character for character in text if is_harmless(character)]
    rest = iter(shown)
    assert all(character in rest for character in kept)


def test_other_text_stays() -> None:
    for text in (
        "",
        "plain [b]text[/b] \\x1b",
        "a\tb\n",
        "日本語 Ünï",
        "क्\u200dष क्\u200cष",
        "👩\u200d🔬",
    ):
        assert printable(text) == text


def rendered(table: Any) -> str:
    console = Console(file=io.StringIO(), width=400, force_terminal=False)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_table_lets_it_pass(text: str) -> None:
    step = [{"token": text, "weight": 1.0}]
    record = {"completion": text, "reward": 1.0, "latent": [step]}
    tables = [completions_table([text], {"now": [record]}), soft_steps_table([step])]
    assert all(is_harmless(rendered(table)) for table in tables)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_nor_does_the_table_of_a_log(
    text: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = samples.SampleLog(tmp_path, SimpleNamespace(), ["right"])
    log._latest = [
        {
            "prompt": text,
            "latent": [[{"token": text, "weight": 1.0}]],
            "completion": text,
            "rewards": {"right": 1.0},
            "advantage": 0.5,
        }
    ]
    monkeypatch.setenv("COLUMNS", "400")
    log.print_table(1)
    assert is_harmless(capsys.readouterr().out)
