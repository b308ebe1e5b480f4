"""The ledger of everything that leaves a hospital, and the list of what may.

A reply is checked before it is handed over: a name, type or shape that its kind does not allow never leaves.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared_model.files import private_directory
from shared_model.transport import Transport

Arrays = Mapping[str, NDArray[np.generic]]
Numbers = Mapping[str, int | float]
Texts = Mapping[str, str]

_METRIC = r"[a-z][a-z-]*\.(records|prauc|jaccard|f1|medications|best_epoch|seconds\.(fit|evaluation))"
ALLOWED_NUMBERS = {
    "hello": re.compile("hospital|train|validation|test"),
    "pretrain": re.compile("hospital|num-examples|loss|score-sum"),
    "tune": re.compile(f"hospital|{_METRIC}"),
}
"""The numbers that a reply of each kind may hold, by name."""
ALLOWED_TEXTS = {"hello": {"vocabulary"}, "pretrain": set[str](), "tune": set[str]()}
"""The texts: digests, never a code or an id."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check(
    kind: str,
    arrays: Arrays,
    numbers: Numbers,
    texts: Texts,
    shapes: Mapping[str, tuple[int, ...]],
    transport: Transport,
) -> None:
    """Refuse a reply that holds anything but what its kind allows.

    Args:
        shapes: of the tensors that the message asked for.
        transport: how they are written.

    Raises:
        ValueError: what is not allowed is named, not shown.
    """
    for name, array in arrays.items():
        if not transport.may_leave(name, array, shapes):
            raise ValueError(f"an array '{name}' must not leave in a reply to '{kind}'")
    for name, number in numbers.items():
        if not ALLOWED_NUMBERS[kind].fullmatch(name) or type(number) not in (int, float):
            raise ValueError(f"a number '{name}' must not leave in a reply to '{kind}'")
    for name, text in texts.items():
        if name not in ALLOWED_TEXTS[kind] or not _DIGEST.fullmatch(text):
            raise ValueError(f"a text '{name}' must not leave in a reply to '{kind}'")


def record(ledger: Path, kind: str, number: int, arrays: Arrays, numbers: Numbers, texts: Texts) -> None:
    """Add a line to the ledger: what leaves, its size, and a digest of its content."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    line = {
        "kind": kind,
        "round": number,
        "arrays": {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()},
        "bytes": sum(array.nbytes for array in arrays.values()),
        "digest": digest.hexdigest(),
        "numbers": dict(numbers),
        "texts": dict(texts),
    }
    private_directory(ledger.parent)
    with ledger.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
