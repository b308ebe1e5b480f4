"""Options that are lists with commas between: names, and whole numbers such as seeds and hospitals' ids."""

from __future__ import annotations

import re

from shared_model.errors import TemptError

LARGEST = 2**63 - 1
"""The largest seed or id: messages and tables hold them in 64 bits."""


def names(option: str, text: str) -> list[str]:
    """The names of a list.

    Raises:
        TemptError: one is blank.
    """
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise TemptError(f"{option} {text}: a name is blank; expected names with one comma between them")
    return found


def numbers(option: str, text: str, example: str, *, least: int = 0) -> list[int]:
    """The whole numbers of a list, all different.

    Args:
        example: a list that is right, for the error.
        least: the smallest that may be.

    Raises:
        TemptError: a part is blank, no whole number or out of bounds, or a number stands twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("-?[0-9]+", part) for part in parts):
        raise TemptError(f"{option} {text}: expected integers with commas between them, such as {example}")
    # of more than 20 digits none is in bounds, and int() refuses some thousand
    found = [int(part[:20]) for part in parts]
    if len(set(found)) < len(found) or not all(least <= number <= LARGEST for number in found):
        raise TemptError(f"{option} {text}: expected different integers of at least {least} and at most {LARGEST}")
    return found
