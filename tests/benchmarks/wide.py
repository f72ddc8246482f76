"""Results as wide as a GPU's, made by hand: all models, all ops, long names; no times of a GPU."""

from typing import Any

from tests.benchmarks.saved import row

MODELS = ("SmolLM2-135M", "Qwen2.5-3B", "Qwen2.5-7B", "Llama-3.2-3B", "Gemma-2-2B")
# The op, its sizes, its flops per byte (0: no products), and the fastest of the others.
_OPS = (
    ("latent step", "[128, 151936] bfloat16, D 2048", 0, "torch.compile, 30 rows of E"),
    ("mix_embeddings", "[128, 30] of [151936, 2048] bfloat16, forward", 0, "embedding_bag"),
    (
        *("mix_embeddings", "[8192, 30] of [151936, 2048] bfloat16, forward + backward"),
        *(0, "embedding_bag"),
    ),
    ("gather_log_probs", "[8192, 151936] bfloat16, K 30", 0, "TRL selective_log_softmax"),
    ("philox_words", "[128, 151936]", 0, "torch.randint"),
    (
        *("linear_log_probs", "[8192, 2048] x [151936, 2048] bfloat16, K 30", 2590),
        "cut_cross_entropy, linear cross-entropy with a gradient filter",
    ),
    (
        "linear_log_probs",
        "[8192, 2048] x [151936, 2048] bfloat16, K 30, 4096 rows with advantage",
        *(1727, "Liger fused linear scaled cross-entropy"),
    ),
    (
        *("gumbel_softmax_embedding", "[8192, 151936] x [151936, 2048] bfloat16"),
        *(1900, "eager"),
    ),
    (
        *("linear_gumbel_softmax_embedding", "[8192, 2048] x [151936, 2048] tied, bfloat16"),
        *(3100, "torch.compile"),
    ),
)
_WHOLE = (
    ("training step", "bfloat16, 64 rows of 128 + 32 + 96 steps", 2500, "plain transformers"),
    ("rollout, latent", "bfloat16, 32 rows, 32 steps after 128", 44, "plain transformers"),
    ("rollout, discrete", "bfloat16, 32 rows, 32 steps after 128", 44, "plain transformers"),
)
_LACKS = {"Liger", "cut_cross_entropy,", "torch.randint", "TRL"}


def wide(output: dict[str, Any]) -> dict[str, Any]:
    """``output`` with 51 cases in place of its own."""
    cases = [(model, *op) for model in MODELS for op in _OPS]
    cases += [(model, *op) for model in ("Qwen2.5-0.5B", "Qwen2.5-3B") for op in _WHOLE]
    rows = []
    for index, (model, op, sizes, intensity, other) in enumerate(cases):
        shape = f"{model}: {sizes}"
        slow = 1 + (7 * index % 11) / 3
        bytes_ = 10**9 + 10**7 * (index % 5)
        ours = 1e-3 * (1 + index % 4) * max(1, intensity / 200)
        lacks = "something" if other.split(" ")[0] in _LACKS else ""
        work = {"bytes": bytes_, "flops": intensity * bytes_, "dtype": "bfloat16"}
        for name, kind, median, less in (
            ("ours (cuda)", "ours", ours, ""),
            ("ours (triton)", "ours", 1.1 * ours, ""),
            (other, "other", 0.8 * slow * ours, lacks),
            ("eager, without anything else", "other", 4 * slow * ours, ""),
            ("floor: the products", "floor", 0.7 * ours, ""),
        ):
            one = row(op, shape, name, kind, median, less, **work)
            least = max(bytes_ / 1.3e12, intensity * bytes_ / 6e14)
            one["extra_info"]["percent_of_limit"] = 100 * least / median
            rows.append(one)
    device = {"type": "cuda", "name": "A wide GPU", "capability": "9.0", "memory_gib": 80.0}
    ceilings = {"read": 1.3e12, "copy": 1.2e12, "gemm": {"bfloat16": 6e14, "float32": 5e13}}
    machine = {"device": device, "versions": {"python": "3.11", "torch": "2.13"}}
    run = output["run"] | {"ceilings": ceilings, "skipped": []}
    return output | {"benchmarks": rows, "machine_info": machine, "run": run}
