"""An answer that makes math-verify hang or crash costs seconds and one reward, on any thread."""

import logging
import os
import threading

import pytest

from lepo_kernels.tasks import answer_checker as module
from lepo_kernels.tasks import load_task
from lepo_kernels.tasks.answer_checker import AnswerChecker

# Stands for math-verify: does what the completion asks for.
STUB = """
import os, time
print("imported")
def parse(text, parsing_timeout):
    assert parsing_timeout == 5
    return text
def verify(gold, given, timeout_seconds):
    print("noise that is no answer")
    if given == "sleep": time.sleep(600)
    if given == "arithmetic": pow(7, 10**9)  # holds the interpreter, and no alarm ends it
    if given == "crash": os._exit(3)
    if given == "recursion": raise RecursionError
    if given == "process": return str(os.getpid()) == gold[7:-1]
    return gold == rf"\\boxed{{{given}}}"
"""


SETUP = {"checker": "math_verify", "soft_seconds": 5}


@pytest.fixture
def checker(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text(STUB)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = AnswerChecker(SETUP, hard_seconds=0.5)
    yield made
    made.close()


@pytest.mark.parametrize("completion", ["sleep", "arithmetic", "crash"])
@pytest.mark.parametrize("in_main", [True, False])
def test_an_answer_that_takes_too_long_counts_as_wrong(checker, completion, in_main, caplog):
    found = []

    def work():
        found.extend(checker.ask("1", text) for text in ("1", completion, "1", "2"))

    if in_main:
        work()
    else:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [True, None, True, False]
    (record,) = caplog.records
    assert repr(completion) in record.getMessage()
    assert record.levelno == logging.WARNING


def test_what_math_verify_raises_is_a_wrong_answer(checker):
    assert [checker.ask("1", text) for text in ("recursion", "1")] == [0, True]


def test_any_text_can_be_asked(checker):
    text = 'line\nline "\udc80\u2028\x00é'
    assert checker.ask(text, text)


def test_the_process_is_kept_and_ended(checker):
    checker.ask("1", "1")
    process = checker._process
    assert checker.ask(str(process.pid), "process")
    checker.close()
    assert process.poll() is not None
    assert checker.ask("1", "1")
    assert not checker.ask(str(process.pid), "process")


def test_an_interrupt_leaves_no_stale_reply(checker, monkeypatch):
    checker.ask("1", "1")
    plain = module._ask

    def interrupted(process, question):
        process.stdin.write('["1", "1"]\n')
        process.stdin.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checker.ask("1", "1")
    monkeypatch.setattr(module, "_ask", plain)
    assert not checker.ask("1", "2")


def test_a_package_that_cannot_be_imported_is_told_of(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("import no_such_module_at_all")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"math_verify: cannot be used: .*no_such_module"):
        AnswerChecker(SETUP).ask("1", "1")


# Python 3.12 warns of a fork beside threads, which other tests may have left.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_has_a_verifier_of_its_own(checker):
    checker.ask("1", "1")
    parents = checker._process.pid
    child = os.fork()
    if child == 0:
        shared = True
        try:
            shared = checker.ask(str(parents), "process")
            checker.close()
        finally:
            os._exit(int(shared))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert checker.ask(str(parents), "process")


def test_towers_of_powers_are_bounded_with_the_real_package():
    pytest.importorskip("math_verify")
    real = AnswerChecker({**SETUP, "soft_seconds": 1}, hard_seconds=3)
    assert not real.ask("72", r"\boxed{9^{9^{9^{9}}}}")
    assert real.ask(r"\frac12", "it is 0.5")
    real.close()


def test_a_generators_own_score_is_bounded_likewise(tmp_path, monkeypatch):
    task = load_task(
        "reasoning_gym:simple_integration", train_size=1, eval_size=1, reward="score_answer"
    )
    (reward,) = task.reward_funcs
    problem = task.eval_dataset[0]["problem_index"]
    right = task.eval_dataset[0]["answer"]
    # sympy reads the answer: no expression, one too deep to parse, more digits than it takes.
    answers = [right, "1 +* 2", "(" * 5000, "7" * 5000]
    scores = reward(answers, problem_index=[problem] * 4)
    assert scores[0] == 1.0
    assert all(0.0 <= score < 0.1 for score in scores[1:])


def test_a_forgotten_checker_ends_its_process(checker):
    forgotten = AnswerChecker(SETUP, hard_seconds=5)
    forgotten.ask("1", "1")
    process = forgotten._process
    del forgotten
    assert process.poll() is not None
