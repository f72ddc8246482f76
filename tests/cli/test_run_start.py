"""Where ``lepo train`` starts: a new run, or an earlier one under that run's own settings."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainerCallback

from lepo_kernels.cli import train as train_command
from lepo_kernels.cli.main import main
from lepo_kernels.trainer.model_settings import FILE, read_settings
from tests.cli.conftest import SETTINGS

SAVING = {"save_strategy": "steps", "save_steps": 1, "eval_num_samples": 0, "eval_size": 2}


def letters(completions: list[Any], **_: Any) -> list[float]:
    """The share of letters: a reward that random weights meet in part."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(map(str.isalpha, text)) / 3 for text in texts]


@pytest.fixture(scope="module", autouse=True)
def _reward_within_reach() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lepo_kernels.tasks.generated.exact_answer", letters)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Path:
    """A finished run of three updates with a checkpoint after each; not to be written to."""
    root = tmp_path_factory.mktemp("finished")
    settings = {**SETTINGS, **SAVING, "model": model_folder, "max_steps": 3}
    settings |= {"output_dir": str(root / "run"), "latent_length": 3, "adam_beta2": 0.99}
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", str(root / "config.yaml")]) == 0
    return root / "run"


@pytest.fixture
def interrupted(finished: Path, tmp_path: Path) -> Path:
    """The run as a kill after its second update leaves it, in ``tmp_path / "run"``."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in ("checkpoint-3", "lepo_config.json"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run / "model.safetensors").unlink()
    return run


@pytest.fixture
def base(tmp_path: Path, model_folder: str) -> Path:
    """The file that the run was started with, but for what its command line had changed."""
    file = tmp_path / "base.yaml"
    settings = {**SETTINGS, **SAVING, "model": model_folder, "max_steps": 3, "latent_length": 2}
    file.write_text(yaml.safe_dump({**settings, "output_dir": str(tmp_path / "run")}))
    return file


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def steps(run: Path) -> list[int]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "reward" in line]


def latest(*words: str) -> list[str]:
    return ["train", "--resume_from_checkpoint", "latest", *words]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_resume_takes_up_the_runs_settings(
    interrupted: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = yaml.safe_load((interrupted / "config.yaml").read_text())
    assert main(latest("--output_dir", str(interrupted))) == 0
    assert "with the settings of" in said(capsys)
    assert steps(interrupted) == [1, 2, 3]
    # All of them, those of transformers' own among them, also for the next resume.
    after = yaml.safe_load((interrupted / "config.yaml").read_text())
    assert before["adam_beta2"] == 0.99
    assert {name: after[name] for name in before} == {**before, "output_dir": str(interrupted)}
    whole, resumed = ((run / "model.safetensors").read_bytes() for run in (finished, interrupted))
    assert whole == resumed


def test_a_damaged_newest_checkpoint_says_nothing(interrupted: Path) -> None:
    damaged = interrupted / "checkpoint-3"
    damaged.mkdir()
    (damaged / FILE).write_text('{"schema_vers')
    assert main(latest("--output_dir", str(interrupted))) == 0
    assert steps(interrupted) == [1, 2, 3]


def test_a_checkpoint_alone_names_its_run(interrupted: Path) -> None:
    checkpoint = str(interrupted / "checkpoint-2")
    assert main(["train", "--resume_from_checkpoint", checkpoint]) == 0
    assert steps(interrupted) == [1, 2, 3]
    assert read_settings(interrupted / FILE)["sampling"]["latent_length"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "latent_length was 3 and is 2"),  # what the file says, as README once had it
        (["--latent_length", "3", "--adam_beta2", "0.9"], "adam_beta2 was 0.99 and is 0.9"),
        (["--latent_length", "3", "--lora_r", "4"], "lora_r was 0 and is 4"),
        (["--latent_length", "3", "--task", "gsm8k"], "task was 'reasoning_gym:chain_sum' and is"),
        (["--latent_length", "3", "--train_size", "8"], "train_size was 16 and is 8"),
        (["--latent_length", "3", "--task_seed", "8"], "task_seed was 42 and is 8"),
        (["--latent_length", "3", "--dtype", "bfloat16"], "dtype was 'auto' and is 'bfloat16'"),
        (["--latent_length", "3", "--learning_rate", "1"], "learning_rate was 0.001 and is 1.0"),
    ],
    ids=lambda value: value[-2] if isinstance(value, list) and value else "",
)
def test_other_settings_are_refused_and_nothing_is_touched(
    interrupted: Path,
    base: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    before = contents(interrupted)
    adam = [] if "--adam_beta2" in words else ["--adam_beta2", "0.99"]
    command = ["train", str(base), *latest()[1:], *adam, *words]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "takes up the run's settings by itself" in error
    assert contents(interrupted) == before


def test_a_longer_run_is_no_other_run(interrupted: Path) -> None:
    assert main(latest("--output_dir", str(interrupted), "--max_steps", "4")) == 0
    assert steps(interrupted) == [1, 2, 3, 4]
    assert yaml.safe_load((interrupted / "config.yaml").read_text())["max_steps"] == 4
    # And so it stays, though checkpoint-3 was written under the same setting.
    assert read_settings(interrupted / "checkpoint-3" / FILE)["training"]["max_steps"] == 4


def test_another_folder_goes_on_from_a_checkpoint(
    interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branch = tmp_path / "branch"
    words = ["train", "--resume_from_checkpoint", str(interrupted / "checkpoint-1")]
    assert main([*words, "--output_dir", str(branch)]) == 0
    assert steps(branch) == [2, 3]
    before = contents(branch)
    assert main([*words, "--output_dir", str(branch)]) == 2
    assert f"{branch} holds another run" in capsys.readouterr().err
    assert contents(branch) == before


def automatic(base: Path, *words: str) -> list[str]:
    return ["train", str(base), "--resume_from_checkpoint", "auto", *words]


def test_auto_begins_a_run_and_goes_on_with_it(base: Path, tmp_path: Path) -> None:
    assert main(automatic(base, "--max_steps", "1")) == 0
    assert main(automatic(base, "--max_steps", "2")) == 0
    assert steps(tmp_path / "run") == [1, 2]
    assert main(automatic(base, "--max_steps", "1", "--overwrite_output_dir")) == 0
    assert steps(tmp_path / "run") == [1]


def test_auto_asks_before_it_mixes_settings(
    base: Path, interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(interrupted)
    assert main(automatic(base)) == 2
    assert "latent_length was 3 and is 2" in capsys.readouterr().err
    assert contents(interrupted) == before


class Kill(TrainerCallback):
    """Ends a run before its first checkpoint."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt


def killed_early(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    recorder = train_command.RunFolderCallback

    def run(words: list[str]) -> None:
        class Both(recorder, Kill):  # type: ignore[misc, valid-type]
            pass

        monkeypatch.setattr(train_command, "RunFolderCallback", Both)
        assert main(words) == 130
        monkeypatch.setattr(train_command, "RunFolderCallback", recorder)

    return run


def test_auto_writes_beside_a_run_that_it_cannot_go_on_with(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    killed_early(monkeypatch)(automatic(base))
    run = tmp_path / "run"
    assert run.exists()
    before = contents(run)
    assert before
    capsys.readouterr()
    assert main(automatic(base, "--max_steps", "1")) == 0
    assert "no checkpoint to resume from" in said(capsys)
    assert contents(run) == before
    assert steps(tmp_path / "run-2") == [1]
    # The next call finds it there.
    assert main(automatic(base, "--max_steps", "2")) == 0
    assert steps(tmp_path / "run-2") == [1, 2]
    assert not (tmp_path / "run-3").exists()


# What a run's folder is not trusted with


def add(run: Path, **settings: Any) -> None:
    file = run / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **settings}))


@pytest.mark.parametrize(
    "setting",
    [
        {"attn_implementation": "org/kernel"},
        {"model_init_kwargs": {"trust_remote_code": True}},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_may_load_code_must_be_named_again(
    interrupted: Path, setting: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    add(interrupted, **setting)
    (name,) = setting
    words = latest("--output_dir", str(interrupted))
    assert main(words) == 2
    assert f"{name}: {interrupted / 'config.yaml'} has" in capsys.readouterr().err
    assert main([*words, f"--{name}", "null"]) == 0


def test_nothing_is_published_or_written_elsewhere(
    interrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    add(interrupted, push_to_hub=True, hub_model_id="evil/model", output_dir=str(elsewhere))
    assert main(latest("--output_dir", str(interrupted))) == 0
    (left,) = [text for text in said(capsys).split("; ") if text.startswith("not taken")]
    assert "push_to_hub" in left
    assert "hub_model_id" in left
    assert not elsewhere.exists()


# --report_to


@pytest.mark.parametrize("words", [["--report_to", "none"], ["--report_to", "null"]])
def test_reports_are_switched_off_from_the_command_line(config: Path, words: list[str]) -> None:
    assert main(["train", str(config), "--max_steps", "1", *words]) == 0


@pytest.mark.parametrize("value", [None, "none", [], ["none"]])
def test_reports_are_switched_off_from_a_file(config: Path, tmp_path: Path, value: Any) -> None:
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**settings, "report_to": value, "max_steps": 1}))
    assert main(["train", str(config)]) == 0
    # The file that the run leaves says the same.
    words = [str(tmp_path / "run" / "config.yaml"), "--output_dir", str(tmp_path / "again")]
    assert main(["train", *words]) == 0
