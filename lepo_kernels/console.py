"""The one place that makes a rich console, and the one way to put other people's text into it.

Names, paths, prompts and completions are not ours: a bracket in them is no markup. Everything of
that kind goes through `as_text`, or is printed with `say`.
"""

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from lepo_kernels.printable import printable
from lepo_kernels.streams import forgiving


def make_console(**settings: Any) -> Console:
    """A console on standard output that no character and no closed pipe can upset.

    Args:
        settings: as for rich's ``Console``, such as ``quiet``.
    """
    return Console(file=forgiving(sys.stdout), **settings)


def shows_progress(console: Console) -> bool:
    """Whether a moving bar can be drawn: on a terminal that can move its cursor."""
    return console.is_terminal and not console.is_dumb_terminal


def as_text(words: object, style: str = "") -> Text:
    """Text as it is: nothing in it is markup, and what a terminal would obey shows as its code."""
    return Text(printable(str(words)), style=style)


def say(console: Console, words: object) -> None:
    """Print a line of text as it is, without markup, highlighting or broken lines."""
    console.print(as_text(words), highlight=False, soft_wrap=True)
