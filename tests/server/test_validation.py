"""Tensors of a reply that are none, or are more than they say: its rejection, whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from server.plain_message import array_record
from server.validation import Arrays, Rejected, control_of, update_of
from shared_model.transport import Transport

CURRENT: Arrays = {"m": np.ones((7, 3), np.float32), "v": np.ones(5, np.float32)}


def _with(data: bytes) -> ArrayRecord:
    record = array_record(CURRENT)
    record["v"] = Array(dtype="float32", shape=(5,), stype="numpy.ndarray", data=data)
    return record


def _archive() -> bytes:
    file = BytesIO()
    np.savez(file, CURRENT["v"])
    return file.getvalue()


def _endless() -> bytes:
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**15,)})
    return file.getvalue()


@pytest.mark.parametrize("data", [b"", b"no array", _archive(), _endless()], ids=["none", "text", "archive", "endless"])
@pytest.mark.parametrize("read", [update_of, control_of])
def test_bytes_that_are_no_array_are_rejected_and_end_no_run(read: Callable[..., Arrays], data: bytes) -> None:
    with pytest.raises(Rejected, match="can't be read"):
        read(_with(data), CURRENT, Transport(), 10.0)


@pytest.mark.parametrize("read", [update_of, control_of])
def test_one_array_under_many_names_is_rejected_before_it_fills_the_memory(
    read: Callable[..., Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, large = array_record(CURRENT), Array(np.zeros(2000))
    monkeypatch.setattr(Array, "numpy", lambda array: pytest.fail("an array was unpacked"))
    for number in range(1000):
        record[f"x{number}"] = large
    with pytest.raises(Rejected, match=r"16,[0-9]{3},[0-9]{3} bytes of tensors, expected at most"):
        read(record, CURRENT, Transport(), 10.0)


def test_a_defect_while_an_update_is_decoded_is_told_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise IndexError("index 2147483647 is out of bounds")

    monkeypatch.setattr(Transport, "decode_update", fails)
    with pytest.raises(Rejected, match=r"the update can't be read \(IndexError\)"):
        update_of(array_record(CURRENT), CURRENT, Transport(), 10.0)
