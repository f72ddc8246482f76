"""Options from the command line, from a YAML file, and from the settings saved with a model or run.

As in TRL's parser, the values of the file (and below them the saved ones) become the parser's
defaults, and the command line overrides them. The file's keys are the options' names. Errors name
the key, and are raised before any work.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

from transformers import HfArgumentParser

from lepo_kernels.cli.aliases import hint
from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.options import ALL
from lepo_kernels.cli.saved_settings import NO_SETTINGS, SavedSettings
from lepo_kernels.cli.yaml_file import read_yaml
from lepo_kernels.methods import Method, method_named

NULL = ("null", "none")
_SWITCH = {"true": True, "false": None}


@dataclasses.dataclass
class Parsed:
    """What `parse` found.

    Attributes:
        options: one instance per dataclass asked for.
        given: the settings that the command line, the file or the saved settings set, with their
            values.
        cli_given: names of those that the command line sets.
        from_file: those that the file sets, as it has them.
        saved: the saved settings, as they were read.
        taken: the saved settings that neither the file nor the command line overrides.
    """

    options: tuple[Any, ...]
    given: dict[str, Any]
    cli_given: set[str]
    from_file: dict[str, Any]
    saved: Mapping[str, Any]
    taken: dict[str, Any]


def parse(
    command: str,
    kinds: tuple[type, ...],
    words: list[str],
    *,
    saved: SavedSettings = NO_SETTINGS,
    defaults: dict[str, Any] | None = None,
    hidden: tuple[str, ...] = (),
) -> Parsed:
    """Parse ``[CONFIG.yaml] [--key value ...]``.

    Args:
        command: the subcommand, for the help text.
        kinds: the dataclasses that hold its options.
        words: the command line after the subcommand.
        saved: settings below the file and the command line.
        defaults: replace the options' own defaults, below all of these.
        hidden: options that ``--help`` leaves out.

    Raises:
        UsageError: the file cannot be read, a key is unknown, or a value does not fit.
        SystemExit: after printing the help that was asked for.
    """
    parser = _make_parser(command, kinds, hidden)
    from_file, words = _split_file(words, command)
    cli_given = parser.options_in(words)
    in_file = {key: value for key, value in from_file.items() if key not in cli_given}
    taken = {
        key: value
        for key, value in saved.values.items()
        if key in parser.hints and key not in from_file and key not in cli_given
    }
    chosen, taken = _of_method(from_file, cli_given, words, saved.values, taken)
    parser.set_defaults(**(defaults or {}))
    parser.set_defaults(**{k: v for k, v in chosen.defaults.items() if k in parser.hints})
    parser.set_yaml_defaults(taken, source=saved.source)
    parser.set_yaml_defaults(in_file)
    namespace, rest = parser.parse_known_args(words)
    if rest:
        raise UsageError(_unknown_word(rest[0], parser.hints, command))
    values = vars(namespace)
    try:
        options = parser.parse_dict(values)
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(str(error)) from error
    names = from_file.keys() | cli_given | taken.keys()
    given = {name: value for name, value in values.items() if name in names}
    return Parsed(options, given, cli_given, from_file, saved.values, taken)


def _of_method(
    from_file: Mapping[str, Any],
    cli_given: set[str],
    words: list[str],
    saved: Mapping[str, Any],
    taken: dict[str, Any],
) -> tuple[Method, dict[str, Any]]:
    """The method, and the saved settings that are taken.

    Where another method than the saved one is asked for, what either of them publishes is not.

    Raises:
        UsageError: there is no such method.
    """
    asked = _word_of("method", words) if "method" in cli_given else from_file.get("method")
    earlier = saved.get("method") or "lepo"
    try:
        method = method_named(asked or earlier)
        before = method_named(earlier)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    if method != before:
        published = method.defaults.keys() | before.defaults.keys() | method.fixed.keys()
        taken = {key: value for key, value in taken.items() if key not in published}
    return method, taken


def _word_of(name: str, words: list[str]) -> str | None:
    """An option's value on the command line."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument(*_spellings(name), dest=name)
    found: str | None = getattr(parser.parse_known_args(words)[0], name)
    return found


def peek(command: str, words: list[str], names: tuple[str, ...]) -> dict[str, Any]:
    """Some settings as the command line or the file has them, before all are parsed.

    They decide which settings are saved with the model or the run. One that is not set, or set to
    null, is left out.

    Raises:
        UsageError: the file cannot be read.
    """
    from_file, words = _split_file(words, command)
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in names:
        # An option without a value is a flag; parse() refuses it where it is none.
        parser.add_argument(*_spellings(name), dest=name, nargs="?", const="true")
    found = {**from_file, **vars(parser.parse_known_args(words)[0])}
    return {name: found[name] for name in names if not _is_null(found.get(name))}


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


class _Parser(HfArgumentParser):
    """HfArgumentParser whose defaults may come from YAML, and whose options may be set to null.

    Attributes:
        hints: the type hint of each option.
    """

    def __init__(self, kinds: tuple[type, ...] = (), **kwargs: Any) -> None:
        super().__init__(kinds, **kwargs)
        options = {action.dest for action in self._actions}
        hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
        self.hints = {name: hint for name, hint in hints.items() if name in options}

    def error(self, message: str) -> NoReturn:
        """Raise the message alone: the usage line would be pages long."""
        raise UsageError(message)

    def options_in(self, words: list[str]) -> set[str]:
        """The options that a command line sets."""
        named = {word.partition("=")[0] for word in words}
        return {a.dest for a in self._actions if named.intersection(a.option_strings)}

    def set_yaml_defaults(self, settings: Mapping[str, Any], source: Path | None = None) -> None:
        """Make the settings that this command has the defaults of their options.

        Args:
            settings: as YAML or JSON gives them.
            source: a file to name in errors, where the person named only its folder.

        Raises:
            UsageError: a value does not fit its option's type.
        """
        # Of two actions for one option, --no_x is the later one.
        actions = {action.dest: action for action in reversed(self._actions)}
        try:
            for key, value in settings.items():
                if key in self.hints:
                    self.set_defaults(**{key: self._converted(actions[key], value)})
        except (UsageError, argparse.ArgumentError) as error:
            raise UsageError(str(error) if source is None else f"{source}: {error}") from error

    def _converted(self, action: argparse.Action, value: Any) -> Any:
        """A YAML value as the option has it: texts and numbers as if typed at the command line."""
        if value is None and not self._may_be_none(action):
            raise UsageError(f"{action.dest}: can't be null")
        if isinstance(value, list) and action.nargs == "+":
            return super()._get_values(action, list(map(str, value)))
        if isinstance(value, list | dict) and type(value) not in self._types(action):
            raise UsageError(f"{action.dest}: expected one value, got {value!r}")
        if value is None or isinstance(value, list | dict):
            return value
        return super()._get_values(action, [str(value)])

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """argparse's conversion of an option's words, plus ``--key null``."""
        if len(arg_strings) == 1 and _is_null(arg_strings[0]) and self._may_be_none(action):
            return None
        return super()._get_values(action, arg_strings)

    def _may_be_none(self, action: argparse.Action) -> bool:
        return type(None) in self._types(action)

    def _types(self, action: argparse.Action) -> set[Any]:
        """The plain types of an option's (union) type hint."""
        hint = self.hints.get(action.dest)
        return {getattr(part, "__origin__", part) for part in (get_args(hint) or (hint,))}


def _make_parser(command: str, kinds: tuple[type, ...], hidden: tuple[str, ...]) -> _Parser:
    parser = _Parser(
        kinds,
        prog=f"lepo {command}",
        usage=f"lepo {command} [CONFIG.yaml] [--key value ...]",
        description="Options can also be set in CONFIG.yaml, as 'key: value'; the command line "
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
        if action.nargs == "?" and action.type is str:
            action.type = _text_or_switch
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each option by one spelling, and its default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if action.dest == "help":
            return "-h, --help"
        return f"{action.option_strings[0]} {action.metavar}"


def _text_or_switch(text: str) -> str | bool | None:
    """The type of transformers' texts that are also switches (``--fsdp true``)."""
    return _SWITCH.get(text.lower(), text)


def _split_file(words: list[str], command: str) -> tuple[dict[str, Any], list[str]]:
    """The settings of the file that the words begin with, if they do, and the other words."""
    if not words or words[0].startswith("-"):
        return {}, words
    file = Path(words[0])
    settings = read_yaml(file)
    known = {field.name for kind in ALL for field in dataclasses.fields(kind) if field.init}
    for key in settings:
        if key not in known:
            raise UsageError(f"{file}: unknown key {key!r}; {hint(key, known, command)}")
    return settings, words[1:]


def _spellings(name: str) -> tuple[str, ...]:
    """An option's spellings, as HfArgumentParser has them."""
    return tuple(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def _is_null(value: Any) -> bool:
    return value is None or str(value).lower() in NULL


def _unknown_word(word: str, known: Mapping[str, Any], command: str) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}"
    option = word.partition("=")[0]
    name = option.lstrip("-").replace("-", "_")
    return f"unknown option {option}; {hint(name, known, command)}"
