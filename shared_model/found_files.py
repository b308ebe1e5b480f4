"""What is known by the name of its file: methods, adaptations, pretrainings, federated algorithms."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterable

from shared_model.errors import TemptError

_TAKEN = "pretraining"  # begins a model's name where a fit is no model's
_STAGES = ("encoder", "tuning", "training", "evaluation")  # of the settings, beside which those of methods stand
_NAME = re.compile(rf"(?!{_TAKEN})(?!({'|'.join(_STAGES)})$)[a-z][a-z0-9_]*", re.ASCII)


def names_of_files(path: Iterable[str]) -> tuple[str, ...]:
    """The names of what a folder holds: its files', with hyphens; what begins with an underscore is none.

    Raises:
        TemptError: a file's name could stand in no command, result or ledger.
    """
    found = [module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")]
    for name in found:
        if not _NAME.fullmatch(name):
            raise TemptError(
                f"{name}.py: expected a name of small letters, digits and underscores that begins with a letter, not "
                f"with {_TAKEN}, and is none of {', '.join(_STAGES)}; rename the file"
            )
    return tuple(sorted(name.replace("_", "-") for name in found))
