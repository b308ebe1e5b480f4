"""What a reply must be before its numbers are used; a sender's claims about them count for nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]


class Rejected(Exception):
    """A reply that is left out: what was found, and what was expected."""


def number_of(metrics: Mapping[str, object], name: str, *, least: float | None = None) -> float:
    """A finite number of a reply.

    Raises:
        Rejected: it is missing, no number, not finite, or below `least`.
    """
    value = metrics.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise Rejected(f"{name} is {str(value)[:40]}, expected a finite number")
    if least is not None and value < least:
        raise Rejected(f"{name} is {value}, expected at least {least:g}")
    return value


def update_of(arrays: ArrayRecord | None, current: Arrays, largest: float) -> Arrays:
    """An update's tensors: the current ones' names, types and shapes, finite, and not too far from them.

    Args:
        largest: norm of the update, in norms of the current tensors.

    Raises:
        Rejected: something else came.
    """
    if arrays is None:
        raise Rejected("no tensors, expected an update")
    missing, strange = sorted(set(current) - set(arrays)), sorted(set(arrays) - set(current))
    if missing or strange:
        raise Rejected(f"tensor {missing[0]} is missing" if missing else f"tensor {strange[0][:60]} is unknown")
    update: Arrays = {}
    moved = size = 0.0
    for name, expected in current.items():
        try:
            array = arrays[name].numpy()
        except Exception:
            raise Rejected(f"tensor {name} can't be read") from None
        if array.dtype != expected.dtype or array.shape != expected.shape:
            raise Rejected(
                f"tensor {name} is {array.dtype}{list(array.shape)}, expected {expected.dtype}{list(expected.shape)}"
            )
        if not np.isfinite(array).all():
            raise Rejected(f"tensor {name} holds NaN or infinity")
        moved += float(np.square(array - expected, dtype=np.float64).sum())
        size += float(np.square(expected, dtype=np.float64).sum())
        update[name] = array
    if moved > largest**2 * size:
        raise Rejected(f"the update's norm is {moved**0.5:.3g}, expected at most {largest:g} times {size**0.5:.3g}")
    return update
