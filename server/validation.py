"""What a reply must be before its numbers are used; a sender's claims about them count for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from numpy.typing import NDArray

from shared_model.errors import printable
from shared_model.federated_algorithm import Arrays
from shared_model.transport import Transport
from shared_model.vocabulary_rules import MOST_CHARACTERS, MOST_CODES, is_code

Float32 = NDArray[np.float32]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]
_HEAD_BYTES = 4096  # at most, of an array in NumPy's format
Value = TypeVar("Value", int, str, tuple[int, str])


class Rejected(Exception):
    """A reply that is left out: what was found, and what was expected."""


class BadNumbers(Rejected):
    """A hospital could make no sound numbers: if most of a round are so, what came to them is to blame."""


class LeftOut(Rejected):
    """A hospital that has no part by the federation's own rules; no other answer of it is waited for."""


def number_of(metrics: Mapping[str, object], name: str, *, least: float = -np.inf, most: float = np.inf) -> float:
    """A finite number of a reply.

    Raises:
        Rejected: it is missing, no number, not finite, or out of bounds.
    """
    value = metrics.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Rejected(f"{name} is {printable(value, 40)}, expected a finite number")
    if not np.isfinite(value):
        raise BadNumbers(f"{name} is {value}, expected a finite number")
    if value < least:
        raise BadNumbers(f"{name} is {value}, expected at least {least:g}")
    if value > most:
        raise BadNumbers(f"{name} is {value}, expected at most {most:g}")
    return value


def count_of(metrics: Mapping[str, object], name: str, *, least: float = 0, most: float = np.inf) -> int:
    """A whole number of a reply.

    Raises:
        Rejected: it is missing, not whole, or out of bounds.
    """
    try:
        value = number_of(metrics, name, least=least, most=most)
    except BadNumbers as wrong:  # nobody computes a count from tensors
        raise Rejected(str(wrong)) from None
    if value != int(value):
        raise Rejected(f"{name} is {value}, expected a whole number")
    return int(value)


def arrays_of(record: ArrayRecord | None, most: int) -> dict[str, NDArray[Any]]:
    """A record's arrays as they really are.

    Args:
        most: bytes that they may have together; one that has several names counts as often.

    Raises:
        Rejected: there is no record, it is too large, or an array can't be read.
    """
    if record is None:
        raise Rejected("no tensors, expected some")
    size = sum(len(array.data) for array in record.values())
    if size > most:
        raise Rejected(f"{size:,} bytes of tensors, expected at most {most:,}")
    found = {}
    for name, array in record.items():
        with _reading(f"tensor {printable(name, 60)}"):
            found[name] = array.numpy()[...]  # which an archive of arrays does not have
    return found


def update_of(record: ArrayRecord | None, current: Arrays, transport: Transport, largest: float) -> Arrays:
    """An update's tensors: the current ones' names, types and shapes, finite, and not too far from them.

    Args:
        largest: norm of the update, in norms of the current tensors.

    Raises:
        Rejected: something else came.
    """
    with _reading("the update"):
        try:
            update = transport.decode_update(arrays_of(record, _most_bytes(current)), current)
        except ValueError as wrong:
            raise Rejected(str(wrong)) from None
        _check("the update", {name: (array, current[name]) for name, array in update.items()}, current, largest)
    return update


def gradient_of(what: str, record: ArrayRecord | None, current: Arrays, transport: Transport, largest: float) -> Arrays:
    """A sum or mean of gradients: the shared tensors' names and shapes, finite, not too large.

    Args:
        what: names it.
        largest: its norm, in norms of the shared tensors.

    Raises:
        Rejected: something else came.
    """
    with _reading(f"the {what}"):
        try:
            gradient = transport.decode(arrays_of(record, _most_bytes(current)), current)
        except ValueError as wrong:
            raise Rejected(f"the {what}: {wrong}") from None
        _check(f"the {what}", {name: (array, None) for name, array in gradient.items()}, current, largest)
    return gradient


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Whatever goes wrong with what a hospital sent is its rejection, not the end of the run.

    Raises:
        Rejected: something of it can't be read.
    """
    try:
        yield
    except Rejected:
        raise
    except Exception as error:
        raise Rejected(f"{what} can't be read ({type(error).__name__})") from error


def _most_bytes(current: Arrays) -> int:
    """What no update has: every tensor twice as large, for numbers of rows and wrong types, and their heads."""
    return sum(2 * array.nbytes + _HEAD_BYTES for array in current.values())


def _check(what: str, came: Mapping[str, tuple[Float32, Float32 | None]], current: Arrays, largest: float) -> None:
    """Refuse arrays that are not finite, or as a whole too far from where they began (from 0 where that is None)."""
    squares = 0.0
    for name, (array, start) in came.items():
        square = _square(array if start is None else array - start)
        if not np.isfinite(square) and not np.isfinite(array).all():
            raise BadNumbers(f"{what}: tensor {name} holds NaN or infinity")
        squares += square
    norm, size = squares**0.5, size_of_tensors(current)
    if norm > largest * size:
        raise BadNumbers(f"{what}: its norm is {norm:.3g}, expected at most {largest:g} times {size:.3g}")


def size_of_tensors(current: Arrays) -> float:
    """The norm of all shared tensors, which others are measured by."""
    return float(sum(_square(array) for array in current.values()) ** 0.5)


def _square(array: Float32) -> float:
    """The squared norm; infinite where it is beyond float32, which no tensor that trains comes near."""
    flat = torch.from_numpy(np.ascontiguousarray(array)).flatten()
    return float(flat @ flat)


def codes_and_arrays_of(
    reply: Message, texts: set[str], arrays: set[str]
) -> tuple[Mapping[str, object], dict[str, NDArray[Any]]]:
    """A reply's lists of codes and its arrays as they really are, with these names and no others.

    Raises:
        Rejected: one is missing, nobody asked for it, or it can't be read.
    """
    codes = reply.content.config_records.get("codes", ConfigRecord())
    found = arrays_of(reply.content.array_records.get("arrays"), len(arrays) * (16 * MOST_CODES + _HEAD_BYTES))
    for there, asked in ((set(codes), texts), (set(found), arrays)):
        for name in sorted(there ^ asked):
            raise Rejected(
                f"{printable(name, 60)} {'is missing' if name in asked else 'came, and nobody asked for it'}"
            )
    return codes, found


def texts_of(lists: Mapping[str, object], name: str, most: int) -> list[str]:
    """A list of codes or drug names.

    Raises:
        Rejected: it is none or too long, or one of them is no text, empty, too long, not stripped or not printable.
    """
    found = lists[name]
    if not isinstance(found, list) or len(found) > most:
        many = f"{len(found):,} texts" if isinstance(found, list) else type(found).__name__
        raise Rejected(f"{name} is {many}, expected a list of at most {most:,} texts")
    for place, text in enumerate(found, start=1):
        if not is_code(text):
            raise Rejected(
                f"{name}: number {place} is no text of 1 to {MOST_CHARACTERS:,} printable characters without blank ends"
            )
    return list(found)


def integers_of(
    arrays: Mapping[str, NDArray[Any]],
    name: str,
    *,
    of: int | None = None,
    up_to: int | None = None,
    least: int = -(2**63),
    most: int = 2**63 - 1,
) -> Integers:
    """An array of integers.

    Args:
        of: how many they must be.
        up_to: how many they may be.
        least, most: what each of them may be.

    Raises:
        Rejected: it is something else.
    """
    array = arrays[name]
    if up_to is not None and array.size > up_to:
        raise Rejected(f"{name} has {array.size:,} numbers, expected at most {up_to:,}")
    _check_array(name, array, "int64", array.size if of is None else of)
    if array.size and not least <= array.min() <= array.max() <= most:
        wrong = array[(array < least) | (array > most)][0]
        raise Rejected(f"{name} holds {wrong}, expected {least} to {most}")
    return array


def mask_of(arrays: Mapping[str, NDArray[Any]], name: str, of: int) -> Mask:
    """An array that is true or false of so many codes.

    Raises:
        Rejected: it is something else.
    """
    _check_array(name, arrays[name], "bool", of)
    return arrays[name]


def _check_array(name: str, array: NDArray[Any], dtype: str, of: int) -> None:
    if str(array.dtype) != dtype or array.shape != (of,):
        raise Rejected(f"{name} is {printable(array.dtype, 40)}{list(array.shape)}, expected {dtype}[{of}]")


def ascending(name: str, values: list[Value]) -> list[Value]:
    """The values, if each is greater than the one before.

    Raises:
        Rejected: they are not, or one is there twice.
    """
    if any(before >= after for before, after in pairwise(values)):
        raise Rejected(f"{name}: not in ascending order, or one of them is there twice")
    return values
