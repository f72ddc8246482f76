"""``lepo``: dispatch to a subcommand, whose heavy imports happen only when it runs."""

import importlib
import sys
from collections.abc import Sequence

import lepo_kernels
from lepo_kernels import extras
from lepo_kernels.cli.interrupts import INTERRUPTED, second_interrupt_ends
from lepo_kernels.streams import forgiving_output
from lepo_kernels.suggest import did_you_mean

COMMANDS = {
    "train": "train a model on a task",
    "eval": "evaluate a model on tasks, with and without its latents",
    "generate": "complete a prompt and show each soft step",
    "bench": "time every op beside what one would use otherwise",
    "info": "show versions, the device, and which kernel serves each op",
}
# What a command cannot do without; lepo bench looks for what it needs itself.
_MODELS = ("transformers", "accelerate", "datasets", "yaml", "rich")
NEEDS = {"train": _MODELS, "eval": _MODELS, "generate": _MODELS}

USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lepo ARGV``.

    Args:
        argv: the words after ``lepo``; None takes the process's own.

    Returns:
        The exit status: 0, or 2 if what was asked for cannot work.
    """
    with forgiving_output():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else USAGE_ERROR
    if words[0] in ("-V", "--version"):
        print(f"lepo_kernels {lepo_kernels.__version__}")
        return 0
    command = words[0]
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        print(f"lepo: error: there is no command {command!r}; {hint}", file=sys.stderr)
        return USAGE_ERROR
    return _run(command, words[1:])


def _run(command: str, words: list[str]) -> int:
    try:
        with second_interrupt_ends():
            return _run_uninterrupted(command, words)
    except KeyboardInterrupt as interrupt:
        print(f"lepo {command}: interrupted{_advice(interrupt)}", file=sys.stderr)
        return INTERRUPTED


def _run_uninterrupted(command: str, words: list[str]) -> int:
    from lepo_kernels.cli.errors import UsageError
    from lepo_kernels.printable import printable
    from lepo_kernels.tasks import ModelNotInstalledError, TaskError

    try:
        extras.require(*NEEDS.get(command, ()))
        with extras.explained():
            importlib.import_module(f"lepo_kernels.cli.{command}").run(words)
    except (UsageError, TaskError, ModelNotInstalledError, extras.MissingExtraError) as error:
        print(f"lepo {command}: error: {printable(str(error))}", file=sys.stderr)
        return USAGE_ERROR
    return 0


def _advice(interrupt: KeyboardInterrupt) -> str:
    """What an interrupted command says about resuming."""
    return f"; {interrupt}" if interrupt.args else ""


def _help() -> str:
    lines = [
        "usage: lepo COMMAND [CONFIG.yaml] [--key value ...]",
        "",
        "Reinforcement learning on latent (soft-token) reasoning.",
        "",
        "commands:",
        *(f"  {name:10}{text}" for name, text in COMMANDS.items()),
        "",
        "lepo COMMAND --help lists its options; lepo --version shows the version.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
