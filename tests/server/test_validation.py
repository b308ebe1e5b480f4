"""What is wrong with a reply is its rejection, in words that do no harm where they are read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import BytesIO

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from server.exchange import error_of
from server.plain_message import array_record, plain_message
from server.validation import Rejected, codes_and_arrays_of, count_of, gradient_of, number_of, update_of
from shared_model.federated_algorithm import Arrays
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
@pytest.mark.parametrize("read", [update_of, partial(gradient_of, "control")])
def test_bytes_that_are_no_array_are_rejected_and_end_no_run(read: Callable[..., Arrays], data: bytes) -> None:
    with pytest.raises(Rejected, match="can't be read"):
        read(_with(data), CURRENT, Transport(), 10.0)


@pytest.mark.parametrize("read", [update_of, partial(gradient_of, "control")])
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


EVIL = "a\x1b[2J\r\n202\u202e\ud800 \x9b31m" + "e" * 1000


def _array(name: str, array: np.ndarray) -> ArrayRecord:
    return array_record(CURRENT | {name: array})


def _rows() -> ArrayRecord:
    return array_record(CURRENT | {f"{EVIL}/rows": np.zeros(1, np.int32)})


def _codes(codes: dict[str, list[str]], arrays: ArrayRecord) -> None:
    content = RecordDict({"codes": ConfigRecord(dict(codes)), "arrays": arrays})
    codes_and_arrays_of(plain_message(content, "query"), {"diagnoses"}, {"m", "v"})


WAYS: dict[str, Callable[[], object]] = {
    "an unknown tensor": lambda: update_of(_array(EVIL, CURRENT["v"]), CURRENT, Transport(), 10.0),
    "unknown rows": lambda: update_of(_rows(), CURRENT, Transport(changed_rows=True), 10.0),
    "an unknown control": lambda: gradient_of("control", _array(EVIL, CURRENT["v"]), CURRENT, Transport(), 10.0),
    "a tensor of fields": lambda: update_of(
        _array("v", np.zeros(5, [(EVIL.replace("\ud800", ""), "f4")])), CURRENT, Transport(), 10.0
    ),
    "a tensor that is none": lambda: update_of(
        ArrayRecord({EVIL: Array(dtype="x", shape=(1,), stype="numpy.ndarray", data=b"no")}), CURRENT, Transport(), 10.0
    ),
    "an unknown list": lambda: _codes({"diagnoses": [], EVIL: []}, array_record(CURRENT)),
    "an unknown array": lambda: _codes({"diagnoses": []}, _array(EVIL, CURRENT["v"])),
    "a number that is a text": lambda: number_of({"loss": EVIL}, "loss"),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_hospital_names_moves_no_cursor_of_the_operators_and_makes_no_line(way: str) -> None:
    with pytest.raises(Rejected) as caught:
        WAYS[way]()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200


def test_a_hospitals_error_moves_no_cursor_of_the_operators() -> None:
    reply = Message(Error(100, EVIL), reply_to=plain_message(RecordDict({}), "query"))
    assert error_of(reply).startswith(r"error 100: a\x1b[2J 202\u202e\ud800 \x9b31mee")
    assert error_of(reply).isprintable() and len(error_of(reply)) == 200


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "it was not there before the message's time was over"),
        (4, "its reply was gone before it was fetched"),
        (5, "it went away: no heartbeat of its SuperNode came for a minute"),
        (8, "the process of its work was stopped or killed before it answered"),
        (2, "error 2: raw"),
        (100, "error 100: raw"),
    ],
)
def test_what_flower_says_of_a_hospital_is_told_in_our_words(code: int, words: str) -> None:
    reply = Message(Error(code, "raw"), reply_to=plain_message(RecordDict({}), "query"))
    assert error_of(reply) == words


@pytest.mark.parametrize("told", [7, float("nan"), -1])
def test_a_count_out_of_bounds_blamed_the_tensors(told: float) -> None:
    with pytest.raises(Rejected) as why:
        count_of({"control-is-new": told}, "control-is-new", most=1)
    assert type(why.value) is Rejected
