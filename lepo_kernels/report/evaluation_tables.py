"""The tables of evaluations: metrics with their intervals, and what ablated latents do.

Rows are lists of texts, the headings first, so that a terminal and a Markdown file show the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from lepo_kernels.console import as_text
from lepo_kernels.printable import printable

Rows = list[list[str]]
Result = Mapping[str, Any]  # an entry of "evaluations" in the JSON of ``lepo eval``

_SHOWN_QUANTILES = ("0.05", "0.5", "0.95")


def metric_rows(results: Sequence[Result]) -> Rows:
    """One row per metric, one column per evaluation.

    Args:
        results: the evaluations.
    """
    rows: Rows = [["metric", *(str(result["name"]) for result in results)]]
    for name in _in_order(result["metrics"] for result in results):
        cells = [
            _with_interval(result["metrics"].get(name), result["intervals"].get(name))
            for result in results
        ]
        rows.append([name, *cells])
    for name in _in_order(result["spread"] for result in results):
        label = f"{name}: mean ± sd (5, 50, 95 %)"
        rows.append([label, *(_distribution(result["spread"].get(name)) for result in results)])
    rows.append(["problems", *(str(result["problems"]) for result in results)])
    rows.append(["seconds", *(f"{result['seconds']:.1f}" for result in results)])
    memory = (result["peak_memory_bytes"] / 2**30 for result in results)
    rows.append(["peak memory (GiB)", *(f"{size:.2f}" for size in memory)])
    return rows


def ablation_rows(results: Sequence[Result]) -> Rows:
    """One row per evaluation, accuracy and ablation; empty where nothing was ablated.

    Args:
        results: the evaluations.
    """
    rows: Rows = []
    for result in results:
        for name in _in_order(result["ablations"].values()):
            plain = f"{result['metrics'][name]:.3f}"
            rows.append([str(result["name"]), name, "as sampled", plain, ""])
            for kind, effects in result["ablations"].items():
                effect = effects[name]
                change = _with_interval(effect["difference"], effect["difference_interval"], "+")
                rows.append([str(result["name"]), name, kind, f"{effect['value']:.3f}", change])
    return [["evaluation", "metric", "latents", "value", "change"], *rows] if rows else []


def rich_table(title: str, rows: Rows) -> Table:
    """A table for the terminal.

    Args:
        title: stands above it.
        rows: the headings first.
    """
    caption = "[low, high]: 95 % bootstrap interval over problems"
    table = Table(title=title, caption=as_text(caption))
    for number, heading in enumerate(rows[0]):
        table.add_column(as_text(heading), justify="right" if number else "left")
    for row in rows[1:]:
        table.add_row(*map(as_text, row))
    return table


def markdown_table(rows: Rows) -> str:
    """The same as Markdown.

    Args:
        rows: the headings first.
    """
    ruled = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(map(_escaped, row))} |\n" for row in ruled)


def _escaped(text: str) -> str:
    return printable(text).replace("|", "\\|")


def _in_order(mappings: Any) -> list[str]:
    """The keys of all of them, in the order of first appearance."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _with_interval(value: float | None, ends: Sequence[float] | None, sign: str = "") -> str:
    if value is None:
        return ""
    text = f"{value:{sign}.3f}"
    return text if ends is None else f"{text} [{ends[0]:{sign}.3f}, {ends[1]:{sign}.3f}]"


def _distribution(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    spread = "" if found["std"] is None else f" ± {found['std']:.3f}"
    quantiles = ", ".join(f"{found['quantiles'][q]:.3g}" for q in _SHOWN_QUANTILES)
    return f"{found['mean']:.3f}{spread} ({quantiles})"
