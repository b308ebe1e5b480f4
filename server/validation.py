"""What a reply must be before its numbers are used; a sender's claims about them count for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from shared_model.transport import Transport

Arrays = dict[str, NDArray[np.float32]]


class Rejected(Exception):
    """A reply that is left out: what was found, and what was expected."""


def number_of(metrics: Mapping[str, object], name: str, *, least: float = -np.inf, most: float = np.inf) -> float:
    """A finite number of a reply.

    Raises:
        Rejected: it is missing, no number, not finite, or out of bounds.
    """
    value = metrics.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise Rejected(f"{name} is {str(value)[:40]}, expected a finite number")
    if value < least:
        raise Rejected(f"{name} is {value}, expected at least {least:g}")
    if value > most:
        raise Rejected(f"{name} is {value}, expected at most {most:g}")
    return value


def count_of(metrics: Mapping[str, object], name: str, *, least: float = 0, most: float = np.inf) -> int:
    """A whole number of a reply.

    Raises:
        Rejected: it is missing, not whole, or out of bounds.
    """
    value = number_of(metrics, name, least=least, most=most)
    if value != int(value):
        raise Rejected(f"{name} is {value}, expected a whole number")
    return int(value)


def arrays_of(record: ArrayRecord | None) -> dict[str, NDArray[Any]]:
    """A record's arrays as they really are.

    Raises:
        Rejected: there is no record, or an array can't be read.
    """
    if record is None:
        raise Rejected("no tensors, expected some")
    found = {}
    for name, array in record.items():
        try:
            found[name] = array.numpy()
        except Exception:
            raise Rejected(f"tensor {name[:60]} can't be read") from None
    return found


def update_of(record: ArrayRecord | None, current: Arrays, transport: Transport, largest: float) -> Arrays:
    """An update's tensors: the current ones' names, types and shapes, finite, and not too far from them.

    Args:
        largest: norm of the update, in norms of the current tensors.

    Raises:
        Rejected: something else came.
    """
    try:
        update = transport.decode_update(arrays_of(record), current)
    except ValueError as wrong:
        raise Rejected(str(wrong)) from None
    _check(
        "the update",
        update,
        {name: update[name].astype(np.float64) - current[name] for name in current},
        current,
        largest,
    )
    return update


def control_of(record: ArrayRecord | None, current: Arrays, transport: Transport, largest: float) -> Arrays:
    """What a hospital's control variate has moved by: the shared tensors' names and shapes, finite, not too far.

    Args:
        largest: norm of the movement, in norms of the shared tensors.

    Raises:
        Rejected: something else came.
    """
    try:
        control = transport.decode(arrays_of(record), current)
    except ValueError as wrong:
        raise Rejected(f"control variate: {wrong}") from None
    _check("the control variate", control, control, current, largest)
    return control


def _check(what: str, came: Arrays, moved: Mapping[str, NDArray[Any]], current: Arrays, largest: float) -> None:
    for name, array in came.items():
        if not np.isfinite(array).all():
            raise Rejected(f"{what}: tensor {name} holds NaN or infinity")
    norm, size = _squares(moved) ** 0.5, _squares(current) ** 0.5
    if norm > largest * size:
        raise Rejected(f"{what}: its norm is {norm:.3g}, expected at most {largest:g} times {size:.3g}")


def _squares(arrays: Mapping[str, NDArray[Any]]) -> float:
    return sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays.values())
