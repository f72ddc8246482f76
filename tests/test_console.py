"""Other people's text on the terminal is text: no markup, no control of the terminal."""

import ast
import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

import lepo_kernels
from lepo_kernels.console import as_text, make_console, say, shows_progress

ROOT = Path(lepo_kernels.__file__).parent


# A closing tag without its opening is an error in markup, a colour vanishes, a link is followed.
@pytest.mark.parametrize(
    "words", ["x[/y]", "x[red]y", "[link=http://x]y[/link]", r"a\[b]", "[", ""]
)
def test_brackets_stay(words: str) -> None:
    console = Console(file=io.StringIO(), width=100)
    say(console, words)
    table = Table(title=as_text(words))
    table.add_column(as_text(words))
    table.add_row(as_text(words))
    console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.splitlines()[0] == words
    assert shown.count(words) >= 4


def test_control_characters_show_as_their_codes() -> None:
    text = "\x1b]0;title\x07 \x1b[2J \x9b31m \x7f tab\t line\n"
    assert str(as_text(text)) == "\\x1b]0;title\\x07 \\x1b[2J \\x9b31m \\x7f tab\t line\n"


def test_a_long_path_stays_on_one_line() -> None:
    console = Console(file=io.StringIO(), width=20)
    say(console, "a/" * 40)
    assert console.file.getvalue() == "a/" * 40 + "\n"  # type: ignore[attr-defined]


def test_a_bar_moves_only_where_a_cursor_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert shows_progress(Console(file=io.StringIO(), force_terminal=True))
    assert not shows_progress(Console(file=io.StringIO()))
    monkeypatch.setenv("TERM", "dumb")
    assert not shows_progress(Console(file=io.StringIO(), force_terminal=True))


def test_consoles_forgive(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    console = make_console()
    console.print("●")
    stream.close()
    console.print("nobody reads this")


def consoles_made(file: Path) -> set[str]:
    """Calls of ``Console`` and ``print`` of an f-string, which would be read as markup."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "Console":
            found.add(f"{file.relative_to(ROOT)}:{node.lineno}: Console(...)")
        printed = isinstance(node.func, ast.Attribute) and node.func.attr == "print"
        if printed and any(isinstance(word, ast.JoinedStr) for word in node.args):
            found.add(f"{file.relative_to(ROOT)}:{node.lineno}: print(f...)")
    return found


def test_every_console_is_made_in_one_place() -> None:
    files = [file for file in ROOT.rglob("*.py") if file.name != "console.py"]
    assert set().union(*map(consoles_made, files)) == set()
