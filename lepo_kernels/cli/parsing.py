"""Settings from the command line, from a YAML file, and from a model's or a run's folder.

The first wins over the second, that over the third. The file's keys are the options' names.
Whatever is wrong is said by its key, before any work.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from lepo_kernels.cli.aliases import hint
from lepo_kernels.cli.carried import NOTHING, Carried
from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.options import ALL

NULL = ("null", "none")
_SWITCH = {"true": True, "false": None}


@dataclasses.dataclass
class Parsed:
    """What `parse` found.

    Attributes:
        options: one instance per dataclass asked for.
        given: the settings that the command line, the file or a folder set, with their values.
        spoken: names of those that the command line set.
        from_file: those that the file sets, as it has them.
        carried: those that the folder sets, as it has them.
        taken: those of the folder's that count, since neither of the others sets them.
    """

    options: tuple[Any, ...]
    given: dict[str, Any]
    spoken: set[str]
    from_file: dict[str, Any]
    carried: Mapping[str, Any]
    taken: dict[str, Any]


class _Parser(HfArgumentParser):
    """Says an error in one line: the usage line would be pages long."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(
    command: str,
    kinds: tuple[type, ...],
    words: list[str],
    *,
    carried: Carried = NOTHING,
    defaults: dict[str, Any] | None = None,
    hidden: tuple[str, ...] = (),
) -> Parsed:
    """Parse ``[CONFIG.yaml] [--key value ...]``.

    Args:
        command: the subcommand, for the help text.
        kinds: the dataclasses that hold its options.
        words: the command line after the subcommand.
        carried: settings of a folder, below the file and the command line.
        defaults: replace the options' own defaults, below all of these.
        hidden: options that ``--help`` passes over.

    Raises:
        UsageError: the file cannot be read, a key is unknown, or a value does not fit.
        SystemExit: after printing the help that was asked for.
    """
    parser = _make_parser(command, kinds, hidden)
    from_file, words = _split_file(words, command)
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    dests = {option: action.dest for action in parser._actions for option in action.option_strings}
    actions = {action.dest: action for action in reversed(parser._actions)}

    words, nulls = _take_nulls(words, hints)
    spoken = _named_in(words, dests) | nulls.keys()
    taken = {
        key: value
        for key, value in carried.values.items()
        if key in hints and key not in from_file.keys() | spoken
    }
    _check_carried(parser, carried, taken, actions, hints)
    layers = {**(defaults or {}), **taken, **from_file}
    from_yaml, direct = _as_words(
        {key: value for key, value in layers.items() if key in hints and key not in spoken},
        actions,
        hints,
    )
    namespace, rest = parser.parse_known_args([*from_yaml, *words])
    if rest:
        raise UsageError(_unknown_word(rest[0], dests, command))
    values = {**vars(namespace), **direct, **nulls}
    _take_switches(values, parser)
    try:
        options = parser.parse_dict(values)
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(str(error)) from error
    names = (from_file.keys() | spoken | taken.keys()) & hints.keys()
    given = {name: values[name] for name in values if name in names}
    return Parsed(options, given, spoken, from_file, carried.values, taken)


def peek(command: str, words: list[str], names: tuple[str, ...]) -> dict[str, Any]:
    """Some settings as the command line or the file has them, before all are parsed.

    What they say decides which settings come with the model or the run. One that is not set, or set
    to null, is left out.

    Raises:
        UsageError: the file cannot be read.
    """
    from_file, words = _split_file(words, command)
    found = {name: from_file[name] for name in names if name in from_file}
    for position, word in enumerate(words):
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if option.startswith("--") and name in names:
            # An option without a value is a flag; parse() refuses it where it is none.
            following = [*words[position + 1 :], "--"][0]
            bare = "true" if following.startswith("--") else following
            found[name] = value if equals else bare
    return {
        name: value
        for name, value in found.items()
        if value is not None and str(value).lower() not in NULL
    }


def mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any]:
    """An option that is a mapping, given as YAML or as JSON text.

    Raises:
        UsageError: the text is not a JSON object.
    """
    if value is None or isinstance(value, dict):
        return value or {}
    try:
        decoded = json.loads(value)
    except json.JSONDecodeError as error:
        raise UsageError(f"{name}: {value!r} is not JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise UsageError(f"{name}: expected a mapping (a JSON object), got {value!r}")
    return decoded


def _make_parser(command: str, kinds: tuple[type, ...], hidden: tuple[str, ...]) -> _Parser:
    parser = _Parser(
        kinds,
        prog=f"lepo {command}",
        usage=f"lepo {command} [CONFIG.yaml] [--key value ...]",
        description="Options can also stand in CONFIG.yaml, as 'key: value'; the command line "
        "wins, and 'null' unsets an option.",
        epilog="Every setting of transformers' TrainingArguments is an option, too."
        if command == "train"
        else None,
        allow_abbrev=False,
        formatter_class=_Formatter,
    )
    for action in parser._actions:
        is_double = any(option.startswith("--no_") for option in action.option_strings)
        if action.dest in hidden or is_double:
            action.help = argparse.SUPPRESS
        # One spelling of each option is enough to read; the others work all the same.
        action.metavar = action.dest.upper() if action.metavar is None else action.metavar
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each option by one spelling, and its default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.dest == "help":
            return "-h, --help"
        return f"{action.option_strings[0]} {action.metavar}"


def _split_file(words: list[str], command: str) -> tuple[dict[str, Any], list[str]]:
    """The settings of the file that the words begin with, if they do, and the other words."""
    if words and not words[0].startswith("-"):
        return _read_yaml(Path(words[0]), command), words[1:]
    return {}, words


def _check_carried(
    parser: _Parser,
    carried: Carried,
    taken: dict[str, Any],
    actions: dict[str, argparse.Action],
    hints: dict[str, Any],
) -> None:
    """Say where a value that does not fit comes from: the person named only a folder."""
    try:
        parser.parse_known_args(_as_words(taken, actions, hints)[0])
    except UsageError as error:
        raise UsageError(f"{carried.source}: {error}") from error


def _read_yaml(file: Path, command: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not YAML: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise UsageError(f"{file}: expected lines of 'key: value', got {type(settings).__name__}")
    known = {field.name for kind in ALL for field in dataclasses.fields(kind) if field.init}
    for key in settings:
        if key not in known:
            raise UsageError(f"{file}: unknown key {key!r}; {hint(str(key), known, command)}")
    return settings


def _named_in(words: list[str], dests: dict[str, str]) -> set[str]:
    """The settings that the command line names."""
    options = {word.partition("=")[0] for word in words}
    return {dests[option] for option in options if option in dests}


def _take_nulls(words: list[str], hints: dict[str, Any]) -> tuple[list[str], dict[str, None]]:
    """Take ``--key null`` out of the command line where None is welcome: argparse can't say it."""
    kept: list[str] = []
    nulls: dict[str, None] = {}
    rest = [part for word in words for part in _split_assignment(word)]
    while rest:
        word = rest.pop(0)
        name = word.removeprefix("--").replace("-", "_")
        if word.startswith("--") and rest and rest[0].lower() in NULL and _takes_none(hints, name):
            rest.pop(0)
            nulls[name] = None
        else:
            kept.append(word)
    return (kept, nulls) if nulls else (words, nulls)


def _split_assignment(word: str) -> list[str]:
    name, equals, value = word.partition("=")
    return [name, value] if word.startswith("--") and equals and value.lower() in NULL else [word]


def _takes_none(hints: dict[str, Any], name: str) -> bool:
    return type(None) in get_args(hints.get(name))


def _as_words(
    settings: dict[str, Any], actions: dict[str, argparse.Action], hints: dict[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Settings as command-line words, and those that have no words: None, mappings, lists."""
    words: list[str] = []
    direct: dict[str, Any] = {}
    for key, value in settings.items():
        action = actions[key]
        if value is None:
            if not _takes_none(hints, key):
                raise UsageError(f"{key}: can't be null")
            direct[key] = None
        elif isinstance(value, list) and action.nargs == "+" and value:
            words += [f"--{key}", *map(str, value)]
        elif isinstance(value, list | dict):
            if type(value) not in _types_in(hints[key]):
                raise UsageError(f"{key}: expected one value, got {value!r}")
            direct[key] = value
        else:
            words.append(f"--{key}={value}")
    return words, direct


def _take_switches(values: dict[str, Any], parser: _Parser) -> None:
    """Read true and false where transformers has a text that is also a switch (``--fsdp true``)."""
    for action in parser._actions:
        value = values.get(action.dest)
        if action.nargs == "?" and action.type is str and isinstance(value, str):
            values[action.dest] = _SWITCH.get(value.lower(), value)


def _types_in(hint: Any) -> set[Any]:
    """The plain types of a (union) type hint."""
    return {getattr(part, "__origin__", part) for part in (get_args(hint) or (hint,))}


def _unknown_word(word: str, dests: dict[str, str], command: str) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}"
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    return f"unknown option {word.partition('=')[0]}; {hint(name, dests.values(), command)}"
