"""Where the inputs of numerical tests come from.

A test names a seed of its own; the environment variable `LEPO_NUMERIC_SEED` shifts all of them, so
that the same tests run on other numbers (`python -m tools.numerics_sweep`). A tolerance that is
right for one draw alone shows itself there.
"""

import os

VARIABLE = "LEPO_NUMERIC_SEED"


def seeded(seed: int) -> int:
    """The seed to draw from in place of ``seed``: the same one, unless the variable is set.

    Raises:
        ValueError: the variable holds no integer from 0 on.
    """
    shift = int(os.environ.get(VARIABLE, "0"))
    if shift < 0:
        raise ValueError(f"{VARIABLE}: expected an integer from 0 on, got {shift}")
    return seed + 1_000_003 * shift
