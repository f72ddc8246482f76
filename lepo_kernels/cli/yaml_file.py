"""Reading a YAML file of settings."""

from pathlib import Path
from typing import Any

import yaml

from lepo_kernels.cli.errors import UsageError


def read_yaml(file: Path) -> dict[str, Any]:
    """The settings in a file of ``key: value`` lines; empty if it holds none.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from error
    # ValueError: bytes that are no text, or a date that there is not; RecursionError: deep nesting.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: can't be read, since it is not YAML: {error}") from error
    if not isinstance(settings, dict | None):
        raise UsageError(f"{file}: expected lines of 'key: value', got {type(settings).__name__}")
    return {str(name): value for name, value in (settings or {}).items()}
