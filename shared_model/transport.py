"""How shared tensors travel: whole in float32, or smaller.

bfloat16 halves every message. A hospital then sends what its tensors have moved by, not where they are, so that the
server, which adds it to its own float32 tensors, keeps what is too small for eight bits of mantissa. As NumPy has no
bfloat16, its bits travel as uint16. With changed rows alone, a matrix of which a hospital moved some rows (the
embeddings, of which it moves those of its own codes) travels as these rows and their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from shared_model.errors import printable

Float32 = NDArray[np.float32]
Arrays = Mapping[str, Float32]
Encoded = dict[str, NDArray[Any]]
_ROWS = "/rows"


@dataclass(frozen=True)
class Transport:
    """How both sides of a federation write tensors into messages."""

    bfloat16: bool = False
    changed_rows: bool = False

    def encode(self, arrays: Arrays) -> Encoded:
        """Values, as they are sent to a hospital."""
        return {name: _to_bfloat16(array) for name, array in arrays.items()} if self.bfloat16 else dict(arrays)

    def decode(self, encoded: Mapping[str, NDArray[Any]], like: Arrays | None = None) -> dict[str, Float32]:
        """The values again, rounded by bfloat16.

        Args:
            like: arrays whose names and shapes are expected, if the sender is not to be trusted.

        Raises:
            ValueError: the first array that is not what is expected, with what was found.
        """
        if like is not None:
            _check_names(set(encoded), set(like))
            for name, array in like.items():
                self._check(name, encoded[name], array.shape)
        return {name: _from_bfloat16(array) if self.bfloat16 else array for name, array in encoded.items()}

    def encode_update(self, after: Arrays, before: Arrays) -> Encoded:
        """What a hospital sends back.

        Args:
            before: what it was sent, decoded.
        """
        encoded: Encoded = {}
        for name, now in after.items():
            start = before[name]
            if self.changed_rows and now.ndim == 2 and not (moved := (now != start).any(1)).all():
                rows = np.flatnonzero(moved)
                encoded[f"{name}{_ROWS}"] = rows.astype(np.int32)
                now, start = now[rows], start[rows]
            encoded[name] = _to_bfloat16(now - start) if self.bfloat16 else np.ascontiguousarray(now)
        return encoded

    def decode_update(self, encoded: Mapping[str, NDArray[Any]], current: Arrays) -> dict[str, Float32]:
        """The hospital's tensors, from what it sent and the server's own.

        Raises:
            ValueError: the first array that is not what is expected, with what was found.
        """
        _check_names({name for name in encoded if not name.endswith(_ROWS)}, set(current))
        for name in encoded:
            if name.endswith(_ROWS) and not (self.changed_rows and name.removesuffix(_ROWS) in current):
                raise ValueError(f"tensor {printable(name, 60)} is unknown")
        update: dict[str, Float32] = {}
        for name, start in current.items():
            array, rows = encoded[name], encoded.get(f"{name}{_ROWS}")
            if rows is None:
                self._check(name, array, start.shape)
                update[name] = start + _from_bfloat16(array) if self.bfloat16 else array
                continue
            if (
                start.ndim != 2
                or rows.dtype != np.int32
                or rows.ndim != 1
                or ((rows < 0) | (rows >= len(start))).any()
                or (rows[1:] <= rows[:-1]).any()  # np.diff would overflow
            ):
                raise ValueError(f"tensor {name}{_ROWS} holds no ascending numbers of its {len(start)} rows")
            self._check(name, array, (len(rows), start.shape[1]))
            update[name] = start.copy()
            update[name][rows] = start[rows] + _from_bfloat16(array) if self.bfloat16 else array
        return update

    def may_leave(self, name: str, array: NDArray[Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether an array is one that an update of tensors of these shapes may hold."""
        whole = name.removesuffix(_ROWS)
        if whole not in shapes:
            return False
        if name != whole:
            return self.changed_rows and array.dtype == np.int32 and array.ndim == 1 and len(array) <= shapes[whole][0]
        fits = array.shape == shapes[name] or (
            self.changed_rows
            and array.ndim == 2
            and array.shape[1:] == shapes[name][1:]
            and len(array) <= shapes[name][0]
        )
        return fits and array.dtype == self._dtype

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if self.bfloat16 else np.float32)

    def _check(self, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
        if array.dtype != self._dtype or array.shape != shape:
            found, expected = f"{printable(array.dtype, 40)}{list(array.shape)}", f"{self._dtype}{list(shape)}"
            raise ValueError(f"tensor {name} is {found}, expected {expected}")


def _check_names(found: set[str], expected: set[str]) -> None:
    missing, strange = sorted(expected - found), sorted(found - expected)
    if missing:
        raise ValueError(f"tensor {missing[0]} is missing")
    if strange:
        raise ValueError(f"tensor {printable(strange[0], 60)} is unknown")


def _to_bfloat16(array: Float32) -> NDArray[np.uint16]:
    rounded = torch.from_numpy(np.ascontiguousarray(array)).to(torch.bfloat16)
    return cast("NDArray[np.uint16]", rounded.view(torch.uint16).numpy())


def _from_bfloat16(array: NDArray[Any]) -> Float32:
    bits = torch.from_numpy(np.ascontiguousarray(array)).view(torch.bfloat16)
    return cast(Float32, bits.float().numpy())
