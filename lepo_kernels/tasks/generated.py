"""Tasks of the package ``reasoning-gym``, whose generators make as many problems as one wants."""

import json
import random
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from lepo_kernels import extras
from lepo_kernels.suggest import did_you_mean
from lepo_kernels.tasks.answer_checker import AnswerChecker
from lepo_kernels.tasks.rewards import completion_text, exact_answer, extract_answer
from lepo_kernels.tasks.task import (
    Problem,
    Reward,
    Task,
    TaskError,
    as_dataset,
    chat_prompt,
    question_of,
)

FAMILY = "reasoning_gym"
SYSTEM_PROMPT = "Answer with the number only."
REWARDS = ("exact_answer", "score_answer")

# A generator is given up after this many draws for each problem wanted.
_DRAWS_PER_PROBLEM = 20
_SPARE_DRAWS = 1000


def load(
    generator: str,
    *,
    train_size: int | None,
    eval_size: int | None,
    seed: int,
    system_prompt: str | None = SYSTEM_PROMPT,
    reward: str = "exact_answer",
    **params: Any,
) -> Task:
    """Problems of one generator.

    The held-out problems are drawn first, each another question. The training problems follow,
    as the generator makes them (a small generator repeats itself), without any held-out question.

    Args:
        generator: a generator's name, such as ``chain_sum``.
        train_size: number of training problems; None means 1000.
        eval_size: number of held-out problems; None means 100.
        seed: draws the problems.
        system_prompt: the chat's first turn; None or empty for none.
        reward: ``exact_answer``, or ``score_answer``: the generator's own score, in [0, 1], of the
            extracted answer, for problems with several right answers or partial credit.
        params: passed to the generator.

    Raises:
        TaskError: an unknown generator or parameter, a value the generator refuses, or a
            generator that has too few distinct problems.
    """
    train_size = 1000 if train_size is None else train_size
    eval_size = 100 if eval_size is None else eval_size
    if reward not in REWARDS:
        raise TaskError(f"{FAMILY}: unknown reward {reward!r}; {did_you_mean(reward, REWARDS)}")
    draws = _DRAWS_PER_PROBLEM * (train_size + eval_size) + _SPARE_DRAWS
    # Problem i comes from seed + i, so neighbouring seeds would share nearly all problems.
    spread = random.Random(seed).getrandbits(31)
    source = _create(generator, draws, spread, params)
    problems = _problems(source, draws, system_prompt, reward)
    held_out = _draw(problems, eval_size, generator, taken=set(), repeat=False)
    asked = {question_of(problem) for problem in held_out}
    train = _draw(problems, train_size, generator, taken=asked, repeat=True)
    reward_func: Reward = exact_answer
    if reward == "score_answer":
        reward_func = _score_by(generator, draws, spread, params)
    return Task(
        f"{FAMILY}:{generator}",
        as_dataset(train) if train else None,
        as_dataset(held_out),
        [reward_func],
    )


def _create(generator: str, size: int, seed: int, params: dict[str, Any]) -> Any:
    """The generator's dataset, after a check of every name."""
    if not extras.is_here("reasoning_gym"):
        raise TaskError(
            "this task needs the package reasoning-gym, which is not installed; run: "
            "pip install 'lepo_kernels[demo]'"
        )
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if generator not in DATASETS:
        raise TaskError(
            f"{FAMILY} has no generator {generator!r}; {did_you_mean(generator, DATASETS)}"
        )
    known = {field.name for field in fields(DATASETS[generator][1])} - {"seed", "size"}
    for name in params:
        if name not in known:
            choices = known | {"system_prompt", "reward"}
            raise TaskError(
                f"{FAMILY}:{generator} has no parameter {name!r}; {did_you_mean(name, choices)}"
            )
    try:
        return reasoning_gym.create_dataset(generator, size=size, seed=seed, **params)
    except (AssertionError, TypeError, ValueError) as error:
        raise TaskError(f"{FAMILY}:{generator} refuses {params}: {error}") from error


def _problems(source: Any, draws: int, system_prompt: str | None, reward: str) -> Iterator[Problem]:
    for index in range(draws):
        entry = source[index]
        if entry["answer"] is None and reward == "exact_answer":
            raise TaskError(
                "this generator has no single right answer; set the task's parameter reward to "
                "'score_answer'"
            )
        yield {
            "prompt": chat_prompt(entry["question"], system_prompt),
            "answer": str(entry["answer"]),
            "problem_index": index,
        }


def _draw(
    problems: Iterator[Problem], size: int, generator: str, taken: set[str], repeat: bool
) -> list[Problem]:
    """The next ``size`` problems whose question is not taken, nor drawn before unless repeated."""
    drawn: list[Problem] = []
    taken = set(taken)
    while len(drawn) < size:
        problem = next(problems, None)
        if problem is None:
            raise TaskError(
                f"{FAMILY}:{generator} with these parameters makes too few distinct problems: "
                f"{size} wanted, {len(drawn)} found"
            )
        question = question_of(problem)
        if question in taken:
            continue
        if not repeat:
            taken.add(question)
        drawn.append(problem)
    return drawn


def _score_by(generator: str, size: int, seed: int, params: dict[str, Any]) -> Reward:
    """A reward that asks the generator to score the extracted answer.

    In a process of its own: scoring runs code on what the model wrote. An answer over which it
    raises, crashes or takes too long scores 0.
    """
    setup = {"generator": generator, "size": size, "seed": seed, "params": params}
    try:
        json.dumps(setup)
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"{FAMILY}:{generator}: score_answer needs parameters that JSON knows: {error}"
        ) from error
    checker = AnswerChecker({"checker": "reasoning_gym", **setup})

    def score_answer(
        completions: list[Any], problem_index: list[int], **_: Any
    ) -> list[float | None]:
        return [
            float(checker.ask(index, extract_answer(completion_text(completion))) or 0.0)
            for completion, index in zip(completions, problem_index, strict=True)
        ]

    return score_answer
