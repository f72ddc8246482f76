"""CUDA graphs: a captured call, replayed with other seeds and steps in the same tensors."""

import pytest
import torch

from tests.gpu.calls import assert_agree, calls_of, cuda_ops, needs


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


@needs("lepo_loss")
def test_a_replay_of_the_loss_takes_the_rows_that_are_used_then(device):
    names = ("hidden", "advantages", "ref_log_probs")
    hidden_at, advantages_at, ref_at = (position("lepo_loss", name) for name in names)
    for case in calls_of("lepo_loss", device):
        arguments = list(case.arguments)
        arguments[ref_at] = None
        # No KL to the reference, so that a row without advantage is left out: here all of them.
        arguments[position("lepo_loss", "beta")] = 0.0
        plain = arguments[hidden_at]
        arguments[hidden_at] = plain.clone()
        arguments[advantages_at] = torch.zeros_like(arguments[advantages_at])
        case = case._replace(arguments=tuple(arguments))
        outputs, replay = recorded(lambda case=case: case.run("cuda"), device)
        for row in range(len(plain) - 1):
            arguments[advantages_at].zero_()[row] = 1.0
            # What a row that is left out holds does not matter.
            arguments[hidden_at].fill_(torch.nan)[row] = plain[row]
            replay()
            assert outputs[0] != 0, case.name
            for a, b in zip(outputs, case.run("cuda"), strict=True):
                assert_agree(case, a, b)


def test_seeds_and_steps_are_found():
    assert position("sample_latent", "seed") is not None
    assert position("sample_latent", "step") is not None
    assert position("mix_embeddings", "seed") is None
