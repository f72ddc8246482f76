"""Tables for the terminal: accuracies before and after, completions, and soft steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from lepo_kernels.console import as_text
from lepo_kernels.printable import printable

BAR_WIDTH = 24
_LEAST_SHOWN = 0.0005  # rounds up to 0.001
_EIGHTHS = " ▏▎▍▌▋▊▉"


def evaluation_table(columns: Mapping[str, Mapping[str, float]]) -> Table:
    """Metrics of one or several evaluations side by side, with the change of the last.

    Args:
        columns: title of a column -> its metrics.
    """
    titles = list(columns)
    table = Table(title="Evaluation on held-out problems")
    table.add_column("metric")
    for title in titles:
        table.add_column(as_text(title), justify="right")
    if len(titles) > 1:
        table.add_column("change", justify="right")
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    for name in names:
        values = [columns[title].get(name) for title in titles]
        cells = ["" if value is None else f"{value:.3f}" for value in values]
        if len(titles) > 1:
            first, last = values[0], values[-1]
            known = first is not None and last is not None
            cells.append(f"{last - first:+.3f}" if known else "")  # type: ignore[operator]
        table.add_row(as_text(name), *cells)
    return table


def completions_table(
    problems: Sequence[str], columns: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Table:
    """Completions of the same problems from one or several evaluations, side by side.

    Args:
        problems: what each problem asks.
        columns: title of a column -> one evaluation record per problem.
    """
    table = Table(title="Completions (a soft token as its heaviest, in brackets)", show_lines=True)
    table.add_column("problem", ratio=1)
    for name in columns:
        table.add_column(as_text(name), ratio=1)
    for problem, *records in zip(problems, *columns.values(), strict=True):
        table.add_row(as_text(problem), *map(_completion, records))
    return table


def soft_steps_table(steps: Sequence[Sequence[Mapping[str, Any]]]) -> Table:
    """The soft tokens of a completion: per latent step its heaviest tokens with their weights.

    Args:
        steps: per latent step a list of ``{"token": str, "weight": float}``, heaviest first.
    """
    table = Table(title="Soft steps")
    table.add_column("step", justify="right")
    table.add_column("token")
    table.add_column("weight", justify="right")
    table.add_column("", width=BAR_WIDTH)
    for number, tokens in enumerate(steps):
        for position, token in enumerate(tokens):
            table.add_row(
                "" if position else str(number + 1),
                as_text(repr(token["token"])),
                f"{token['weight']:.3f}",
                Text(bar(token["weight"]), style="cyan"),
            )
        others = 1.0 - sum(token["weight"] for token in tokens)
        if others >= _LEAST_SHOWN:
            table.add_row("", "others", f"{others:.3f}", Text(bar(others), style="dim"))
        table.add_section()
    return table


def bar(share: float) -> str:
    """A bar of ``share`` times `BAR_WIDTH` characters, exact to an eighth."""
    eighths = round(min(max(share, 0.0), 1.0) * BAR_WIDTH * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _completion(record: Mapping[str, Any]) -> Text:
    text = Text()
    heaviest = [step[0]["token"] for step in record.get("latent", []) if step]
    if heaviest:
        shown = printable("".join(f"[{token}]" for token in heaviest))
        text.append(shown + " ", style="italic cyan")
    text.append(printable(record["completion"].strip()))
    reward = record["reward"]
    if reward is None:
        text.append("\nno reward", style="dim")
    else:
        text.append(f"\nreward {reward:g}", style="green" if reward > 0 else "red")
    return text
