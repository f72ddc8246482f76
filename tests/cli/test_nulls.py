"""``null`` unsets every setting that can be unset, on the command line and in a file."""

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from lepo_kernels.cli.options import ModelOptions, TaskOptions, TrainOptions
from lepo_kernels.cli.parsing import parse
from lepo_kernels.trainer.config import LEPOConfig

KINDS = (ModelOptions, TaskOptions, TrainOptions, LEPOConfig)
UNSETTABLE = sorted(
    name
    for kind in KINDS
    for name, hint in get_type_hints(kind).items()
    if type(None) in get_args(hint) and name in kind.__dataclass_fields__
)
# Those that stand for a value of their own once they are unset.
RESOLVED = {
    "report_to": [],
    "steps_per_generation": 1,
}


def chosen(words: list[str], name: str) -> Any:
    options = parse("train", KINDS, [*words, "--use_cpu", "true"]).options
    return next(getattr(part, name) for part in options if hasattr(part, name))


@pytest.mark.parametrize("name", UNSETTABLE)
def test_null_unsets(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({name: None}))
    for words in ([str(file)], [f"--{name}", "null"], [f"--{name}=none"]):
        value = chosen(words, name)
        if name in RESOLVED:
            assert value == RESOLVED[name]
        else:
            # transformers gives some a default of its own; None is nowhere inside a value.
            assert value is None or not isinstance(value, list) or None not in value
