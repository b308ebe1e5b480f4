"""Federated algorithms: one file each, found by being there; the contract is `shared_model/federated_algorithm.py`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, cast

from shared_model.errors import TemptError, printable, unknown
from shared_model.found_files import names_of_files

if TYPE_CHECKING:  # it needs torch, and the names alone are known without
    from shared_model.federated_algorithm import Algorithm


@dataclass(frozen=True)
class Chosen:
    """An algorithm with all of its options."""

    name: str
    algorithm: Algorithm
    options: Mapping[str, float]

    @property
    def options_in_words(self) -> str:
        return ", ".join(f"{option}={value:g}" for option, value in self.options.items()) or "no options"


@cache
def algorithms() -> tuple[str, ...]:
    """The algorithms' names as commands and results spell them."""
    return names_of_files(__path__)


def algorithm(name: str) -> Algorithm:
    """An algorithm by its name.

    Raises:
        TemptError: no file has it, or its file breaks the contract.
    """
    if name not in algorithms():
        raise unknown("strategy", name, algorithms())
    module = f"{__name__}.{name.replace('-', '_')}"
    try:
        return cast("Algorithm", importlib.import_module(module).ALGORITHM)
    except Exception as error:
        raise TemptError(f"strategy '{name}': {printable(error, 200)}; its file breaks the contract") from error


def chosen(name: str, given: Mapping[str, float]) -> Chosen:
    """An algorithm with its options: their defaults, the given ones on top.

    Raises:
        TemptError: no algorithm or option has that name, an option is out of its bounds, or one must be given.
    """
    found = algorithm(name)
    for option, value in given.items():
        known = found.options.get(option)
        if known is None:
            if not found.options:
                raise TemptError(f"strategy '{name}' has no options; leave {option} out")
            raise unknown(f"option of {name}", option, found.options)
        whole = isinstance(known.default, int)
        if not known.least <= value < known.below or (whole and value % 1):
            kind = "a whole number" if whole else "a number"
            bounds = f"[{known.least:g}, {known.below:g})"
            raise TemptError(f"option {option}={value:g} of {name}: expected {kind} in {bounds}")
    options = {}
    for option, known in found.options.items():
        if known.default is None and option not in given:
            raise TemptError(f"strategy '{name}' needs {option}; give it, such as {option}={known.example:g}")
        value = given[option] if option in given else cast(float, known.default)
        options[option] = int(value) if isinstance(known.default, int) else float(value)
    return Chosen(name, found, options)
