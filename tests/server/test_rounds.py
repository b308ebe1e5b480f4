"""Rounds against an oracle in plain numbers: hospitals here are functions, so that every mean can be made by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from server import exchange, rounds
from server.exchange import Hospital
from server.federation_settings import FederationSettings
from server.plain_message import plain_message
from shared_model import checkpoint
from shared_model.errors import TemptError, TooFewHospitals
from shared_model.fitting import PRETRAINING, FitFiles
from tests.server.test_faults import Clock
from tests.sim import consortium

INITIAL = {"w": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), "b": np.array([0.5], np.float32)}
HOSPITALS = [Hospital(3, 1, 30, 5, 4), Hospital(8, 2, 10, 2, 1), Hospital(21, 3, 60, 0, 3)]
Step = Callable[[int, int], float]  # (hospital, round) -> how far every weight moves


class Made(Grid):
    """Hospitals whose tensors move by `step`, whose scores are `score`; replies come in an order of chance."""

    def __init__(self, step: Step, score: Callable[[int, int], float | None], seed: int = 1) -> None:
        self._step, self._score, self._chance = step, score, random.Random(seed)
        self._queue: list[Message] = []
        self._count = 0
        self.sent: list[Message] = []

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any: ...

    def get_node_ids(self) -> Iterable[int]:
        return [h.node for h in HOSPITALS if h.node is not None]

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        self._count += 1
        return plain_message(content, message_type, dst_node_id, number=self._count, group=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        found = list(messages)
        self._queue += found
        self.sent += found
        return [message.metadata.message_id for message in found]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        ready = [message for message in self._queue if message.metadata.message_id in wanted]
        if not ready or self._chance.random() < 0.5:
            return []
        message = self._chance.choice(ready)
        self._queue.remove(message)
        return [self._answer(message)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def _answer(self, message: Message) -> Message:
        hospital = next(h for h in HOSPITALS if h.node == message.metadata.dst_node_id)
        config = message.content.config_records["config"]
        number = int(config["round"])  # type: ignore[arg-type]
        numbers: dict[str, float] = {"hospital": hospital.hospital, "num-examples": hospital.train}
        if config["score"]:
            score = self._score(hospital.hospital, number - 1)
            if score is None:
                return Message(Error(5, "Node Unavailable"), reply_to=message)
            numbers["score-sum"] = score * hospital.validation
        records: dict[str, Any] = {}
        if config["train"]:
            numbers["loss"] = 0.25 * hospital.hospital
            step = np.float32(self._step(hospital.hospital, number))
            arrays = {n: a.numpy() + step for n, a in message.content.array_records["arrays"].items()}
            records["arrays"] = ArrayRecord({n: Array(a) for n, a in arrays.items()})
            if "control" in message.content:
                # a hospital whose raw gradient is minus its step, so that c_i+ - c_i is told
                own = self._step(hospital.hospital, number - 1) if config["last-accepted"] else 0.0
                moved = {n: np.full_like(a, -step + np.float32(own)) for n, a in INITIAL.items()}
                records["control"] = ArrayRecord({n: Array(a) for n, a in moved.items()})
        return Message(RecordDict({"metrics": MetricRecord(numbers), **records}), reply_to=message)


def run(
    tmp_path: Path, grid: Made, hospitals: list[Hospital] = HOSPITALS, expected: int = 3, **federation: Any
) -> dict[str, Any]:
    settings = consortium.settings(pretraining__patience="2", pretraining__epochs="9")
    options = FederationSettings(**{"rounds": 3, **federation})
    plan = exchange.SeedPlan("test", 42, settings, options, consortium.VOCABULARY, expected=expected)
    files = FitFiles.of(tmp_path, 42, PRETRAINING, 0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exchange, "time", Clock())
        return rounds.pretrain(grid, plan, hospitals, INITIAL, files, lambda row: None)


def tensors(tmp_path: Path) -> dict[str, np.ndarray]:
    return {n: t.numpy() for n, t in checkpoint.load(FitFiles.of(tmp_path, 42, PRETRAINING, 0).tensors)[0].items()}


STEPS = {
    **{(3, 1): 0.5, (8, 1): -1.0, (21, 1): 0.25},
    **{(3, 2): 0.1, (8, 2): 0.3, (21, 2): -0.2},
    **{(3, 3): 0.0, (8, 3): 1.0, (21, 3): 2.0},
}


def step(hospital: int, number: int) -> float:
    return STEPS.get((hospital, number), 0.0)


def rising(hospital: int, number: int) -> float:
    return 0.1 * number


def test_a_round_of_fewer_answers_than_its_algorithm_needs_is_below_the_quorum(tmp_path: Path) -> None:
    """Of two updates a trimmed mean trims none, whatever the quorum is."""
    grid = Made(step, lambda hospital, number: None if (hospital, number) == (8, 1) else 0.1)
    words = r"round 2: the updates of 2 of 3 hospitals could be taken, fedtrimmedavg needs 3 \(beta=0\.4\); hospital 8"
    with pytest.raises(TooFewHospitals, match=words):
        run(tmp_path, grid, strategy="fedtrimmedavg", options={"beta": 0.4}, quorum=0.5)


def test_no_round_is_told_that_was_not_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The score of the last round comes with one message more."""
    caplog.set_level("INFO", "tempt.server")
    grid = Made(step, lambda hospital, number: None if (hospital, number) == (8, 2) else 0.1)
    run(tmp_path, grid, rounds=2)
    told = [record.getMessage() for record in caplog.records]
    away = (
        "the last round's score: hospital 8 is left out: it went away: no heartbeat of its SuperNode came for a minute"
    )
    assert away in told
    assert not any("round 3" in line or "error 5" in line for line in told), told


def mean_step(number: int) -> float:
    return (30 * step(3, number) + 10 * step(8, number) + 60 * step(21, number)) / 100


def test_updates_are_weighted_by_training_records_and_scores_by_validation_records(tmp_path: Path) -> None:
    scores = {3: [0.2, 0.4, 0.3], 8: [0.9, 0.1, 0.9]}
    result = run(tmp_path, Made(step, lambda hospital, number: scores[hospital][number - 1]))
    rows = result["history"]
    assert [row["score"] for row in rows] == pytest.approx([(5 * 0.2 + 2 * 0.9) / 7, (2 + 0.2) / 7, (1.5 + 1.8) / 7])
    assert [row["loss"] for row in rows] == pytest.approx([0.25 * (3 * 30 + 8 * 10 + 21 * 60) / 100] * 3)
    assert [row["best"] for row in rows] == [True, False, True]
    assert result["best_epoch"] == 3
    moved = sum(mean_step(number) for number in (1, 2, 3))
    for name, array in tensors(tmp_path).items():
        assert array == pytest.approx(INITIAL[name] + moved, rel=1e-6)


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_the_order_in_which_replies_come_changes_no_bit(tmp_path: Path, seed: int) -> None:
    for name, chance in (("one", 1), ("other", seed)):
        run(tmp_path / name, Made(lambda h, n: 0.1 * h + 1e-7 * n, rising, seed=chance))
    one, other = tensors(tmp_path / "one"), tensors(tmp_path / "other")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_patience_ends_the_rounds_and_the_best_ones_tensors_are_kept(tmp_path: Path) -> None:
    scores = [0.1, 0.5, 0.4, 0.3, 0.9]
    result = run(tmp_path, Made(step, lambda hospital, number: scores[number - 1]), rounds=9)
    assert (result["best_epoch"], result["rounds"]) == (2, 4)
    assert [row["score"] for row in result["history"]] == pytest.approx([0.1, 0.5, 0.4, 0.3])
    moved = mean_step(1) + mean_step(2)
    assert tensors(tmp_path)["w"] == pytest.approx(INITIAL["w"] + moved, rel=1e-6)


def test_a_round_whose_scores_are_lost_is_not_the_best(tmp_path: Path) -> None:
    scores: list[float | None] = [0.9, None, 0.1]
    result = run(tmp_path, Made(step, lambda hospital, number: scores[number - 1]), quorum=0.3)
    assert [row["score"] for row in result["history"]][1:] == [None, pytest.approx(0.1)]
    assert [row["best"] for row in result["history"]] == [True, False, False]
    assert result["best_epoch"] == 1


def test_scores_of_too_few_validation_records_do_not_count(tmp_path: Path) -> None:
    """Hospital 3 has five of seven; without it round 2 has no score."""
    result = run(tmp_path, Made(step, lambda h, n: None if (h, n) == (3, 2) else 0.1 * n), quorum=0.5)
    assert [row["score"] for row in result["history"]] == [pytest.approx(0.1), None, pytest.approx(0.3)]


def test_without_any_validation_record_the_last_round_is_kept_and_said(tmp_path: Path) -> None:
    none = [Hospital(h.hospital, h.node, h.train, 0, h.test) for h in HOSPITALS]
    result = run(tmp_path, Made(step, rising), none)
    assert result["best_epoch"] == result["rounds"] == 3
    assert "want of a validation record" in result["selected"]


def test_momentum_of_the_server_is_that_of_fedavgm(tmp_path: Path) -> None:
    run(tmp_path, Made(step, rising), strategy="fedavgm", options={"server_momentum": 0.9, "server_learning_rate": 0.5})
    velocity, moved = 0.0, 0.0
    for number in (1, 2, 3):
        velocity = 0.9 * velocity + mean_step(number)
        moved += 0.5 * velocity
    assert tensors(tmp_path)["w"] == pytest.approx(INITIAL["w"] + moved, rel=1e-5)


def test_adam_of_the_server_is_that_of_fedadam(tmp_path: Path) -> None:
    options = {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.01}
    run(tmp_path, Made(step, rising), strategy="fedadam", options=options)
    m = v = moved = 0.0
    for number in (1, 2, 3):
        m = 0.9 * m + 0.1 * mean_step(number)
        v = 0.99 * v + 0.01 * mean_step(number) ** 2
        rate = 0.1 * np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))  # as Flower counts rounds
        moved += rate * m / (np.sqrt(v) + 0.01)
    assert tensors(tmp_path)["w"] == pytest.approx(INITIAL["w"] + moved, rel=1e-5)


def test_the_servers_control_variate_is_the_mean_of_the_hospitals(tmp_path: Path) -> None:
    grid = Made(step, rising)
    run(tmp_path, grid, strategy="scaffold")
    by_round = {m.metadata.group_id: m.content.array_records["control"] for m in grid.sent if "control" in m.content}
    assert by_round["1"]["w"].numpy() == pytest.approx(np.zeros((2, 2)))
    for number in (2, 3):
        assert by_round[str(number)]["w"].numpy() == pytest.approx(np.full((2, 2), -mean_step(number - 1)), abs=1e-6)


def test_a_strategy_that_leaves_no_number_says_so(tmp_path: Path) -> None:
    with pytest.raises(TemptError, match=r"round 1: fedavgm left NaN or infinity .*server_learning_rate=1e\+308"):
        run(tmp_path, Made(step, rising), strategy="fedavgm", options={"server_learning_rate": 1e308})


def test_at_a_resumption_who_is_away_is_missed_and_who_is_new_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "time", Clock())

    class Killed(BaseException):
        pass

    def killed(row: dict[str, Any]) -> None:
        raise Killed

    settings = consortium.settings(pretraining__epochs="9")
    plan = exchange.SeedPlan("test", 42, settings, FederationSettings(rounds=3), consortium.VOCABULARY)
    files = FitFiles.of(tmp_path, 42, PRETRAINING, 0)
    with pytest.raises(Killed):
        rounds.pretrain(Made(step, rising), plan, HOSPITALS, INITIAL, files, killed)
    now = [HOSPITALS[0], HOSPITALS[2], Hospital(99, 9, 1000, 50, 50)]
    result = rounds.pretrain(Made(step, rising), plan, now, INITIAL, files, lambda row: None)
    assert sorted(result["hospitals"], key=int) == ["3", "8", "21"]
    away = result["hospitals"]["8"]
    assert away["taken"] == [1, 2] and away["missed"] == 2, "round 3, and the last score"
    assert result["hospitals"]["3"]["taken"] == [1, 2, 3]


def test_a_checkpoint_of_another_experiment_is_not_gone_on_with(tmp_path: Path) -> None:
    files = FitFiles.of(tmp_path, 42, PRETRAINING, 0)
    settings = consortium.settings()
    state = rounds._Rounds(
        exchange.SeedPlan("one", 42, settings, FederationSettings(), consortium.VOCABULARY), HOSPITALS, INITIAL, files
    )
    files.partial.parent.mkdir(parents=True)
    state.save(files.partial)
    with pytest.raises(TemptError, match="checkpoint of another run"):
        rounds._Rounds(
            exchange.SeedPlan("other", 42, settings, FederationSettings(), consortium.VOCABULARY),
            HOSPITALS,
            INITIAL,
            files,
        ).restore(files.partial)


def test_a_message_that_cannot_be_sent_is_a_missing_reply(tmp_path: Path) -> None:
    result = run(tmp_path, Without8(step, rising))
    assert result["hospitals"]["8"]["missed"] == 4 and result["rounds"] == 3


class Without8(Made):
    """Hospital 8 can't be reached."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        (message,) = messages
        return [] if message.metadata.dst_node_id == 2 else super().push_messages([message])


def test_a_rounds_quorum_is_a_share_of_the_expected_hospitals_not_of_those_who_came(tmp_path: Path) -> None:
    assert run(tmp_path / "three", Without8(step, rising), expected=4, quorum=0.5)["rounds"] == 3
    with pytest.raises(TooFewHospitals, match=r"the updates of 2 of 6 hospitals .* quorum is 0.5; hospital 8: no"):
        run(tmp_path / "six", Without8(step, rising), expected=6, quorum=0.5)


def test_a_fraction_is_of_the_expected_hospitals_so_that_those_who_came_can_be_a_quorum(tmp_path: Path) -> None:
    result = run(tmp_path, Made(step, rising), expected=6, fraction=0.5, quorum=1.0)
    assert all(part["taken"] == [1, 2, 3] for part in result["hospitals"].values())


def test_hospitals_without_training_records_are_no_part_of_a_quorum(tmp_path: Path) -> None:
    none = [*HOSPITALS[:2], Hospital(21, 3, 0, 4, 3)]
    assert run(tmp_path / "three", Made(step, rising), none, quorum=1.0)["rounds"] == 3
    with pytest.raises(TooFewHospitals, match=r"the updates of 2 of 3 hospitals .*; no others take part"):
        run(tmp_path / "four", Made(step, rising), none, expected=4, quorum=1.0)


def test_seven_of_twenty_five_are_a_quorum_of_28_percent() -> None:
    assert FederationSettings(quorum=0.28).needed(25) == 7
    assert FederationSettings(quorum=0.28).needed(26) == 8
    assert FederationSettings(quorum=0.01).needed(3) == 1
