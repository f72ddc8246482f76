import pytest

from lepo_kernels.trainer.sampler import GroupSampler


def test_each_rollout_is_repeated_and_no_prompt_comes_twice():
    # 10 rows, 3 prompts per rollout: three rollouts, one row left out.
    batches = list(GroupSampler(10, 3, repeats=2, num_processes=1, seed=1))
    assert len(batches) == len(GroupSampler(10, 3, 2, 1, 1)) == 6
    assert batches[0] == batches[1]
    seen = batches[0] + batches[2] + batches[4]
    assert len(set(seen)) == 9


def test_processes_take_turns_with_different_prompts():
    batches = list(GroupSampler(8, 2, repeats=3, num_processes=2, seed=1))
    first, second = batches[0::2], batches[1::2]
    assert first[0] == first[1] == first[2]
    assert not set(first[0]) & set(second[0])


def test_epochs_shuffle_differently_and_reproducibly():
    sampler = GroupSampler(32, 4, 1, 1, seed=5)
    zero = list(sampler)
    sampler.set_epoch(1)
    one = list(sampler)
    assert zero != one
    sampler.set_epoch(0)
    assert list(sampler) == zero


def test_too_small_a_dataset_is_refused():
    with pytest.raises(ValueError, match="takes 6 prompts, the dataset has 5"):
        GroupSampler(5, 3, 1, 2, 0)
