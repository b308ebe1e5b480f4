"""Ways to adapt the pretrained encoder to one hospital: one file a method, found by being there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import cast

from shared_model.errors import unknown
from shared_model.recommendation import Method


@cache
def adaptations() -> tuple[str, ...]:
    """The methods' names as commands and results spell them."""
    return names_of_files(__path__)


def names_of_files(path: Iterable[str]) -> tuple[str, ...]:
    """The names of the methods in a folder: its files', with hyphens; what begins with an underscore is none."""
    found = (module.name for module in pkgutil.iter_modules(path))
    return tuple(sorted(name.replace("_", "-") for name in found if not name.startswith("_")))


def adaptation(name: str) -> Method:
    """The functions of a method.

    Raises:
        TemptError: no file has that name.
    """
    if name not in adaptations():
        raise unknown("adaptation", name, adaptations())
    return cast(Method, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
