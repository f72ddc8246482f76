"""Which strategy of Triton's loss head is the fastest: ``python -m benchmarks.strategies --write``.

Times a forward and a backward pass of both on this machine's GPU, for a shape of each class of the
table (`lepo_kernels/backends/triton/head/strategies.json`), beside the four bare products, and with
``--write`` enters the faster ones under the GPU's family, with what they rest on. Nothing of the
table depends on the number of rows: see there.
"""

import argparse
import datetime
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import assert_close, tolerance_of
from benchmarks.timing import Batch, host_timer, interleaved, stopwatch
from lepo_kernels.backends.triton.common import launching
from lepo_kernels.backends.triton.head import strategies
from lepo_kernels.backends.triton.linear_log_probs import STRATEGIES
from lepo_kernels.structures import Head, Needs, Selection, Statistics, Upstream

_KEPT = 30
# Rows by dtype: products of float32 take ten times as long.
_ROWS = {torch.bfloat16: 8192, torch.float32: 2048}
# One of each class.
_WIDTHS, _VOCABS = (1024, 2048, 4096, 8192), (49152, 151936)
_CHUNK_LOGITS = 1 << 26
_ROUNDS = 5

Table = dict[str, Any]


def passes(
    name: str,
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
) -> tuple[Tensor, ...]:
    """Statistics and gradients of one forward and one backward pass of a strategy, at their end."""
    chunk_size = max(1, _CHUNK_LOGITS // len(lm_head))
    one = torch.ones(1, device=hidden.device)
    head = (Head(hidden, lm_head, None, None), Selection(ids, one))
    selected, lse, entropy = STRATEGIES[name].forward(*head, chunk_size, False)
    upstream = Upstream(torch.ones_like(selected), torch.full_like(lse, -ids.shape[1]), 0 * entropy)
    needs = Needs(True, True, False)
    grads = STRATEGIES[name].backward(upstream, *head, Statistics(lse, entropy), chunk_size, needs)
    _wait(hidden)
    return selected, lse, entropy, *grads[:2]


def check_agreement(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
) -> None:
    """Raise AssertionError unless all strategies give the same, up to rounding."""
    first, *others = STRATEGIES
    want, tolerance = passes(first, hidden, lm_head, ids), tolerance_of(hidden.dtype)
    for name in others:
        for i, (x, y) in enumerate(zip(passes(name, hidden, lm_head, ids), want, strict=True)):
            assert_close(f"result {i} of {name}, beside {first}", x, y, tolerance)


def products(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
) -> None:
    """The four products alone, a part of the vocabulary at a time."""
    size = max(1, _CHUNK_LOGITS // len(hidden))
    for part in lm_head.split(size):
        hidden @ part.T
        logits = hidden @ part.T
        logits @ part
        logits.T @ hidden
    _wait(hidden)


def _wait(like: Tensor) -> None:
    if like.is_cuda:
        torch.cuda.synchronize(like.device)


def measure(
    device: torch.device, rows: int, width: int, vocab: int, dtype: torch.dtype, rounds: int
) -> dict[str, float]:
    """Milliseconds of each strategy, and of the bare products."""
    hidden = torch.randn(rows, width, device=device).to(dtype)
    lm_head = (torch.randn(vocab, width, device=device) / width**0.5).to(dtype)
    ids = torch.randint(0, vocab, (rows, _KEPT), device=device)
    names = [*STRATEGIES, "products"]
    check_agreement(hidden, lm_head, ids)
    runs: list[Callable[[], object]] = [
        partial(passes, x, hidden, lm_head, ids) for x in STRATEGIES
    ]
    runs.append(partial(products, hidden, lm_head))
    # Each ends with a wait for the device: the host's clock tells its time.
    watch = stopwatch(host_timer(False))
    samples = interleaved([Batch(lambda _, run=run: run(), watch) for run in runs], 0, rounds)
    return {name: 1e3 * median(taken) for name, taken in zip(names, samples, strict=True)}


def measured(
    device: torch.device,
    rows: dict[torch.dtype, int],
    widths: Sequence[int],
    vocabs: Sequence[int],
    rounds: int,
) -> Table:
    """The family's entry of the table; each shape stands for its class."""
    family: Table = {"basis": basis(device)}
    for dtype, count in rows.items():
        entries: Table = {}
        for width in widths:
            line = entries.setdefault(strategies.class_of("D", width, strategies.WIDTHS), {})
            for vocab in vocabs:
                times = measure(device, count, width, vocab, dtype, rounds)
                figures = ", ".join(f"{name} {x:.3g} ms" for name, x in times.items())
                print(f"[{count}, {width}] x [{vocab}, {width}] {dtype}: {figures}", flush=True)
                fastest = min(STRATEGIES, key=lambda name: times[name])
                line[strategies.class_of("V", vocab, strategies.VOCABS)] = fastest
        family[launching.dtype_class(dtype)] = entries
    return family


def basis(device: torch.device) -> str:
    """What a measurement rests on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    day = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return f"measured on {name}, torch {torch.__version__}, {day}"


def text_of(table: Table) -> str:
    """The table as it is kept: a line for each class of D."""
    text = json.dumps(table, indent=2)
    # A class of D: the innermost braces.
    return re.sub(r"\{\s+([^{}]*?)\s+\}", _on_one_line, text) + "\n"


def _on_one_line(braces: re.Match[str]) -> str:
    return "{" + re.sub(r"\s*\n\s*", " ", braces[1]) + "}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies", description=__doc__)
    parser.add_argument("--write", action="store_true", help="enter the result into the table")
    parser.add_argument("--table", type=Path, default=strategies.TABLE)
    wanted = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("needs a GPU")
    device = torch.device("cuda", torch.cuda.current_device())
    family = measured(device, _ROWS, _WIDTHS, _VOCABS, _ROUNDS)
    if wanted.write:
        enter(wanted.table, launching.device_family(device), family)


def enter(path: Path, name: str, family: Table) -> None:
    """Put a family's entry into the table at ``path``; a new one begins as the committed one."""
    table: Table = json.loads((path if path.exists() else strategies.TABLE).read_text())
    table[name] = family
    path.write_text(text_of(table))


if __name__ == "__main__":
    main()
