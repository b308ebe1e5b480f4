"""The methods that there are: every file of `sim/baselines/` and `shared_model/adaptation/`, found by being there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from typing import cast

import sim.baselines
from shared_model.adaptation import adaptation, adaptations
from shared_model.errors import TemptError, unknown
from shared_model.recommendation import Method

# Rows in the order of Tables 3 and 7, floors first, then what the paper adds; others follow by name.
_ORDER = ("frequency", "hospital-frequency", "full-train", "single-train", "finetune-freeze", "finetune", "tempt")


def method_names() -> list[str]:
    """The methods' names as commands and results spell them, in the order of the table."""
    found = [*_baselines(), *adaptations()]
    return sorted(found, key=lambda name: (_ORDER.index(name) if name in _ORDER else -1, name))


def adapts(name: str) -> bool:
    """Whether a method starts from the pretrained encoder."""
    return name in adaptations()


def method(name: str) -> Method:
    """The functions of a method.

    Raises:
        TemptError: no file has that name; the known ones and the nearest are named.
    """
    if name not in method_names():
        raise unknown("model", name, method_names())
    if adapts(name):
        return adaptation(name)
    return cast(Method, importlib.import_module(f"{sim.baselines.__name__}.{name.replace('-', '_')}"))


def chosen(names: Sequence[str], *, federated: bool = False) -> list[str]:
    """The asked-for methods in the order of the table; all of them for an empty list.

    Args:
        federated: only those that adapt a pretrained encoder are there to choose from.
    """
    for name in names:
        method(name)
        if federated and not adapts(name):
            raise TemptError(
                f"--models {name}: pretrains nothing that could be federated; run it with `tempt simulate centralized` "
                "and show it with --beside"
            )
    if len(set(names)) < len(names):
        raise TemptError(f"--models {','.join(names)}: a model is named twice")
    known = [name for name in method_names() if adapts(name) or not federated]
    return [name for name in known if not names or name in names]


@cache
def _baselines() -> tuple[str, ...]:
    return tuple(module.name.replace("_", "-") for module in pkgutil.iter_modules(sim.baselines.__path__))
