"""What is going on within a step is told while it goes on, and changes nothing."""

import pytest
import torch


def record(trainer):
    told = []
    trainer.activity = lambda what, done, total: told.append((what, done, total))
    return told


# At once, and in two parts of a group each, whose steps count as steps of the whole.
@pytest.mark.parametrize(("rollout_batch_size", "parts"), [(None, 1), (4, 2)])
def test_a_step_is_told_as_it_goes(make_trainer, rollout_batch_size, parts):
    trainer = make_trainer(max_steps=1, rollout_batch_size=rollout_batch_size)
    told = record(trainer)
    trainer.train()
    rollout = [(done, total) for what, done, total in told if what == "rollout"]
    assert {total for _, total in rollout} == {6 * parts}
    done = [done for done, _ in rollout]
    assert done == sorted(set(done))
    assert done[0] == 1
    assert done[-1] <= 6 * parts
    assert [what for what, *_ in told if what != "rollout"] == ["rewards", "log-probs", "training"]


def test_an_evaluation_tells_its_steps(make_trainer):
    trainer = make_trainer(eval_rows=3, eval_num_samples=2, per_device_eval_batch_size=2)
    told = record(trainer)
    trainer.evaluate()
    assert {what for what, *_ in told} == {"evaluation"}
    # Greedy completions of 3 problems, two at once, and 2 samples of each: five batches.
    assert sum(done == 1 for _, done, _ in told) == 5


def test_listening_changes_no_bit(make_trainer):
    weights = []
    for listening in (False, True):
        trainer = make_trainer()
        if listening:
            record(trainer)
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
