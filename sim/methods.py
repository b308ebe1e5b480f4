"""The methods that there are: every file of `sim/baselines/` and `shared_model/adaptation/`, found by being there."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Literal, cast

from pydantic import BaseModel

import sim.baselines
from shared_model.adaptation import adaptation, adaptations, why_not_federated
from shared_model.errors import TemptError, unknown
from shared_model.fitting import own_settings
from shared_model.found_files import names_of_files
from shared_model.pretrainings import pretrainings
from shared_model.recommendation import Method, is_default, needs_of

Mode = Literal["centralized", "federated", "local"]

# Rows in the paper's order (Tables 3, 7, 4, 5), floors first; a method that is not the paper's follows, by name.
_ORDER = (
    *("frequency", "hospital-frequency"),
    *("leap", "gamenet", "g-bert", "cognet", "gpt-4", "tallrec", "mmoe", "ple", "star", "full-train", "single-train"),
    *("finetune-freeze", "finetune", "tempt"),
    *("tempt-de", "tempt-sm", "finetune-without-mask", "finetune-without-contrast"),
    *("tempt-without-mask", "tempt-without-contrast"),
    *("adapter", "lora", "prefix", "p-tuning-1", "p-tuning-2"),
)


def method_names() -> list[str]:
    """The methods' names as commands and results spell them, in the order of the table."""
    found = [*_baselines(), *adaptations()]
    if twice := sorted(set(_baselines()) & set(adaptations())):
        raise TemptError(f"{twice[0]}: is the name of a baseline and of an adaptation; rename one of both files")
    return sorted(found, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def needs(name: str) -> str | None:
    """The pretraining that a method adapts.

    Raises:
        TemptError: its file names one that there is not.
    """
    needed = needs_of(method(name))
    if needed is not None and needed not in pretrainings():
        known = ", ".join(pretrainings())
        raise TemptError(f"{name}: its file says NEEDS = '{needed}', and there is no such pretraining; known: {known}")
    return needed


def adapts(name: str) -> bool:
    """Whether a method starts from a pretraining."""
    return needs(name) is not None


def method(name: str) -> Method:
    """The functions of a method.

    Raises:
        TemptError: no file has that name; the known ones and the nearest are named.
    """
    if name not in method_names():
        raise unknown("model", name, method_names())
    if name in adaptations():
        return adaptation(name)
    return cast(Method, importlib.import_module(f"{sim.baselines.__name__}.{name.replace('-', '_')}"))


def chosen(names: Sequence[str], mode: Mode = "centralized") -> list[str]:
    """The methods asked for, in the order asked for; without any, those that are fitted unasked and that the mode has.

    Unasked they come in the order of the table.
    A federation has those that adapt the encoder that it pretrains. Where each hospital is by itself, none is fitted on
    the records of all: what such a row would show is not what a hospital can do alone.

    Raises:
        TemptError: there is no such method, the mode does not have it, it is named twice, or the pretraining that one
            needs is not there.
    """
    for name in names:
        if why := _not_in(mode, name):
            raise TemptError(f"--models {name}: {why}")
    if len(set(names)) < len(names):
        raise TemptError(f"--models {','.join(names)}: a model is named twice; name each once")
    found = list(names) or [name for name in method_names() if is_default(method(name)) and not _not_in(mode, name)]
    for name in found:
        needs(name)  # refuses a pretraining that there is not
    return found


def own_settings_of(models: Sequence[str], assigned: Iterable[str]) -> dict[str, type[BaseModel]]:
    """The `Settings` of those of a run's methods and pretrainings that have some, by name.

    Args:
        assigned: the fields that `--set` names.

    Raises:
        TemptError: one of them is of a method that the run does not fit.
    """
    for field in assigned:
        name = field.partition(".")[0]
        if name in method_names() and name not in models:
            raise TemptError(f"--set {field}: the run does not fit {name}; name it in --models, or leave this out")
    return own_settings({name: method(name) for name in models})


def _not_in(mode: Mode, name: str) -> str | None:
    """Why a mode does not have a method."""
    functions = method(name)
    if mode == "federated" and (why := why_not_federated(functions)):
        return why
    if mode == "federated" and name not in adaptations():
        return (
            "pretrains nothing that could be federated; run it with `tempt simulate centralized` and show it with "
            "--beside"
        )
    if mode == "local" and functions.SCOPE == "consortium":
        return (
            "is fitted on the records of all hospitals, and in this mode each is by itself; run it with `tempt "
            "simulate centralized`"
        )
    return None


@cache
def _baselines() -> tuple[str, ...]:
    return names_of_files(sim.baselines.__path__)
