"""Results as tables: plain text for a terminal, Markdown for a page."""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.results import Group, Result, Row

_LAST = ("of limit", "extra MiB")


def headings(group: Group) -> tuple[str, ...]:
    """The columns of a group: a rate only where there is something to count."""
    info = group.rows[0].info
    rates = (
        ("TFLOP/s", info["flops"]),
        ("Mword/s", info["words"]),
        ("token/s", info.get("tokens")),
    )
    counted = [name for name, amount in rates if amount]
    return ("implementation", "ms", "quartiles", "speed", "GB/s", *counted, *_LAST)


def text(result: Result) -> str:
    """All groups, for a terminal."""
    lines = [*machine_lines(result), ""]
    for group in result.groups:
        lines += [group.name, f"  {meaning(group)}"]
        lines += [f"  {line}" for line in _aligned([headings(group), *map(cells, group.rows)])]
        lines += [f"  {note}" for note in notes(group)]
        lines += [f"  not run: {line}" for line in not_run(group)]
        lines.append("")
    return "\n".join(lines)


def markdown(group: Group) -> str:
    """One group, with its footnotes."""
    names = headings(group)
    lines = [
        f"| {' | '.join(names)} |",
        "|---|" + "---:|" * (len(names) - 1),
    ]
    for row in group.rows:
        first, *rest = cells(row)
        first = f"**{first}**" if row.kind == "ours" else first
        lines.append(f"| {' | '.join([first, *rest])} |")
    found = [*notes(group), *(f"not run: {line}" for line in not_run(group))]
    return "\n".join([*lines, "", *(f"- {note}" for note in found)]).rstrip() + "\n"


def meaning(group: Group) -> str:
    """What the column of speeds is relative to."""
    if group.best_other is None:
        return "nothing to compare with"
    less = ", though it does less" if group.best_other.lacks else ""
    return f"speed 1 is {group.best_other.name}, the fastest of the others{less}"


def notes(group: Group) -> Iterator[str]:
    """What a row's implementation does not do that ours do, and which rows were timed otherwise."""
    for row in group.rows:
        if row.lacks:
            yield f"{row.name}: {row.lacks}"
    replayed = [row.name for row in group.rows if row.info.get("replayed")]
    if replayed:
        yield f"replayed as CUDA graphs, so that no launch counts: {', '.join(replayed)}"


def not_run(group: Group) -> Iterator[str]:
    """What is missing, and why, as far as it is known."""
    for name, reason in group.skipped.items():
        yield f"{name}: {reason}"
    if group.unexplained:
        yield f"{'; '.join(group.unexplained)}: in other cases of the op, not measured in this one"


def taken(result: Result) -> str:
    """When, and of which state of the code."""
    changes = ", with changes that were not committed" if result.dirty else ""
    return f"taken {result.date[:10]}, commit {result.commit[:12]}{changes}"


def machine_lines(result: Result) -> Iterator[str]:
    """The device, the versions and the measured ceilings."""
    yield ", ".join([result.device["name"], *_device_facts(result.device)])
    yield ", ".join(f"{name} {version}" for name, version in result.machine["versions"].items())
    ceilings = result.run["ceilings"]
    gemm = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in ceilings["gemm"].items())
    yield (
        f"measured limits: read {ceilings['read'] / 1e9:.3g} GB/s, "
        f"copy {ceilings['copy'] / 1e9:.3g} GB/s, products in TFLOP/s: {gemm}"
    )
    yield f"load at the start {result.run['load']:.1f}"
    if result.run["note"]:
        yield str(result.run["note"])


def _device_facts(device: dict[str, Any]) -> Iterator[str]:
    """What is known of it, in words."""
    words = {
        "capability": "{}",
        "processors": "{} processors",
        "threads": "{} threads",
        "memory_gib": "{} GiB",
        "cache_mib": "last-level cache {} MiB",
        "timed_by": "timed by {}",
    }
    return (form.format(device[name]) for name, form in words.items() if name in device)


def cells(row: Row) -> tuple[str, ...]:
    """One row, as `headings` names them."""
    info = row.info
    counted = ("tflop_per_s", "mwords_per_s", "tokens_per_s")
    rates = [number(info[name]) for name in counted if info.get(name)]
    return (
        row.name,
        number(1e3 * row.median),
        f"{number(1e3 * row.low)} to {number(1e3 * row.high)}",
        number(row.speed),
        number(info["gb_per_s"]),
        *rates,
        f"{info['percent_of_limit']:.0f}%",
        "" if info["extra_mib"] is None else f"{info['extra_mib']:.0f}",
    )


def number(value: float | None) -> str:
    """Three digits, without an exponent; nothing for None."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:#.3g}" if value >= 0.001 else f"{value:.4f}"


def _aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *numbers]).rstrip()
