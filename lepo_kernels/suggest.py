"""The hint that ends an error about a wrong name."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Name the known names nearest to a wrong one.

    Args:
        name: the wrong one.
        known: the right ones.
        otherwise: what to say if none is near; None names them all.
    """
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return otherwise if otherwise is not None else f"known: {', '.join(known)}"
