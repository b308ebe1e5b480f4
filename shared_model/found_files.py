"""What is known by the name of its file: methods, adaptations, federated algorithms."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable


def names_of_files(path: Iterable[str]) -> tuple[str, ...]:
    """The names of what a folder holds: its files', with hyphens; what begins with an underscore is none."""
    found = (module.name for module in pkgutil.iter_modules(path))
    return tuple(sorted(name.replace("_", "-") for name in found if not name.startswith("_")))
