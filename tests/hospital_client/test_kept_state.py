"""What a hospital keeps is of the last answer that the server took, whatever happened to others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hospital_client.kept_state import KeptState


def of(number: float) -> dict[str, torch.Tensor]:
    return {"step": torch.tensor([number])}


def found(state: KeptState, taken: int) -> float | None:
    tensors = state.restore_after(taken, torch.device("cpu"))
    return None if tensors is None else tensors["step"].item()


def test_an_update_that_was_taken_is_gone_on_with_and_one_that_was_not_is_forgotten(tmp_path: Path) -> None:
    state = KeptState(tmp_path / "a" / "hospital", "scaffold")
    assert found(state, 0) is None
    state.stage(1, of(1))
    assert found(state, 1) == 1
    state.stage(2, of(2))
    assert found(state, 1) == 1, "round 2's update was not taken"
    state.stage(3, of(3))
    assert found(state, 3) == 3
    assert found(state, 3) == 3, "asked twice"


def test_a_round_that_is_asked_for_again_begins_from_the_same_state(tmp_path: Path) -> None:
    state = KeptState(tmp_path, "scaffold")
    state.stage(1, of(1))
    assert found(state, 1) == 1
    state.stage(2, of(2))
    assert found(state, 1) == 1
    state.stage(2, of(2.5))
    assert found(state, 2) == 2.5


def test_an_update_that_the_server_takes_back_is_undone_once(tmp_path: Path) -> None:
    """Its round is done again from the state before, also if another round has been worked on since."""
    state = KeptState(tmp_path, "scaffold")
    for number in (1, 2, 3):
        state.stage(number, of(number))
        assert found(state, number) == number
    state.stage(4, of(4))
    assert found(state, 2) == 2
    state.stage(3, of(3.5))
    assert found(state, 3) == 3.5
    assert found(state, 2) == 2, "again"
    assert found(state, 1) is None, "the state before that is gone"


def test_an_only_update_that_the_server_takes_back_leaves_nothing(tmp_path: Path) -> None:
    state = KeptState(tmp_path, "scaffold")
    state.stage(1, of(1))
    assert found(state, 1) == 1
    assert found(state, 0) is None
    assert not list(tmp_path.glob("*"))


def test_a_first_update_that_was_never_taken_leaves_nothing(tmp_path: Path) -> None:
    state = KeptState(tmp_path, "scaffold")
    state.stage(1, of(1))
    assert found(state, 0) is None
    assert not list(tmp_path.glob("*"))


@pytest.mark.parametrize("name", ["kept.safetensors", "pending.safetensors"])
def test_a_damaged_file_is_as_a_lost_one(tmp_path: Path, name: str) -> None:
    state = KeptState(tmp_path, "scaffold")
    state.stage(1, of(1))
    if name.startswith("kept"):
        assert found(state, 1) == 1
    (tmp_path / name).write_bytes(b"half")
    assert found(state, 1) is None
    state.stage(2, of(2))
    assert found(state, 2) == 2


def test_what_is_forgotten_is_gone_and_others_stay(tmp_path: Path) -> None:
    one, other = KeptState(tmp_path / "1", "scaffold"), KeptState(tmp_path / "2", "scaffold")
    one.stage(1, of(1))
    other.stage(1, of(7))
    one.forget()
    assert found(one, 1) is None and found(other, 1) == 7


def test_a_message_that_names_a_wrong_exchange_costs_nothing(tmp_path: Path) -> None:
    state = KeptState(tmp_path, "scaffold")
    for serial in (1, 2, 3):
        state.stage(serial, of(serial))
        assert found(state, serial) == serial
    assert found(state, 1) is None, "before the one before"
    assert found(state, 3) == 3
    state.stage(4, of(4))
    assert found(state, 1) is None
    assert found(state, 4) == 4, "an answer that waits for the server's word"


def test_what_another_algorithm_keeps_is_none_to_go_on_with(tmp_path: Path) -> None:
    KeptState(tmp_path, "scaffold").stage(1, of(1))
    assert found(KeptState(tmp_path, "other"), 1) is None


def test_what_is_kept_comes_to_the_device_that_asks(tmp_path: Path) -> None:
    state = KeptState(tmp_path, "scaffold")
    state.stage(1, of(1))
    tensors = state.restore_after(1, torch.device("meta"))
    assert tensors is not None and tensors["step"].device.type == "meta"
