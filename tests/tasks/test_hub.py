"""A model that is not there is said at once; what is there is not asked for twice."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from lepo_kernels.extras import MissingExtraError
from lepo_kernels.tasks import TaskError, load_task
from lepo_kernels.tasks.hub import ModelNotFoundError, reach_model
from lepo_kernels.tasks.sources import SOURCES


class Session:
    """Stands for the hub's client: counts what it is asked, and answers or fails."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.asked = 0

    def head(self, url: str, timeout: float) -> None:
        assert timeout <= 5
        self.asked += 1
        if self.error is not None:
            raise self.error


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment allows to ask, and the cache is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def answering(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> Session:
    session = Session(error)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    return session


def cached(cache: Path) -> None:
    """A cache that holds the config of some/model."""
    snapshot = cache / "models--some--model" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = cache / "models--some--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0")


@pytest.mark.parametrize("name", ["some/model", "model", "not a hub id/x"])
def test_without_a_network_it_is_said_after_one_try(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    session = answering(monkeypatch, ConnectionError("no route"))
    with pytest.raises(ModelNotFoundError, match=r"model: .* can't be reached \(.*no route\)"):
        reach_model(name)
    assert session.asked == 1


def test_with_a_network_the_hub_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    session = answering(monkeypatch, None)
    assert reach_model("some/model", dtype="float32") == {"dtype": "float32"}
    assert session.asked == 1


def test_a_cached_model_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answering(monkeypatch, ConnectionError("no route"))
    cached(tmp_path / "elsewhere")
    found = reach_model("some/model", cache_dir=str(tmp_path / "elsewhere"))
    assert found["local_files_only"] is True
    with pytest.raises(ModelNotFoundError):
        reach_model("some/model")


@pytest.mark.parametrize("arguments", [{}, {"local_files_only": True}])
def test_nothing_is_asked_where_that_is_forbidden(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    session = answering(monkeypatch, ConnectionError("no route"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", not arguments)
    assert reach_model("some/model", **arguments) == arguments
    assert session.asked == 0


# Names that no hub id has are folders; a folder beside it that is nearly called so is offered.
@pytest.mark.parametrize("name", ["./rnus/demo", "/no/such", "a/b/c", "~/no/such/folder"])
def test_a_folder_that_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    session = answering(monkeypatch, ConnectionError("no route"))
    with pytest.raises(ModelNotFoundError, match=f"model: there is no folder {name}"):
        reach_model(name)
    assert session.asked == 0


def test_a_misspelt_folder_is_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answering(monkeypatch, ConnectionError("no route"))
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    for name in ("runs/dmeo", "./runs/dmeo"):
        with pytest.raises(ModelNotFoundError, match=r"did you mean runs/demo\?"):
            reach_model(name)
    assert reach_model("runs/demo") == {}


def test_an_adapter_needs_peft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("lepo_kernels.extras.is_here", lambda module: module != "peft")
    with pytest.raises(MissingExtraError, match=r"lepo_kernels\[peft\]"):
        reach_model(str(tmp_path))


def test_a_data_set_without_a_network_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    session = answering(monkeypatch, ConnectionError("no route"))

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub's client was asked")

    monkeypatch.setattr("datasets.load_dataset", fail)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    with pytest.raises(TaskError, match=r"can't get openai/gsm8k .*no route.*local copy"):
        load_task("gsm8k", reward="exact_answer", train_size=1, eval_size=1)
    assert session.asked == 1


def test_a_reward_that_is_not_installed_is_said_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lepo_kernels.extras.is_here", lambda module: module != "math_verify")
    session = answering(monkeypatch, None)
    for task in (name for name, s in SOURCES.items() if s.rewards[0] == "math_verify"):
        with pytest.raises(TaskError, match=rf"{task}: .*lepo_kernels\[math\].*exact_answer"):
            load_task(task, path="/no/such/file.jsonl")
    assert session.asked == 0
