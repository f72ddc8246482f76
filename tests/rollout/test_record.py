import dataclasses

import pytest
import torch

from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.record import LatentRollout
from tests.rollout.models import prompts, settings, tiny_model


@pytest.fixture(scope="module")
def rollout():
    return latent_generate(
        tiny_model("llama"), *prompts(), settings(noise="soft", noise_scale=0.3), seed=2**63 + 5
    )


def tensors(rollout):
    values = ((f.name, getattr(rollout, f.name)) for f in dataclasses.fields(rollout))
    return {name: value for name, value in values if isinstance(value, torch.Tensor)}


def test_state_dict_round_trip(rollout, tmp_path):
    torch.save(rollout.state_dict(), tmp_path / "rollout.pt")
    again = LatentRollout.from_state_dict(torch.load(tmp_path / "rollout.pt", weights_only=True))
    for name, value in tensors(rollout).items():
        assert torch.equal(getattr(again, name), value), name
    assert again.seed == 5 - 2**63  # the same 64 bits
    assert again.embedding_noise == 0.3


def test_state_dict_with_a_missing_entry(rollout):
    state = rollout.state_dict()
    state["extra"] = state.pop("log_probs")
    with pytest.raises(ValueError, match=r"missing \['log_probs'\], unknown \['extra'\]"):
        LatentRollout.from_state_dict(state)


@pytest.mark.parametrize("index", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_select_takes_rows_of_everything(rollout, index):
    part = rollout.select(index)
    assert len(rollout) == 3
    assert len(part) == 2
    for name, value in tensors(rollout).items():
        assert torch.equal(getattr(part, name), value[index]), name
    assert (part.seed, part.embedding_noise) == (rollout.seed, rollout.embedding_noise)


def test_to_moves_every_tensor(rollout):
    moved = rollout.to("meta")
    assert moved.device.type == "meta"
    assert all(value.device.type == "meta" for value in tensors(moved).values())


def test_crop_drops_common_padding_and_late_steps(rollout):
    # Rows 1 and 2 have 4 and 1 prompt tokens of 6; of the 4 latent steps 3 stay.
    part = rollout.select(torch.tensor([1, 2])).crop(3)
    assert part.prompt_ids.tolist() == rollout.prompt_ids[1:, 2:].tolist()
    assert part.completion_ids.shape == (2, 3)
    assert part.latent_ids.shape[1] == 3


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("prompt_mask", lambda t: t.long(), TypeError),
        ("latent_weights", lambda t: t[:, :, 1:], ValueError),
        ("log_probs", lambda t: t[1:], ValueError),
        ("latent_ids", lambda t: torch.cat([t] * 4, dim=1), ValueError),
    ],
)
def test_tensors_that_do_not_fit_are_named(rollout, name, change, error):
    with pytest.raises(error, match=name):
        dataclasses.replace(rollout, **{name: change(getattr(rollout, name))})


def test_cat_pads_the_shorter_parts():
    model = tiny_model("llama")
    # Different numbers of steps, latent steps and kept entries, as parts of a batch may have.
    long = latent_generate(model, *prompts(), settings())
    short = latent_generate(
        model, *prompts(), settings(latent_length=1, max_new_tokens=5, top_k=4, noise="none")
    )
    both = LatentRollout.cat([short, long], pad_token_id=9)
    assert len(both) == 6
    assert both.completion_ids.shape == (6, 14)
    assert both.latent_ids.shape == (6, 4, 12)
    assert (both.completion_ids[:3, 5:] == 9).all()
    assert not both.completion_mask[:3, 5:].any()
    again = both.select(torch.arange(3, 6))
    for name, value in tensors(long).items():
        assert torch.equal(getattr(again, name), value), name
    assert torch.equal(both.latent_weights[:3, :1, :4], short.latent_weights)
    assert not both.latent_weights[:3, 1:].any()
    assert not both.latent_weights[:3, :, 4:].any()


def test_cat_refuses_other_noise(rollout):
    other = dataclasses.replace(rollout, seed=1)
    with pytest.raises(ValueError, match="same P, seed and settings"):
        LatentRollout.cat([rollout, other], pad_token_id=0)
