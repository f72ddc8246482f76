"""Results as a run saves them, made by hand: two cases, one without products."""

from typing import Any


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
    best = {"draw": ("a sampler", 0.004), "loss": ("eager", 0.5)}
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
            {
                "group": f"{op} [4, 8]",
                "name": f"{op} [4, 8] | {name}",
                "stats": {"median": median, "q1": 0.9 * median, "q3": 1.2 * median},
                "extra_info": {
                    "implementation": name,
                    "op": op,
                    "shape": "[4, 8]",
                    "kind": kind,
                    "dtype": "float32",
                    "lacks": lacks,
                    "bytes": 10**7,
                    "flops": flops,
                    "words": 0,
                    "tokens": 0,
                    "best_other": best[op][0],
                    "ratio_to_best_other": median / best[op][1],
                    "gb_per_s": 0.01 / median,
                    "tflop_per_s": flops / median / 1e12 if flops else None,
                    "mwords_per_s": None,
                    "tokens_per_s": None,
                    "percent_of_limit": 50.0,
                    "extra_mib": None if name == "eager" else 12.3,
                },
            }
            for op, name, kind, median, flops, lacks in rows
        ],
    }
