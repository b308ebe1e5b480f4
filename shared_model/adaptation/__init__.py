"""Ways to adapt the pretrained encoder to one hospital: one file a method, found by being there."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterable
from functools import cache
from typing import cast

from shared_model.errors import TemptError, unknown
from shared_model.recommendation import Method

_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
_TAKEN = ("pretraining",)  # stands for a model's name where a fit is no model's


@cache
def adaptations() -> tuple[str, ...]:
    """The methods' names as commands and results spell them."""
    return names_of_files(__path__)


def names_of_files(path: Iterable[str]) -> tuple[str, ...]:
    """The names of the methods in a folder: its files', with hyphens; what begins with an underscore is none.

    Raises:
        TemptError: a file's name could stand in no command, result or ledger.
    """
    found = [module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")]
    for name in found:
        if not _NAME.fullmatch(name) or name in _TAKEN:
            raise TemptError(
                f"{name}.py: expected a name of small letters, digits and underscores that begins with a letter, and "
                f"not {' or '.join(_TAKEN)}; rename the file"
            )
    return tuple(sorted(name.replace("_", "-") for name in found))


def adaptation(name: str) -> Method:
    """The functions of a method.

    Raises:
        TemptError: no file has that name.
    """
    if name not in adaptations():
        raise unknown("adaptation", name, adaptations())
    return cast(Method, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))
