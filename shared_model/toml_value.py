"""Values of TOML, which Flower reads its configuration from."""

from __future__ import annotations

import json

from shared_model.errors import TemptError


def toml_value(value: str | int | float | bool) -> str:
    r"""A value as TOML has it: as JSON has it, but for characters that JSON writes as two halves and TOML refuses.

    >>> toml_value("a \U0001f3e5\n")
    '"a 🏥\\n"'

    Raises:
        TemptError: a text, such as a path, has bytes that are no UTF-8.
    """
    text = json.dumps(value, ensure_ascii=False)
    if not _is_utf8(text):
        shown = text.encode("utf-8", "backslashreplace").decode("utf-8")
        raise TemptError(f"{shown}: has bytes that are no UTF-8, which Flower's configuration can't hold; rename it")
    return text.replace("\x7f", "\\u007f")


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
