"""CUDA graphs: a captured call, replayed with other seeds and steps in the same tensors."""

import pytest
import torch

from tests.gpu.calls import assert_agree, calls_of, cuda_ops


def position(op, name):
    """Where the torch op takes this argument; None if it does not."""
    arguments = getattr(torch.ops.lepo_kernels, op).default._schema.arguments
    return next((i for i, argument in enumerate(arguments) if argument.name == name), None)


def recorded(call, device):
    """The outputs of a call, and what runs it once more into the same memory."""
    if device.type == "cpu":
        outputs = call()

        def again():
            for old, new in zip(outputs, call(), strict=True):
                old.copy_(new)

        return outputs, again
    # Warm up on a stream of its own, as torch asks for.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return outputs, graph.replay


@pytest.mark.parametrize("op", cuda_ops())
def test_a_replay_sees_what_its_tensors_hold_then(op, device):
    for case in calls_of(op, device):
        outputs, replay = recorded(lambda case=case: case.run("cuda"), device)
        for number in (101, 102):
            for name in ("seed", "step"):
                if (i := position(op, name)) is not None:
                    case.arguments[i].fill_(number)
            replay()
            for a, b in zip(outputs, case.run("cuda"), strict=True):
                assert_agree(case, a, b)


def test_seeds_and_steps_are_found():
    assert position("sample_latent", "seed") is not None
    assert position("sample_latent", "step") is not None
    assert position("mix_embeddings", "seed") is None
