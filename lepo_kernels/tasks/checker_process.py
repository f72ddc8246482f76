"""The program of the process behind `tasks.answer_checker`; it imports nothing of ours.

It reads a line of JSON (the module path, the time limit, and what to check with), and answers
``"ready"`` or why it cannot; then questions, each of which it answers with a line.
"""

import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

Check = Callable[..., Any]


def math_verify(soft_seconds: int | None) -> Check:
    """Whether two texts state the same answer.

    Args:
        soft_seconds: after so long math-verify gives up one of its steps (two texts to read, one to
            compare); None for no such limit.
    """
    from math_verify import parse, verify

    def check(right: str, completion: str) -> bool:
        gold = parse(rf"\boxed{{{right}}}", parsing_timeout=soft_seconds)
        given = parse(completion, parsing_timeout=soft_seconds)
        return bool(verify(gold, given, timeout_seconds=soft_seconds))

    return check


def reasoning_gym(generator: str, size: int, seed: int, params: dict[str, Any]) -> Check:
    """The score that a generator gives an answer to one of its problems."""
    from reasoning_gym import create_dataset

    source = create_dataset(generator, size=size, seed=seed, **params)

    def check(problem: int, answer: str) -> float:
        return float(source.score_answer(answer, source[problem]))

    return check


CHECKERS: dict[str, Callable[..., Check]] = {
    "math_verify": math_verify,
    "reasoning_gym": reasoning_gym,
}


def main() -> None:
    """Answer until there are no more questions."""
    # Ctrl-C is for who asks; it closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    questions, answers = sys.stdin, sys.stdout
    # What the packages print must not mix with the answers.
    sys.stdout = sys.stderr

    def reply(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    path, hard_seconds, setup = json.loads(questions.readline())
    sys.path[:] = path
    try:
        check = CHECKERS[setup.pop("checker")](**setup)
    except Exception as error:
        reply(repr(error))
        return
    reply("ready")
    with open(os.devnull, "w") as nowhere:
        for line in questions:
            # Ends the process from outside of the interpreter, which a long operation holds.
            faulthandler.dump_traceback_later(hard_seconds, exit=True, file=nowhere)
            try:
                found = check(*json.loads(line))
            # A wrong answer may be any text: too deep to parse, too long a number, no number.
            except Exception:
                found = 0
            faulthandler.cancel_dump_traceback_later()
            reply(found)


if __name__ == "__main__":
    main()
