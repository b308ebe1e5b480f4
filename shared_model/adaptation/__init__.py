"""Ways to adapt the pretrained encoder to one hospital: one file a method, found by being there."""

from __future__ import annotations

import importlib
from functools import cache
from typing import cast

from shared_model.errors import unknown
from shared_model.found_files import names_of_files
from shared_model.pretrainings import FEDERATED
from shared_model.recommendation import Method, needs_of


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


def why_not_federated(method: Method) -> str | None:
    """Why a federation can't have a method: it pretrains one network, and the method adapts another."""
    needed = needs_of(method)
    if needed in (None, FEDERATED):
        return None
    return (
        f"adapts the pretraining '{needed}', and a federation has '{FEDERATED}' alone; run it with `tempt simulate "
        "centralized` and show it with --beside"
    )
