"""``lepo eval``: several tasks and lengths, ablations, a kill and a resume, several processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lepo_kernels.cli.eval_parts import weights_digest
from lepo_kernels.cli.main import main
from lepo_kernels.rollout.ablation import ABLATIONS
from lepo_kernels.trainer.evaluation_batches import Batch, BatchEvaluator
from tests.cli.conftest import SETTINGS
from tests.torchrun import ROOT, environment, run_processes

# What may differ between two calls that take the same samples.
CIRCUMSTANCES = ("seconds", "peak_memory_bytes")
# `lepo eval` with one thread, as bits are compared; killed in its Nth batch, if N is not 0.
SCRIPT = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from lepo_kernels.cli.main import main
from lepo_kernels.trainer.evaluation_batches import BatchEvaluator
left, evaluate = int(sys.argv[1]), BatchEvaluator.evaluate
def evaluate_until_killed(self, batch):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(self, batch)
BatchEvaluator.evaluate = evaluate_until_killed
status = main(["eval", *sys.argv[2:]])
if status:
    sys.exit(status)
"""


@pytest.fixture
def evaluate(tmp_path: Path, model_folder: str) -> Any:
    """Run ``lepo eval`` on four problems, with one thread; its JSON."""
    file = tmp_path / "eval.yaml"
    names = ("max_steps", "train_size", "save_strategy", "num_generations", "learning_rate")
    settings = {name: value for name, value in SETTINGS.items() if name not in names}
    del settings["per_device_train_batch_size"]
    file.write_text(yaml.safe_dump({**settings, "model": model_folder}))

    def run(*words: str, output: str = "eval.json", status: int = 0) -> dict[str, Any]:
        path = tmp_path / output
        assert main(["eval", str(file), "--output", str(path), *words]) == status
        return json.loads(path.read_text()) if status == 0 else {}

    run.file = file  # type: ignore[attr-defined]
    return run


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def evaluations(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What must be the same whenever the samples are."""
    return [
        {name: value for name, value in evaluation.items() if name not in CIRCUMSTANCES}
        for evaluation in found["evaluations"]
    ]


def test_several_tasks_lengths_and_ablations_in_one_call(
    evaluate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(f'{{"problem": "1 + {i}?", "answer": "2"}}\n' for i in range(4)))
    params = {"file": {"path": str(problems), "reward": "exact_answer"}}
    words = ["--tasks", f"{SETTINGS['task']},file", "--tasks_params", json.dumps(params)]
    words += ["--latent_lengths", "0", "2", "3", "--ablate", ",".join(ABLATIONS)]
    found = evaluate(*words)
    parts = found["evaluations"]
    assert [(part["task"], part["latent_length"]) for part in parts] == [
        (task, length) for task in (SETTINGS["task"], "file") for length in (0, 2, 3)
    ]
    assert [part["problems"] for part in parts] == [4] * 6
    for part in parts:
        assert len(part["completions"]) == part["problems"] * (1 + 2)
        for name, value in part["metrics"].items():
            low, high = part["intervals"][name]
            assert low - 1e-9 <= value <= high + 1e-9
        assert part["spread"]["length"]["quantiles"]["1"] <= 5
        assert (part["seconds"] > 0, part["peak_memory_bytes"] > 0) == (True, True)
        expected = set(ABLATIONS) if part["latent_length"] else set()
        assert part["ablations"].keys() == expected
        for record in part["completions"]:
            assert record.get("ablated", {}).keys() == expected
            assert len(record["latent"]) == part["latent_length"]
    shown = capsys.readouterr().out
    assert "shuffle" in shown
    table = (tmp_path / "eval.md").read_text()
    assert "| greedy_accuracy |" in table
    assert "| last_only |" in table
    assert (tmp_path / "eval.png").stat().st_size > 10_000
    assert not (tmp_path / "eval.samples").exists()


class BrokenOffError(Exception):
    pass


def break_off(monkeypatch: pytest.MonkeyPatch, after: int) -> list[Batch]:
    """Let an evaluation fail after some batches; the batches that it decodes."""
    plain, seen = BatchEvaluator.evaluate, []

    def evaluate(self: BatchEvaluator, batch: Batch) -> Any:
        if len(seen) == after:
            raise BrokenOffError
        seen.append(batch)
        return plain(self, batch)

    monkeypatch.setattr(BatchEvaluator, "evaluate", evaluate)
    return seen


WORDS = ("--per_device_eval_batch_size", "2", "--latent_lengths", "1,2", "--ablate", "shuffle")
# Four problems, in batches of two: two greedy ones and four of samples, for each length.
BATCHES = 12


@pytest.mark.parametrize("done", [1, 8])  # within the first length, and within the second
def test_what_was_finished_is_not_done_again(
    done: int, evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluations(evaluate(*WORDS, output="whole.json"))
    with monkeypatch.context() as patch:
        break_off(patch, done)
        with pytest.raises(BrokenOffError):
            evaluate(*WORDS)
    lines = tmp_path / "eval.samples" / "process-0.jsonl"
    content = lines.read_bytes()
    assert content.count(b"\n") == done
    # A kill in the middle of a line, on top of one that something else damaged.
    lines.write_bytes(content + b'{"evaluation": "x"}\n' + content[:100])
    with monkeypatch.context() as patch:  # what is added now stands on lines of its own
        break_off(patch, 2)
        with pytest.raises(BrokenOffError):
            evaluate(*WORDS)
    with monkeypatch.context() as patch:
        seen = break_off(patch, BATCHES)
        resumed = evaluate(*WORDS)
    assert len(seen) == BATCHES - done - 2
    assert evaluations(resumed) == whole
    assert not lines.parent.exists()


def test_samples_of_other_settings_are_refused_by_name(
    evaluate: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        break_off(patch, 3)
        with pytest.raises(BrokenOffError):
            evaluate(*WORDS)
    for changed, name in (
        (["--temperature", "0.7"], "temperature (1.0 there, 0.7 here)"),
        (["--task_seed", "5"], "data ("),
        (["--latent_lengths", "1"], "evaluations ("),
        (["--ablate", "blank"], "ablate (['shuffle'] there, ['blank'] here)"),
    ):
        capsys.readouterr()
        evaluate(*WORDS, *changed, status=2)
        error = capsys.readouterr().err
        assert name in error
        assert "--restart" in error
    whole = evaluations(evaluate(*WORDS, "--temperature", "0.7", output="whole.json"))
    assert evaluations(evaluate(*WORDS, "--temperature", "0.7", "--restart")) == whole


def test_other_weights_are_refused(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from tests.tiny import tiny_model, tiny_tokenizer

    folder = tmp_path / "model"
    tiny_tokenizer().save_pretrained(folder)
    tiny_model().save_pretrained(folder)
    with monkeypatch.context() as patch:
        break_off(patch, 1)
        with pytest.raises(BrokenOffError):
            evaluate("--model", str(folder))
    tiny_model(seed=1).save_pretrained(folder)
    evaluate("--model", str(folder), status=2)
    assert "weights (" in capsys.readouterr().err


def test_a_digest_sees_the_first_and_the_last_entry() -> None:
    import torch

    def digest(*values: float, size: int = 100) -> str:
        module = torch.nn.Module()
        first, rest, last = values
        ends = [torch.full((n,), float(x)) for n, x in ((1, first), (size - 2, rest), (1, last))]
        module.weight = torch.nn.Parameter(torch.cat(ends))
        return weights_digest(module)

    digests = [digest(0, 0, 0), digest(1, 0, 0), digest(0, 1, 0), digest(0, 0, 1)]
    assert len(set(digests)) == 4
    assert digest(0, 0, 0) == digests[0] != digest(0, 0, 0, size=101)
    assert digest(0, 0, 0, size=2)
    # Of so many entries float32 cannot number the last.
    module = torch.nn.Module()
    many = torch.zeros(1).expand(28_311_552)
    module.weight = torch.nn.Parameter(many, requires_grad=False)
    assert weights_digest(module)


def test_an_interrupt_says_how_to_go_on(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: BatchEvaluator, batch: Batch) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(BatchEvaluator, "evaluate", interrupted)
    evaluate(status=130)
    assert "the same command continues where it was" in capsys.readouterr().err


def test_lists_may_stand_in_the_file(evaluate: Any) -> None:
    settings = yaml.safe_load(evaluate.file.read_text())
    settings |= {"tasks": [settings["task"]], "latent_lengths": [1, 2], "ablate": "blank,argmax"}
    evaluate.file.write_text(yaml.safe_dump(settings))
    found = evaluate("--eval_num_samples", "0")["evaluations"]
    assert [part["latent_length"] for part in found] == [1, 2]
    assert list(found[0]["ablations"]) == ["blank", "argmax"]


@pytest.mark.slow
def test_killed_alone_and_resumed_by_two_processes_equals_one(
    evaluate: Any, tmp_path: Path
) -> None:
    whole = evaluate(*WORDS, output="whole.json")
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    output = tmp_path / "eval.json"
    words = [str(evaluate.file), "--output", str(output), *WORDS]
    killed = subprocess.run(
        [sys.executable, "-m", "tests.torchrun", str(script), "5", *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not output.exists()
    text = run_processes(script, "0", *words)
    assert "resumed: 8 samples are there already" in text
    assert text.count("written to") == 1
    found = json.loads(output.read_text())
    assert found["processes"] == 2
    assert evaluations(found) == evaluations(whole)
    assert os.listdir(tmp_path).count("eval.samples") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ablate", "shufle"], "ablate: there is no ablation 'shufle'; did you mean 'shuffle'"),
        (["--ablate", "blank", "--ablate_blank", "ab"], "ablate_blank: expected the text of one"),
        (["--ablate", "argmax", "--latent_length", "0"], "ablate: latent_length is 0"),
        (["--ablate", "shuffle", "--eval_size", "1"], "ablate: shuffle needs two problems"),
        (["--ablate", "argmax,argmax"], "ablate: 'argmax' comes twice"),
        (["--latent_lengths", "1,x"], "latent_lengths: expected integers >= 0, got 'x'"),
        (["--latent_lengths", "1,01"], "latent_lengths: a length comes twice"),
        (["--latent_lengths", "1,"], "latent_lengths: expected words separated by commas"),
        (["--latent_lengths", "2,5"], "latent_length: 5 leaves no room for an answer"),
        (["--tasks", "file", "--tasks_params", '{"fil": {}}'], "tasks_params: no task 'fil'"),
        (["--tasks", "gsm9k"], "there is no task 'gsm9k'"),
        (["--output", "a.png"], "output: a.png would be overwritten"),
    ],
)
def test_wrong_options_are_named(
    words: list[str], message: str, evaluate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(evaluate.file), *words]) == 2
    assert message in capsys.readouterr().err
