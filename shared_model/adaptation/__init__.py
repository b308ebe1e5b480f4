"""Ways to adapt the pretrained encoder to one hospital: one file a method, found by being there."""

from __future__ import annotations

import importlib
from functools import cache
from typing import cast

from shared_model.errors import unknown
from shared_model.found_files import names_of_files
from shared_model.recommendation import Method


@cache
def adaptations() -> tuple[str, ...]:
    """The methods' names as commands and results spell them."""
    return names_of_files(__path__)


def adaptation(name: str) -> Method:
    """The functions of a method.

    Raises:
        TemptError: no file has that name.
    """
    if name not in adaptations():
        raise unknown("adaptation", name, adaptations())
    return cast(Method, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
