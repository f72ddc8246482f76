"""The adapters of peers call them as they are to be called, and say why they cannot."""

import inspect
import sys
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from benchmarks import peers
from benchmarks.case import Case
from benchmarks.cases import linear_log_probs
from benchmarks.peers import cut_cross_entropy, flashinfer, liger, trl

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def linear(e, c, targets, softcap=None, **_):
    """The others' losses, by definition; parameters are named as cut-cross-entropy names them."""
    logits = e @ c.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets)


def liger_loss(input, weight, target, bias=None, ce_weight=None, *, softcap=None):
    assert bias is None
    return linear(input, weight, target, softcap)


class Scaled:
    @staticmethod
    def apply(_input, weight, target, temperature=1.0):
        return F.cross_entropy(_input @ weight.T, target, reduction="none")


def selective(logits, index, temperature=1.0):
    # Of sequences, with one id per token or with several.
    assert logits.ndim == 3
    one = index.shape == logits.shape[:-1]
    found = logits.log_softmax(-1).gather(-1, index[..., None] if one else index)
    return found[..., 0] if one else found


def sampled(logits, top_k, top_p, indices=None, filter_apply_order="top_k_first"):
    return logits.argmax(-1).int()


STAND_INS = {
    cut_cross_entropy.PEER: ("cut_cross_entropy", "linear_cross_entropy", linear),
    liger.FUSED_LINEAR_CROSS_ENTROPY: (
        "liger_kernel.transformers.functional",
        "liger_fused_linear_cross_entropy",
        liger_loss,
    ),
    liger.FUSED_LINEAR_SCALED_CROSS_ENTROPY: (
        "liger_kernel.ops",
        "LigerFusedLinearScaledCrossEntropyFunction",
        Scaled,
    ),
    trl.PEER: ("trl.trainer.utils", "selective_log_softmax", selective),
    flashinfer.PEER: (
        "flashinfer.sampling",
        "top_k_top_p_sampling_from_logits",
        sampled,
    ),
}


@pytest.fixture
def stand_ins(monkeypatch):
    """Modules in the peers' places, with functions of the same names and parameters."""
    for path, name, function in STAND_INS.values():
        parts = path.split(".")
        for i in range(len(parts)):
            module = ModuleType(".".join(parts[: i + 1]))
            module.__path__ = []
            monkeypatch.setitem(sys.modules, module.__name__, module)
        setattr(sys.modules[path], name, function)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_losses_are_the_mean_cross_entropy(stand_ins, softcap):
    case = linear_log_probs.case(8, 5, 23, 3, torch.float32, softcap=softcap)
    inputs = case.make(CPU)
    for peer in peers.LOSSES:
        if peer.package != "torch" and (softcap is None or peer.softcap):
            linear_log_probs.check_hard(inputs, linear_log_probs.peer_run(peer, inputs))


def test_other_peers_give_what_their_rows_are_checked_for(stand_ins):
    def row(case: Case, name: str):
        return next(one for one in case.implementations if one.name == name)

    from benchmarks.cases import gather_log_probs, latent_step

    for case, peer in (
        # Two tokens in each of eight sequences, and one sequence.
        (gather_log_probs.case(16, 23, 3, torch.float32), trl.PEER),
        (gather_log_probs.case(16, 23, 3, torch.float32), trl.HARD),
        (gather_log_probs.case(3, 23, 3, torch.float32), trl.HARD),
        (latent_step.case(3, 100, 5, torch.float32), flashinfer.PEER),
    ):
        one, inputs = row(case, peer.name), case.make(CPU)
        one.check(inputs, one.run(inputs))


def test_a_peer_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    scaled, half = liger.FUSED_LINEAR_SCALED_CROSS_ENTROPY, torch.bfloat16
    assert scaled.why_not(GPU, half) == "liger-kernel is not installed"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert scaled.why_not(CPU, half) == "liger-kernel runs on cuda alone"
    assert scaled.why_not(GPU, torch.float32) == "it takes bfloat16 alone"
    assert scaled.why_not(GPU, half, 30.0) == "it takes no softcap"
    assert scaled.why_not(GPU, half) is None
    assert liger.FUSED_LINEAR_CROSS_ENTROPY.why_not(GPU, half, 30.0) is None
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    assert peers.LOSSES[0].why_not(CPU, half) == (
        "this torch has no torch.nn.functional.linear_cross_entropy"
    )


@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_every_peer_states_what_it_computes_and_lacks(peer):
    assert peer.computes
    assert peer.lacks
    # The adapter itself imports nothing: that its library is missing is no error.
    assert inspect.getmodule(peer.function).__name__.startswith("benchmarks.peers.")
