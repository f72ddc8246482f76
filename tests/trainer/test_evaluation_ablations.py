"""Evaluations with ablated latents: whose latents are whose, whatever the batches are."""

from dataclasses import replace

import pytest
import torch

from lepo_kernels.rollout.ablation import ABLATIONS, ablated, latent_phase
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.continuation import answer_after
from lepo_kernels.rollout.engine import TransformersEngine
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.trainer.evaluation_ablations import derangement, make_ablations
from lepo_kernels.trainer.evaluation_batches import EVALUATION_KEYS, BatchEvaluator, batches_of
from lepo_kernels.trainer.prompts import answer_texts, encode_prompts
from lepo_kernels.trainer.rewards import Rewards
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainer.conftest import digits_reward, problems

CONFIG = LatentGenerationConfig(
    eos_token_ids=(1,), pad_token_id=0, latent_length=3, max_new_tokens=8, top_k=8
)
PROBLEMS, SAMPLES, SEED = 4, 3, 11


def evaluate(model, batch_size, kinds=ABLATIONS):
    tokenizer, rows = tiny_tokenizer(), range(PROBLEMS)
    evaluator = BatchEvaluator(
        TransformersEngine(model),
        model.device,
        tokenizer,
        problems(PROBLEMS),
        Rewards(digits_reward),
        CONFIG,
        SAMPLES,
        SEED,
        make_ablations(model, kinds, CONFIG, tokenizer, rows, seed=SEED),
    )
    batches = batches_of(rows, num_samples=SAMPLES, greedy=True, batch_size=batch_size)
    assert [batch.index for batch in batches] == list(range(len(batches)))
    assert all(len(batch) <= batch_size for batch in batches)
    records = [record for batch in batches for record in evaluator.evaluate(batch)]
    return {(r["greedy"], r["problem"], r["draw"]): r for r in records}


def test_the_batches_change_nothing():
    model = tiny_model()
    one, *others = (evaluate(model, size) for size in (1, 5, 100))
    assert len(one) == PROBLEMS * (1 + SAMPLES)
    for other in others:
        for key, record in one.items():
            assert other[key]["completion"] == record["completion"]
            assert other[key]["ablated"] == record["ablated"]
    for kind in ABLATIONS:  # or this would hold of ablations that do nothing
        assert any(r["ablated"][kind]["completion"] != r["completion"] for r in one.values())


@pytest.mark.parametrize("kind", ABLATIONS)
def test_a_problem_is_given_what_the_ablation_says(kind):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    found = evaluate(model, 100, (kind,))
    dataset, donors = problems(PROBLEMS), derangement(range(PROBLEMS), SEED)
    for greedy in (True, False):
        config = replace(CONFIG, do_sample=not greedy)

        def sample(problem, draw, config=config):
            ids, mask = encode_prompts(tokenizer, [dataset[problem]["prompt"]])
            key = torch.tensor([EVALUATION_KEYS + problem * SAMPLES + draw])
            return latent_generate(model, ids, mask, config, seed=SEED, row_keys=key)

        for problem in range(PROBLEMS):
            for draw in range(1 if greedy else SAMPLES):
                plain, other = sample(problem, draw), sample(donors[problem], draw)
                phase = ablated(
                    model,
                    kind,
                    latent_phase(model, plain),
                    donors=latent_phase(model, other),
                    blank_id=tokenizer.convert_tokens_to_ids(" "),
                )
                after = answer_after(model, plain, phase, config)
                record = found[greedy, problem, draw]["ablated"][kind]
                (text,) = answer_texts(tokenizer, after)
                assert record["completion"] == text
                assert record["reward"] == pytest.approx(digits_reward([text])[0])
                assert record["length"] == int(after.completion_mask.sum())


@pytest.mark.parametrize("count", [2, 3, 10])
def test_nobody_is_given_what_is_theirs(count):
    rows = range(100, 100 + count)
    orders = [derangement(rows, seed) for seed in range(20)]
    for partners in orders:
        assert sorted(partners) == sorted(partners.values()) == list(rows)
        assert all(problem != partner for problem, partner in partners.items())
    assert orders == [derangement(rows, seed) for seed in range(20)]
    assert count == 2 or len({tuple(sorted(partners.items())) for partners in orders}) > 1
