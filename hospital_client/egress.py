"""The ledger of everything that leaves a hospital, and the list of what may.

A reply is checked before it is handed over: a name, type or shape that its kind does not allow never leaves.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared_model.federated_algorithm import Algorithm
from shared_model.files import private_directory
from shared_model.metric_names import MEASURED
from shared_model.transport import Transport
from shared_model.vocabulary_rules import MOST_CODES, is_code

Arrays = Mapping[str, NDArray[np.generic]]
Numbers = Mapping[str, int | float]
Texts = Mapping[str, str]
Codes = Mapping[str, list[str]]

_METRIC = rf"[A-Za-z][A-Za-z0-9-]*\.(records|{'|'.join(MEASURED)}|best_epoch|seconds\.(fit|evaluation))"
_LEAST = "least-(train|validation|test)"  # records, below which the policy lets nothing leave that stands on them
ALLOWED_NUMBERS = {
    "vocabulary_counts": re.compile("hospital|minimum-count"),
    "vocabulary_remaining": re.compile("hospital|records"),
    "hello": re.compile(f"hospital|train|validation|test|{_LEAST}"),
    "pretrain": re.compile(f"hospital|num-examples|loss|score-sum|{_LEAST}"),
    "tune": re.compile(f"hospital|{_METRIC}|{_LEAST}"),
}
"""The numbers that a reply of each kind may hold, by name; an algorithm's own come to those of a round."""
ALLOWED_TEXTS = {"hello": {"vocabulary"}, "vocabulary_counts": {"vocabulary"}}
"""The texts: digests, never a code or an id."""
ALLOWED_CODES = {"vocabulary_counts": {"diagnoses", "procedures"}, "vocabulary_remaining": {"names"}}
"""Lists of codes and drug names, which leave in the vocabulary agreement alone."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check(kind: str, numbers: Numbers, texts: Texts, more: Mapping[str, tuple[int, int]] | None = None) -> None:
    """Refuse a reply whose numbers or texts are not those that its kind allows.

    Args:
        more: whole numbers that the message's algorithm has besides, with their least and most.

    Raises:
        ValueError: what is not allowed is named, not shown.
    """
    for name, number in numbers.items():
        bounds = (more or {}).get(name)
        is_own = bounds is not None and type(number) is int and bounds[0] <= number <= bounds[1]
        is_known = ALLOWED_NUMBERS[kind].fullmatch(name) and type(number) in (int, float)
        if not (is_own or is_known):
            raise ValueError(f"a number '{name}' must not leave in a reply to '{kind}'")
    for name, text in texts.items():
        if name not in ALLOWED_TEXTS.get(kind, ()) or not _DIGEST.fullmatch(text):
            raise ValueError(f"a text '{name}' must not leave in a reply to '{kind}'")


def check_arrays(
    arrays: Mapping[str, Arrays],
    algorithm: Algorithm | None,
    shapes: Mapping[str, tuple[int, ...]],
    transport: Transport,
) -> None:
    """Refuse arrays that are not those that an algorithm tells.

    Args:
        arrays: by part.
        algorithm: None where no array may leave.
        shapes: of the tensors that the message asked for.
        transport: how they are written.

    Raises:
        ValueError: what is not allowed is named, not shown.
    """
    for part, of in arrays.items():
        kind = None if algorithm is None else algorithm.tells.get(part)
        written = transport if kind == "update" else replace(transport, changed_rows=False)
        for name, array in of.items():
            if kind is None or not written.may_leave(name, array, shapes):
                raise ValueError(f"an array '{name}' of '{part}' must not leave")


def check_agreement(kind: str, arrays: Arrays, codes: Codes, cut: Mapping[str, int], minimum: int) -> None:
    """Refuse a reply of the vocabulary agreement that holds anything but sums of codes that enough stays have.

    Args:
        cut: how many diagnoses, procedures and medications the message names.
        minimum: stays below which a code is not told.

    Raises:
        ValueError: what is not allowed is named, not shown.
    """
    for name, texts in codes.items():
        if name not in ALLOWED_CODES[kind] or len(texts) > MOST_CODES:
            raise ValueError(f"{len(texts)} codes '{name}' must not leave in a reply to '{kind}'")
        if not all(map(is_code, texts)):
            raise ValueError(f"a code of '{name}' is no text that hospitals tell each other: it must not leave")
    allowed = _agreement_arrays(kind, arrays, codes, cut)
    for name, array in arrays.items():
        if (str(array.dtype), array.shape) != allowed.get(name):
            raise ValueError(f"an array '{name}' must not leave in a reply to '{kind}'")
        if name.endswith("-counts") and array.size and array.min() < minimum:
            raise ValueError(f"a count of '{name}' is below the minimum of {minimum}: it must not leave")


def _agreement_arrays(
    kind: str, arrays: Arrays, codes: Codes, cut: Mapping[str, int]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The type and shape of each array that a reply of the agreement may hold."""
    if kind == "vocabulary_counts":
        counted = len(codes.get("procedures", ()))
        medications = min(arrays["medications"].size if "medications" in arrays else 0, MOST_CODES)
        sizes = {"procedure-counts": counted, "medications": medications, "medication-counts": medications}
    else:
        sizes = {"named": len(codes.get("names", ()))}
    masks = [(modality, "bool", size) for modality, size in cut.items()]
    return {name: (dtype, (size,)) for name, dtype, size in masks + [(n, "int64", s) for n, s in sizes.items()]}


def digest_of(arrays: Arrays, codes: Codes) -> str:
    """SHA-256 of what arrays and lists of codes hold."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    for name in sorted(codes):
        digest.update(name.encode() + _joined(codes[name]))
    return digest.hexdigest()


def _joined(codes: list[str]) -> bytes:
    return "\0".join(codes).encode()


def record(
    ledger: Path,
    kind: str,
    number: int,
    arrays: Arrays,
    numbers: Numbers,
    texts: Texts,
    codes: Codes | None = None,
    asked: Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
) -> None:
    """Add a line to the ledger: what leaves, its size, and a digest of its content.

    Args:
        asked: sizes and digest of the cut or vocabulary that the reply stands on, if the message held one.
        request: the message's seed, settings, and number among those that the policy counts, as far as it has them.
    """
    codes = {} if codes is None else codes
    line: dict[str, Any] = {
        "kind": kind,
        "round": number,
        "arrays": {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()},
        "bytes": sum(array.nbytes for array in arrays.values()),
        "digest": digest_of(arrays, codes),
        "numbers": dict(numbers),
        "texts": dict(texts),
    }
    if codes:
        line["codes"] = {name: [len(found), len(_joined(found))] for name, found in codes.items()}  # how many, bytes
    if asked:
        line["asked"] = dict(asked)
    line |= request or {}
    private_directory(ledger.parent)
    _append(ledger, json.dumps(line).encode() + b"\n")


def _append(path: Path, line: bytes) -> None:
    """Add a line, in the place of half a one that a killed process has left; all of it or, on a full disk, nothing."""
    with path.open("ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.seek(0)
                end = file.read().rfind(b"\n") + 1
                file.truncate(end)
        try:
            written = file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            file.truncate(end)
            raise OSError(error.errno, error.strerror, str(path)) from None
