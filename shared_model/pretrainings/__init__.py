"""Pretrainings: one file each, found by being there; the contract is `shared_model/pretraining.py`."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, cast

from shared_model.errors import unknown
from shared_model.found_files import names_of_files

if TYPE_CHECKING:  # it needs torch, and the names alone are known without
    from shared_model.pretraining import Pretraining

FEDERATED = "tempt"
"""The pretraining that a federation has, as no other can be federated yet."""


@cache
def pretrainings() -> tuple[str, ...]:
    """The pretrainings' names as methods spell them."""
    return names_of_files(__path__)


def pretraining(name: str) -> Pretraining:
    """A pretraining by its name.

    Raises:
        TemptError: no file has it.
    """
    if name not in pretrainings():
        raise unknown("pretraining", name, pretrainings())
    return cast("Pretraining", importlib.import_module(f"{__name__}.{name.replace('-', '_')}").PRETRAINING)
