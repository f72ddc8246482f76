"""Steps of fixed size can be captured: the same operations on the same memory, without a wait."""

import functools
import itertools

import pytest
import torch

from lepo_kernels.rollout import compiled_steps, static_decoder
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.static_steps import StaticSteps
from tests.rollout.models import prompts, settings, tiny_model
from tests.rollout.op_log import OpLog

# A row can end in each phase; of the settings, those that put more work into a step.
CASES = {
    "plain": {},
    "ends": {"latent_eos": "stop", "eos_token_ids": (2, 3)},
    "cold stop": {"latent_length": 6, "cold_stop_entropy": 4.2, "cold_stop_steps": 3},
    "soft noise": {"noise": "soft"},
    "gaussian": {"noise": "gaussian"},
}


@pytest.fixture
def logs(monkeypatch):
    """The log of every step after the first, in the order of the steps."""
    made = []
    plain = StaticSteps.advance

    def advance(self, base, phase):
        log = OpLog()
        with log:
            plain(self, base, phase)
        made.append((phase, log))

    monkeypatch.setattr(StaticSteps, "advance", advance)
    # Far apart, so that no row's end is looked for.
    monkeypatch.setattr(static_decoder, "steps_between_looks", lambda device: 1000)
    return made


@pytest.mark.parametrize("family", ["llama", "gemma3"])  # full, and sliding windows
@pytest.mark.parametrize("case", CASES)
def test_steps_of_a_phase_are_alike(logs, family, case):
    config = settings(cache_implementation="static", **CASES[case])
    latent_generate(tiny_model(family), *prompts(), config, seed=4)
    phases = {phase for phase, _ in logs}
    assert len(phases) == (3 if case == "cold stop" else 2)
    for phase in phases:
        first, *others = [log.ops for of, log in logs if of is phase]
        assert len(others) > 0
        for other in others:
            assert other == first
    assert not [wait for _, log in logs for wait in log.waits]


def test_rollouts_of_a_size_are_alike(logs, monkeypatch):
    """Other prompts, row keys and seeds are other values in the same memory."""
    monkeypatch.setattr(compiled_steps, "compile_step", lambda step: step)
    model, (ids, mask) = tiny_model("llama"), prompts()
    config = settings(compile_rollout=True)
    latent_generate(model, ids, mask, config)
    first = list(logs)
    logs.clear()
    # A narrower prompt and fewer rows, which are rounded up alike.
    keys = torch.tensor([5, -(2**40), 9])
    latent_generate(model, ids[:, 2:].flip(0), mask[:, 2:], config, seed=2**64 - 3, row_keys=keys)
    assert [log.ops for _, log in logs] == [log.ops for _, log in first]


def test_the_log_can_tell_steps_apart():
    x = torch.arange(4.0)

    def logged(step):
        log = OpLog()
        with log:
            step()
        return log

    assert logged(lambda: x + 1).ops == logged(lambda: x + 1).ops
    assert logged(lambda: x + 1).ops != logged(lambda: x + 2).ops
    assert logged(lambda: x + 1).ops != logged(lambda: x.clone() + 1).ops
    assert logged(lambda: x[:2]).ops != logged(lambda: x[1:3]).ops
    assert logged(lambda: bool(x[0])).waits
    assert logged(lambda: x[x > 1]).waits
    assert logged(lambda: x[1:]).count == 0


# What a step issues beside the model, views left aside. Dynamic: the draw, its log-probability (5
# of a mixture, 3 of a token), the token's embedding, its end (2), the next positions, and 2 of a
# look at the rows. Static: no look; 4 writes of the record, 3 more of a mixture, and 3 of state.
@pytest.mark.parametrize(("cache", "latent", "token"), [("dynamic", 7, 11), ("static", 16, 17)])
def test_a_step_issues_few_operations(cache, latent, token, monkeypatch):
    model, (ids, _) = tiny_model("llama"), prompts()
    log, inside, marks = OpLog(), [0], []
    plain = type(model).forward

    @functools.wraps(plain)
    def forward(self, *args, **kwargs):
        before = log.count
        result = plain(self, *args, **kwargs)
        inside[0] += log.count - before
        return result

    monkeypatch.setattr(type(model), "forward", forward)
    config = settings(cache_implementation=cache, latent_suffix_ids=())
    with log:
        latent_generate(
            model,
            ids,
            torch.ones_like(ids),
            config,
            progress=lambda *_: marks.append(log.count - inside[0]),
        )
    each = [after - before for before, after in itertools.pairwise(marks)]
    assert each[1] <= latent
    assert each[6] <= token
