"""Text of a model, a data set or a model's folder, made safe to print.

A terminal obeys what such text may hold: escape sequences (colours, moves of the cursor, a new
title, links that hide their target) and marks that turn the direction of writing. Files keep the
text as it is; whatever prints it passes it through `printable`.
"""

import unicodedata

# Joiners that scripts and emoji need; they only shape their neighbours.
_WELCOME = frozenset("\n\t\u200c\u200d")
# Control characters (C0, DEL, C1), invisible marks (the bidirectional ones among them), halves of
# surrogate pairs, and the line and paragraph separators.
_REFUSED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """The text with every character that a terminal would obey, instead of show, as its escape.

    Line feeds and tabs stay. An escape character, say, becomes a backslash, an x, a 1 and a b.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character in _WELCOME or unicodedata.category(character) not in _REFUSED:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
