"""Tensors in messages: whole ones come back bit for bit, smaller ones as near as bfloat16 allows, wrong ones never."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared_model.transport import Transport

EVERY = [Transport(b, c) for b in (False, True) for c in (False, True)]


def made(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        name: draw.normal(size=shape).astype(np.float32) for name, shape in (("m", (7, 3)), ("v", (5,)), ("n", (2, 3)))
    }


def moved() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Tensors before and after a hospital's work: two rows of m moved, all of v and n."""
    before, step = made(1), made(2)
    after = {name: before[name] + np.float32(1e-3) * step[name] for name in before}
    after["m"] = before["m"].copy()
    after["m"][[1, 4]] += np.float32(1e-3) * step["m"][[1, 4]]
    return before, after


@pytest.mark.parametrize("transport", EVERY)
def test_update_comes_back(transport: Transport) -> None:
    before, after = moved()
    start = transport.decode(transport.encode(before))
    encoded = transport.encode_update({n: start[n] + (after[n] - before[n]) for n in after}, start)
    found = transport.decode_update(encoded, before)
    for name in after:
        if transport.bfloat16:
            assert found[name] - before[name] == pytest.approx(after[name] - before[name], rel=2**-8, abs=1e-6)
        else:
            assert np.array_equal(found[name], after[name])


def test_bfloat16_at_the_server_keeps_what_eight_bits_of_the_weight_would_lose() -> None:
    """A weight of 1 that moves by 1e-4 in each of ten rounds: as a bfloat16 it would stay where it is."""
    transport = Transport(bfloat16=True)
    current = {"w": np.ones(3, np.float32)}
    for _ in range(10):
        start = transport.decode(transport.encode(current))
        assert start["w"].tolist() == [1.0] * 3
        encoded = transport.encode_update({"w": start["w"] + np.float32(1e-4)}, start)
        current = transport.decode_update(encoded, current)
    assert current["w"] == pytest.approx(1 + 1e-3, abs=1e-5)


def test_bfloat16_is_torchs_rounding() -> None:
    array = made(3)["m"]
    (found,) = Transport(bfloat16=True).decode(Transport(bfloat16=True).encode({"m": array})).values()
    assert torch.equal(torch.from_numpy(found), torch.from_numpy(array).bfloat16().float())


@pytest.mark.parametrize("bfloat16", [False, True])
def test_sizes_are_what_they_should_be(bfloat16: bool) -> None:
    before, after = moved()
    whole = sum(array.nbytes for array in Transport(bfloat16, False).encode_update(after, before).values())
    some = sum(array.nbytes for array in Transport(bfloat16, True).encode_update(after, before).values())
    width = 2 if bfloat16 else 4
    assert whole == (21 + 5 + 6) * width
    assert some == whole - 5 * 3 * width + 2 * 4, "five rows less, the numbers of two"


def test_rows_that_did_not_move_at_all_are_none() -> None:
    before, _ = moved()
    encoded = Transport(changed_rows=True).encode_update(before, before)
    assert encoded["m"].shape == (0, 3) and encoded["m/rows"].shape == (0,)
    assert all(
        np.array_equal(a, before[n]) for n, a in Transport(changed_rows=True).decode_update(encoded, before).items()
    )


WRONG = {
    "missing": ({"m": None}, "tensor m is missing"),
    "unknown": ({"x": np.zeros(3, np.float32)}, "tensor x is unknown"),
    "double": ({"v": np.zeros(5)}, r"tensor v is float64\[5\], expected float32\[5\]"),
    "shape": ({"v": np.zeros(4, np.float32)}, r"tensor v is float32\[4\], expected float32\[5\]"),
    "rows without numbers": ({"m/rows": None}, r"tensor m is float32\[2, 3\], expected float32\[7, 3\]"),
    "rows beyond": ({"m/rows": np.array([1, 7], np.int32)}, "no ascending numbers of its 7 rows"),
    "rows below": ({"m/rows": np.array([-1, 4], np.int32)}, "no ascending numbers"),
    "rows twice": ({"m/rows": np.array([4, 4], np.int32)}, "no ascending numbers"),
    "rows whose differences overflow": (
        {"m/rows": np.array([0, 2**31 - 1, -(2**31), -1, 5], np.int32), "m": np.zeros((5, 3), np.float32)},
        "no ascending numbers",
    ),
    "rows as numbers of 64 bits": ({"m/rows": np.array([1, 4])}, "no ascending numbers"),
    "rows of a vector": ({"v/rows": np.arange(5, dtype=np.int32)}, "no ascending numbers of its 5 rows"),
    "rows of nothing": ({"x/rows": np.arange(5, dtype=np.int32)}, "tensor x/rows is unknown"),
    "more rows than numbers": ({"m": np.zeros((3, 3), np.float32)}, r"expected float32\[2, 3\]"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_not_expected_is_refused_by_name(fault: str) -> None:
    before, after = moved()
    changed, words = WRONG[fault]
    encoded = Transport(changed_rows=True).encode_update(after, before) | changed
    with pytest.raises(ValueError, match=words):
        Transport(changed_rows=True).decode_update({n: a for n, a in encoded.items() if a is not None}, before)


def test_rows_are_refused_where_whole_tensors_were_agreed() -> None:
    before, after = moved()
    with pytest.raises(ValueError, match="tensor m/rows is unknown"):
        Transport().decode_update(Transport(changed_rows=True).encode_update(after, before), before)


@pytest.mark.parametrize("transport", EVERY)
def test_what_an_update_holds_may_leave_and_nothing_else(transport: Transport) -> None:
    before, after = moved()
    shapes = {name: array.shape for name, array in before.items()}
    for name, array in transport.encode_update(after, before).items():
        assert transport.may_leave(name, array, shapes), name
    dtype = np.uint16 if transport.bfloat16 else np.float32
    for name, array in {
        "x": np.zeros(3, dtype),
        "m": np.zeros((8, 3), dtype),
        "v": np.zeros(5, np.int64),
        "v/rows": np.zeros(6, np.int32),
        "m/rows": np.zeros(3, np.int64),
    }.items():
        assert not transport.may_leave(name, array, shapes), name
