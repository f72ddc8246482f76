"""``python -m tests.without_packages FILE``: what happens where packages are not installed.

FILE is JSON: ``preload``, modules to import before anything is blocked, and ``cases``, each with
``blocked`` (top-level modules whose import fails) and ``lepo`` (words of a command) or ``load``
(``module`` or ``module:name``). Each case runs in a fork of its own, so that nothing is imported
before its turn. Prints, as JSON, the status and the output of each.
"""

import importlib
import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import lepo_kernels  # noqa: F401  (torch, once for all cases)
from lepo_kernels.cli.main import main


class Missing:
    """A finder that does as if modules were not installed."""

    def __init__(self, blocked: list[str]) -> None:
        self.blocked = blocked

    def find_spec(self, name: str, *_: Any) -> None:
        top = name.partition(".")[0]
        if top in self.blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def perform(case: dict[str, Any]) -> dict[str, Any]:
    for name in list(sys.modules):
        if name.partition(".")[0] in case["blocked"]:
            del sys.modules[name]
    sys.meta_path.insert(0, Missing(case["blocked"]))  # type: ignore[arg-type]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            if "lepo" in case:
                status = main(case["lepo"])
            else:
                module, _, name = case["load"].partition(":")
                getattr(importlib.import_module(module), name or "__doc__")
        except ImportError as error:
            status = f"{type(error).__name__}: {error}"
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


def in_a_fork(case: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(writer, "w") as file:
            json.dump(perform(case), file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    return dict(json.loads(said))


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    for preloaded in asked["preload"]:
        importlib.import_module(preloaded)
    print(json.dumps([in_a_fork(case) for case in asked["cases"]]))
