"""Runs inside the wheel: imports it, draws known words on each CPU backend, says what it is."""

import json
import sys
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch without numpy warns
    import torch

import lepo_kernels
from lepo_kernels import dispatch, native

# From the test vectors published with Random123: the digits of pi as counter and key.
WORDS = [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def check_words(backend: str) -> None:
    """The published words, by the public op."""
    words = lepo_kernels.philox_words(
        0x299F31D0A4093822,
        torch.tensor([0x0370734413198A2E]),
        0x85A308D3,
        4 * 0x3F6A88 + torch.arange(4),
        draw=0x24,
        backend=backend,
    )
    if words.tolist() != [WORDS]:
        raise SystemExit(f"wrong random words on backend {backend}: {words.tolist()}")


def check_registration() -> None:
    """Every CUDA op has its kernel, which a torch without CUDA can see, too."""
    for name in torch._C._dispatch_get_all_op_names():
        space, _, op = name.partition("::")
        if space != "lepo_kernels_cuda" or op == "build_info":
            continue
        if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"):
            raise SystemExit(f"{name} has no kernel")


for backend in ("cpu", "reference"):
    if backend not in dispatch.MISSING:
        check_words(backend)
check_registration()
if torch.cuda.is_initialized():
    raise SystemExit("importing lepo_kernels initialises CUDA")

print(
    json.dumps(
        {
            "files": [
                str(module.__file__)
                for name, module in sys.modules.items()
                if name.partition(".")[0] == lepo_kernels.__name__
            ],
            "libraries": lepo_kernels.info()["libraries"],
            "why_not": {f"_C_{name}": dispatch.MISSING.get(name) for name in ("cpu", "cuda")},
            "instruction_sets": native.CAPABILITIES[
                : native.CAPABILITIES.index(native.best_cpu_capability()) + 1
            ]
            if native.is_loaded("cpu")
            else [],
        }
    )
)
