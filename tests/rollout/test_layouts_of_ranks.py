"""Two processes that share prompts: DDP's and FSDP2's gradients, and ranks that differ."""

import pytest

from tests.torchrun import run_processes

RANKS = """
import copy

import torch
from accelerate.state import PartialState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lepo_kernels.rollout import shared_prompts
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.policy_loss import policy_loss
from tests.rollout.models import prompts, settings, tiny_model

rank = PartialState(cpu=True).process_index
torch.set_num_threads(1)
shared_prompts._PASS = 0  # at these sizes a pass costs more than all of its tokens
model = tiny_model("llama")


def wrapped(kind):
    trained = copy.deepcopy(model).train()
    if kind == "ddp":
        return DistributedDataParallel(trained)
    mesh = init_device_mesh("cpu", (2,))
    for layer in trained.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(trained, mesh=mesh)


def layout_and_gradients(kind, rollout, share_prompts):
    trained = wrapped(kind)
    mask = rollout.action_mask
    count = int(mask.sum())
    advantages = torch.linspace(-1, 2, count) * (rank + 1)
    weights = torch.full((count,), 1 / count)
    result = policy_loss(
        trained, rollout, mask, advantages, weights, share_prompts=share_prompts, packing=False
    )
    result.loss.backward()
    found = [p.grad for p in trained.parameters()]
    return result.layout, [g.full_tensor() if hasattr(g, "full_tensor") else g for g in found]


def check(kind, samples, expected):
    rollout = latent_generate(
        model, *prompts(), settings(), num_return_sequences=samples, seed=4 + rank
    )
    _, plain = layout_and_gradients(kind, rollout, False)
    layout, shared = layout_and_gradients(kind, rollout, True)
    assert layout == expected, (rank, kind, layout)
    for ours, theirs in zip(shared, plain, strict=True):
        # float32: a hundred roundings, amplified tenfold.
        close = 1000 * torch.finfo(torch.float32).eps * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, atol=close, rtol=0)


for kind in ("ddp", "fsdp2"):
    check(kind, 4, "shared")
# One rank has nothing to share: with whole weights each does as it likes, with sharded ones none.
check("ddp", 4 if rank == 0 else 1, "shared" if rank == 0 else "plain")
check("fsdp2", 4 if rank == 0 else 1, "plain")
"""


@pytest.mark.slow
def test_ranks_share_prompts(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    run_processes(script, timeout=120)
