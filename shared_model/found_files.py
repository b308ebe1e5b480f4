"""What is known by the name of its file: methods, adaptations, federated algorithms."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable

from shared_model.errors import TemptError

_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)
_TAKEN = ("pretraining",)  # stands for a model's name where a fit is no model's


def names_of_files(path: Iterable[str]) -> tuple[str, ...]:
    """The names of what a folder holds: its files', with hyphens; what begins with an underscore is none.

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
