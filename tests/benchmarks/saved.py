"""Results as a run saves them, made by hand: two cases, one without products."""

from typing import Any


def row(
    op: str, shape: str, name: str, kind: str, median: float, lacks: str = "", **work: Any
) -> dict[str, Any]:
    """One implementation of a case; ``work`` is its bytes, flops and dtype."""
    work = {"bytes": 10**7, "flops": 0, "dtype": "float32", "words": 0, "tokens": 0} | work
    flops = work["flops"]
    return {
        "group": f"{op} {shape}",
        "name": f"{op} {shape} | {name}",
        "stats": {"median": median, "q1": 0.9 * median, "q3": 1.2 * median},
        "extra_info": {
            "implementation": name,
            "op": op,
            "shape": shape,
            "kind": kind,
            "lacks": lacks,
            **work,
            "gb_per_s": work["bytes"] / median / 1e9,
            "tflop_per_s": flops / median / 1e12 if flops else None,
            "mwords_per_s": None,
            "tokens_per_s": None,
            "percent_of_limit": 50.0,
            "extra_mib": None if name == "eager" else 12.3,
        },
    }


def saved(device: str = "cpu") -> dict[str, Any]:
    rows = [
        ("draw", "ours (cpu)", "ours", 0.001, 0, ""),
        ("draw", "eager", "other", 0.1, 0, ""),
        ("draw", "a sampler", "other", 0.004, 0, "one hard token"),
        ("draw", "floor: amax", "floor", 0.0005, 0, ""),
        ("loss", "ours (reference)", "ours", 3.0, 10**11, ""),
        ("loss", "ours (cpu)", "ours", 1.0, 10**11, ""),
        ("loss", "ours, hard (cpu)", "ours", 0.9, 10**11, "hard targets"),
        ("loss", "eager", "other", 0.5, 10**11, ""),
    ]
    return {
        "machine_info": {
            "device": {"type": device, "name": "A processor", "threads": 2},
            "versions": {"python": "3.11", "torch": "2.13"},
        },
        "run": {
            "load": 0.1,
            "note": "taken by hand",
            "ceilings": {"read": 1e10, "copy": 2e10, "gemm": {"float32": 2e11}},
            "skipped": [
                {"group": "draw [4, 8]", "name": "a peer", "reason": "it is not installed"}
            ],
        },
        "commit_info": {"id": "0123456789abcdef"},
        "datetime": "2026-11-23T12:00:00+00:00",
        "benchmarks": [
            row(op, "[4, 8]", name, kind, median, lacks, flops=flops)
            for op, name, kind, median, flops, lacks in rows
        ],
    }
