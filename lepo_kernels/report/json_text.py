"""JSON that every reader takes: no NaN, no infinity, no half of a surrogate pair."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

# Python may refuse to write an int of more than 640 digits.
_MOST_BITS = 2048
_SURROGATE = re.compile("[\ud800-\udfff]")


def json_text(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON text that UTF-8 can hold.

    Numbers that JSON does not know (NaN, infinities) become null, numbers of numpy and torch plain
    ones, arrays lists, huge ints hexadecimal text, and objects of other types the text that ``str``
    makes of them.

    Args:
        value: what to write.
        indent: spaces per level; None writes one line.
    """
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return hex(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)
