from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.options import GenerateOptions, ModelOptions, SamplingOptions, TaskOptions
from lepo_kernels.cli.parsing import Parsed, mapping, parse
from lepo_kernels.cli.saved_settings import SavedSettings
from lepo_kernels.trainer.config import LEPOConfig


@dataclass
class Options:
    """One option of each kind."""

    number: int = 1
    rate: float = 0.5
    limit: int | None = 3
    flag: bool = False
    shuffle: bool = True
    names: list[str] | None = None
    table: dict[str, Any] | str | None = field(default=None, metadata={"help": "a table"})


@pytest.fixture(autouse=True)
def known_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepo_kernels.cli.parsing.ALL", (Options, ModelOptions))


def parsed(tmp_path: Path, text: str | None, *words: str, **kwargs: Any) -> Parsed:
    file = tmp_path / "c.yaml"
    if text is not None:
        file.write_text(text)
        words = (str(file), *words)
    return parse("train", (Options,), list(words), **kwargs)


def test_command_line_beats_file_beats_default(tmp_path: Path) -> None:
    found = parsed(
        tmp_path, "number: 2\nrate: 1e-6\nflag: true", "--number", "3", "--names", "a", "b"
    )
    assert found.options[0] == Options(3, 1e-6, flag=True, names=["a", "b"])
    assert found.given == {"number": 3, "rate": 1e-6, "flag": True, "names": ["a", "b"]}


def test_values_without_words(tmp_path: Path) -> None:
    found = parsed(tmp_path, "limit: null\nnames: [x, y]\ntable: {a: 1}\nshuffle: false")
    assert found.options[0] == Options(limit=None, names=["x", "y"], table={"a": 1}, shuffle=False)
    assert parsed(tmp_path, None, "--limit", "null").options[0].limit is None
    assert parsed(tmp_path, None, "--limit=None").options[0].limit is None
    assert parsed(tmp_path, "limit: null", "--limit", "7").options[0].limit == 7
    assert parsed(tmp_path, "limit: 7", "--limit", "null").options[0].limit is None
    assert parsed(tmp_path, None, "--no_shuffle").options[0].shuffle is False


def test_a_file_may_hold_what_looks_like_an_option(tmp_path: Path) -> None:
    found = parsed(tmp_path, "names: ['-x', --rate]\nlimit: -3\ntable: --number")
    assert found.options[0] == Options(names=["-x", "--rate"], limit=-3, table="--number")
    assert found.cli_given == set()


def test_help_shows_the_values_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(tmp_path, "table: '{\"a\": 5}'", "--help")
    assert '(default: {"a": 5})' in capsys.readouterr().out


def test_a_saved_value_that_does_not_fit_is_said_with_its_file(tmp_path: Path) -> None:
    saved = SavedSettings(Path("model/lepo_config.json"), {"number": "x", "elsewhere": 1})
    with pytest.raises(UsageError, match=r"model/lepo_config.json: .*--number: invalid int"):
        parsed(tmp_path, None, saved=saved)
    # What the command line or the file overrides need not fit.
    for text, words in ((None, ("--number", "2")), ("number: 2", ())):
        found = parsed(tmp_path, text, *words, saved=saved)
        assert found.options[0].number == 2
        assert found.taken == {}


def test_defaults_stand_below_the_file(tmp_path: Path) -> None:
    found = parsed(tmp_path, "rate: 1.0", defaults={"rate": 2.0, "number": 5})
    assert found.options[0] == Options(number=5, rate=1.0)
    assert found.given == {"rate": 1.0}


def test_keys_of_other_commands_are_ignored(tmp_path: Path) -> None:
    assert parsed(tmp_path, "model: m\nnumber: 4").options[0].number == 4


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("numbre: 1", [], r"c.yaml: unknown key 'numbre'; did you mean 'number'\?"),
        (None, ["--numbre", "1"], r"unknown option --numbre; did you mean 'number'\?"),
        (None, ["--numb", "1"], r"unknown option --numb; did you mean 'number'\?"),
        (None, ["--number", "x"], "--number: invalid int value: 'x'"),
        ("number: x", [], "--number: invalid int value: 'x'"),
        ("number: null", [], "number: can't be null"),
        ("number: [1]", [], r"number: expected one value, got \[1\]"),
        ("number: {a: 1}", [], "number: expected one value, got {'a': 1}"),
        ("flag: maybe", [], "--flag.*maybe"),
        ("- a\n- b", [], "expected lines of 'key: value', got list"),
        ("a: [1", [], "is not YAML"),
        ("number: 2026-13-01", [], "is not YAML: month must be"),
        ("[" * 3000, [], "is not YAML"),
        (None, ["nowhere.yaml"], "can't read nowhere.yaml: No such file"),
        (None, ["--number", "1", "2"], "unexpected argument '2'"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, text: str | None, words: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        parsed(tmp_path, text, *words)


def test_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert parsed(tmp_path, "# nothing\n").given == {}


def test_help_hides_what_it_should(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed(tmp_path, None, "--help", hidden=("rate",))
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--number" in text
    assert "--rate" not in text
    assert "TrainingArguments" in text


def test_mapping() -> None:
    assert mapping("p", None) == {}
    assert mapping("p", {"a": 1}) == {"a": 1}
    assert mapping("p", '{"a": [1]}') == {"a": [1]}
    with pytest.raises(UsageError, match=r"p: .* is not JSON"):
        mapping("p", "{a")
    with pytest.raises(UsageError, match=r"p: expected a mapping .* got '\[1\]'"):
        mapping("p", "[1]")


def test_sampling_options_are_those_of_the_trainer() -> None:
    options = parse("generate", (GenerateOptions, SamplingOptions), ["--tau", "0.25"]).options[1]
    reference = LEPOConfig(use_cpu=True)
    assert options.tau == 0.25
    assert options.top_k == reference.top_k
    assert options.latent_length == reference.latent_length


def test_no_two_options_share_a_name() -> None:
    names = [
        name
        for kind in (ModelOptions, TaskOptions, GenerateOptions, LEPOConfig)
        for name in kind.__dataclass_fields__
    ]
    assert len(names) == len(set(names))
