"""What server and hospitals keep of an algorithm of two exchanges a round, in every type, whatever is lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

import shared_model.algorithms
from hospital_client.app import HospitalConfig
from server import exchange, rounds
from server.federation_settings import FederationSettings
from shared_model.algorithms import algorithms
from shared_model.errors import TemptError
from shared_model.federated_algorithm import State
from shared_model.fitting import PRETRAINING, FitFiles
from sim.inprocess_grid import InProcessGrid
from tests.server.federations import Clock, initial_tensors
from tests.sim import consortium

FOLDER = Path(__file__).parent / "new_algorithms"
DATASET = consortium.make_dataset()
SETTINGS = consortium.settings(pretraining__patience="99")
ROUNDS = 3
HOSPITALS = len(consortium.SIZES)


@pytest.fixture(scope="module", autouse=True)
def _put_there() -> Iterator[None]:
    shared_model.algorithms.__path__.append(str(FOLDER))
    algorithms.cache_clear()
    yield
    shared_model.algorithms.__path__.remove(str(FOLDER))
    algorithms.cache_clear()


class Missing(InProcessGrid):
    """A hospital's answers to some exchanges, by (round, exchange), are lost on the way back."""

    lost: set[tuple[int, int]]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        found = list(messages)
        ids = list(super().push_messages(found))
        for message, of in zip(found, ids, strict=True):
            config = message.content.config_records["config"]
            if message.metadata.dst_node_id == 8 and (config.get("round"), config.get("exchange")) in self.lost:
                self.dropped.add(of)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        return [reply for reply in replies if reply.metadata.reply_to_message_id not in self.dropped]

    dropped: set[str]


def federate(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, kill: bool = False, lost: Iterable[tuple[int, int]] = ()
) -> State:
    """The state at the end, of a server that was killed after each of its checkpoints or of none."""
    data = consortium.write_dataset(folder / "data", DATASET)
    options = FederationSettings(strategy="counting", rounds=ROUNDS, quorum=0.25, timeout=30.0)
    plan = exchange.SeedPlan("x", 42, SETTINGS, options, DATASET.vocabulary, expected=HOSPITALS)
    grid = Missing({h: HospitalConfig(data, h, folder) for h in consortium.SIZES}, None)
    grid.lost, grid.dropped = set(lost), set()
    hospitals, _ = exchange.greet(grid, plan)
    files, save, last = FitFiles.of(folder, 42, PRETRAINING, 0), rounds._Rounds.save, State()

    def saved(state: rounds._Rounds, path: Path) -> None:
        save(state, path)
        last.clear()
        last.update(state.state)
        if kill:
            raise KeyboardInterrupt

    monkeypatch.setattr(rounds._Rounds, "save", saved)
    clock = Clock()
    monkeypatch.setattr(exchange, "time", clock)
    monkeypatch.setattr(rounds, "time", clock)
    initial = initial_tensors(SETTINGS, DATASET, 42)
    for _ in range(20):
        try:
            rounds.pretrain(grid, plan, hospitals, initial, files, lambda row: None)
            break
        except KeyboardInterrupt:
            continue
    return last


def assert_same_state(one: State, other: State) -> None:
    assert list(one) == list(other)
    for part, of in one.items():
        assert list(of) == list(other[part])
        for name, array in of.items():
            found = other[part][name]
            assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


@pytest.mark.parametrize("lost", [((2, 0),), ((1, 1), (3, 0), (3, 1))])
def test_both_sides_keep_what_made_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[tuple[int, int], ...]
) -> None:
    """By hand: a hospital counts the exchanges of which its answer was taken; the server knows the last first one."""
    state = federate(tmp_path / "whole", monkeypatch, lost=lost)
    counts, kept = dict.fromkeys(consortium.SIZES, 0), dict.fromkeys(consortium.SIZES, 0)
    for number in range(1, ROUNDS + 1):
        for turn in (0, 1):
            there = [h for h in counts if not (h == 8 and (number, turn) in lost)]
            own, before = sum(counts[h] + 1 for h in there), sum(kept[h] for h in there)
            assert state["history"][f"{number}.{turn}"].tolist() == [own, before], (number, turn)
            counts |= {h: counts[h] + 1 for h in there}
            if not turn:
                kept |= {h: counts[h] for h in there}
    assert state["sums"]["exchanges"].item() == 2**53 + 2 * ROUNDS
    assert state["sums"]["tenths"].item() == sum([0.1] * 2 * ROUNDS)
    assert state["best"]["round"].tolist() == [ROUNDS]
    assert_same_state(state, federate(tmp_path / "killed", monkeypatch, kill=True, lost=lost))


def test_what_the_server_keeps_is_two_files_a_hospital_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federate(tmp_path, monkeypatch)
    folder = FitFiles.of(tmp_path, 42, PRETRAINING, 0).tensors.with_suffix(".controls")
    assert len(list(folder.iterdir())) == 2 * HOSPITALS


def test_an_algorithm_that_leaves_no_state_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared_model.algorithms import algorithm

    plain = algorithm("counting").finish
    assert not isinstance(plain, str)

    def doubled(*words: object) -> State:
        made = plain(*words)  # type: ignore[arg-type]
        return made | {"now": {name: array.astype(np.float64) for name, array in made["now"].items()}}

    monkeypatch.setitem(algorithm("counting").__dict__, "finish", doubled)
    with pytest.raises(TemptError, match=r"strategy 'counting': the shared tensor .* is float64.*, expected float32"):
        federate(tmp_path, monkeypatch)
