"""Counter-based noise: a dense row of Philox words per sequence.

Other: torch's own generator, which depends on the order of its calls. Floor: writing the words.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.case import Case, Family, Implementation, ours
from benchmarks.plan import Plan
from lepo_kernels import philox_words

SEED, STEP = 20_26, 7


@dataclass
class Inputs:
    row_keys: Tensor  # [N]
    ids: Tensor  # [V]


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 on Python integers (Salmon et al., SC 2011)."""
    for _ in range(10):
        even, odd = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (odd >> 32) ^ counter[1] ^ key[0],
            odd & 0xFFFFFFFF,
            (even >> 32) ^ counter[3] ^ key[1],
            even & 0xFFFFFFFF,
        ]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


def our_words(x: Inputs, backend: str) -> Tensor:
    return philox_words(SEED, x.row_keys, STEP, x.ids, backend=backend)


def torch_words(x: Inputs) -> Tensor:
    return torch.randint(1 << 32, (len(x.row_keys), len(x.ids)), device=x.ids.device)


def write(x: Inputs) -> Tensor:
    return torch.full((len(x.row_keys), len(x.ids)), 1, device=x.ids.device)


def check_words(x: Inputs, result: Tensor) -> None:
    rows, vocab = len(x.row_keys), len(x.ids)
    # Every row and each end of the vocabulary, and a stride that meets all four words of a block.
    for row in range(rows):
        for token in {*range(0, vocab, 997), vocab - 1}:
            want = philox([token // 4, STEP, int(x.row_keys[row]), 0], [SEED, 0])[token % 4]
            assert int(result[row, token]) == want, f"word of row {row}, id {token}"


def check_range(x: Inputs, result: Tensor) -> None:
    assert result.shape == (len(x.row_keys), len(x.ids))
    assert int(result.min()) >= 0
    assert int(result.max()) < 1 << 32


def case(rows: int, vocab: int, model: str = "tiny") -> Case:
    def make(device: torch.device) -> Inputs:
        return Inputs(torch.arange(rows, device=device), torch.arange(vocab, device=device))

    return Case(
        op="philox_words",
        shape=f"{model}: [{rows}, {vocab}]",
        make=make,
        implementations=(
            *ours("ours", ("philox_words",), our_words, check_words),
            Implementation(
                "torch.randint",
                "other",
                torch_words,
                check_range,
                lacks="words depend on the order of calls",
            ),
            Implementation("floor: write", "floor", write, check_range),
        ),
        bytes=8 * rows * vocab,
        words=rows * vocab,
    )


def timed(plan: Plan) -> Iterator[Case]:
    for model in plan.heavy_models():
        yield case(plan.rollout_rows(), model.vocab, model.name)


FAMILY = Family(timed, tiny=(case(3, 10),))
