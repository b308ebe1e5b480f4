"""A round whose tensors most hospitals can do nothing with is taken back, and done again without its heaviest update.

Hospitals train for real here; one of them, which says that it has nearly all records, sends zeros in a round. The next
round's honest updates are then too large beside what came in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord

from hospital_client.app import HospitalConfig
from server import exchange, flower_strategies, rounds
from server.exchange import Hospital
from server.federation_settings import FederationSettings
from server.step_back import LeftOut, heaviest
from shared_model import checkpoint
from shared_model.algorithms import Chosen
from shared_model.algorithms.fedavg import Mean
from shared_model.errors import TemptError, TooFewHospitals
from shared_model.federated_algorithm import NOW, State
from shared_model.fitting import PRETRAINING, FitFiles
from sim.inprocess_grid import InProcessGrid
from tests.server import test_rounds
from tests.server.federations import Clock, initial_tensors
from tests.server.test_rounds import Made, rising, step
from tests.sim import consortium

DATASET = consortium.make_dataset()
SETTINGS = consortium.settings(pretraining__epochs="4", pretraining__patience="9")
LIAR, MANY = 8, 10**9
Answer = Callable[[Message], Message | None]


class Lying(InProcessGrid):
    """Some hospitals say that they have very many records; what they answer in a round of theirs is changed."""

    def __init__(
        self, places: dict[int, HospitalConfig], changed: dict[tuple[int, str], Answer], liars: Iterable[int]
    ) -> None:
        super().__init__(places, None)
        self._changed, self._liars = changed, set(liars)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            hospital, group = reply.metadata.src_node_id, reply.metadata.group_id
            if hospital in self._liars and not reply.has_error():
                numbers = dict(reply.content.metric_records["metrics"])
                numbers |= {"num-examples": MANY + hospital}
                reply.content["metrics"] = MetricRecord(numbers)
            answer = self._changed.get((hospital, group), lambda reply: reply)(reply)
            if answer is not None:
                yield answer


def zeros(reply: Message) -> Message:
    arrays = reply.content.array_records["arrays"]
    reply.content["arrays"] = ArrayRecord({n: Array(np.zeros_like(a.numpy())) for n, a in arrays.items()})
    return reply


def swallowed(reply: Message) -> None:
    return None


class Killed(BaseException):
    pass


def federate(
    folder: Path,
    changed: dict[tuple[int, str], Answer],
    *,
    liars: Iterable[int] = (LIAR,),
    killed: bool = False,
    selects: bool = True,
    **federation: Any,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Pretraining of four rounds; its result and the last round's tensors.

    Args:
        killed: after each exchange; then it is resumed.
    """
    data = folder.parent / "dataset"
    if not data.exists():
        consortium.write_dataset(data, DATASET)
    plan = exchange.SeedPlan(
        "test", 42, SETTINGS, FederationSettings(**{"timeout": 60.0, **federation}), DATASET.vocabulary
    )
    grid = Lying({h: HospitalConfig(data, h, folder) for h in consortium.SIZES}, changed, liars)
    files = FitFiles.of(folder, 42, PRETRAINING, 0)
    with pytest.MonkeyPatch.context() as patched:
        for module in (exchange, rounds):
            patched.setattr(module, "time", Clock())
        there, _ = exchange.greet(grid, plan)
        hospitals = [replace(h, train=MANY + h.hospital) if h.hospital in liars else h for h in there]
        hospitals = hospitals if selects else [replace(h, validation=0) for h in hospitals]
        initial = initial_tensors(SETTINGS, DATASET, 42)
        save, last = rounds._Rounds.save, {}

        def saved(state: rounds._Rounds, path: Path) -> None:
            save(state, path)
            last.update(state.current)
            if killed:
                raise Killed

        patched.setattr(rounds._Rounds, "save", saved)
        for _ in range(40):
            try:
                result = rounds.pretrain(grid, plan, hospitals, initial, files, lambda row: None)
                break
            except Killed:
                continue
    return result, last


def failing_once() -> Answer:
    """A hospital that makes no number of what comes in, until it comes again."""
    error, tries = Error(100, "FloatingPointError at local_pretraining.py:1"), []

    def answer(reply: Message) -> Message:
        tries.append(reply)
        return reply if len(tries) > 1 else Message(error, metadata=reply.metadata)  # type: ignore[call-overload]

    return answer


def differing(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    return [name for name in one if not np.array_equal(one[name], other[name])]


WAYS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "kept optimizer": {"local_optimizer": "keep"},
    "momentum": {"strategy": "fedavgm", "options": {"server_momentum": 0.9}},
    "adam": {"strategy": "fedadam"},
    "scaffold": {"strategy": "scaffold"},
    "without a validation record": {"selects": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_round_of_bad_tensors_is_as_if_its_heaviest_update_had_not_come(tmp_path: Path, way: str) -> None:
    """Bit by bit: tensors, the server's moments, c, and what hospitals keep are those of before the round."""
    changed: dict[tuple[int, str], Answer] = {(LIAR, "2"): zeros}
    if "strategy" in WAYS[way] and way != "scaffold":  # whose step is not as large as the update
        changed |= {(h, "3"): failing_once() for h in (3, 8, 21, 34)}
    bad, bad_tensors = federate(tmp_path / "bad", changed, **WAYS[way])
    missed, tensors = federate(tmp_path / "missed", {(LIAR, "2"): swallowed}, **WAYS[way])
    assert differing(bad_tensors, tensors) == []
    rows, expected = bad["history"][1:], missed["history"][1:]  # a lost reply's score of the first round is lost, too
    assert [(row["score"], row["loss"]) for row in rows] == [(row["score"], row["loss"]) for row in expected]
    assert [row["epoch"] for row in bad["history"]] == [1, 2, 3, 4]
    part = bad["hospitals"][str(LIAR)]
    assert part["taken"] == [1, 3, 4]
    *_, reason = part["rejected"]  # its own update of round 3 was too large, too
    assert reason == (
        "round 2: its tensors made no numbers in round 3, and this update was the heaviest of it (100% of the weight)"
    )
    for hospital in (3, 21, 34):
        assert bad["hospitals"][str(hospital)]["taken"] == [1, 2, 3, 4]
        (reason,) = bad["hospitals"][str(hospital)]["rejected"]
        assert reason.startswith(("round 3: the update: its norm is", "round 3: error 100: FloatingPointError"))


@pytest.mark.parametrize("way", ["fedavg", "scaffold", "without a validation record"])
def test_a_step_back_survives_a_server_that_is_killed_after_each_exchange(tmp_path: Path, way: str) -> None:
    (one, whole), (other, resumed) = (
        federate(tmp_path / name, {(LIAR, "2"): zeros}, killed=killed, **WAYS[way])
        for name, killed in (("whole", False), ("killed", True))
    )
    assert differing(whole, resumed) == []
    for hospital in consortium.SIZES:
        a, b = (result["hospitals"][str(hospital)] for result in (one, other))
        assert (a["taken"], a["rejected"]) == (b["taken"], b["rejected"])


def test_the_last_round_is_taken_back_where_nobody_can_score_its_tensors(tmp_path: Path) -> None:
    def no_score(reply: Message) -> Message:
        reply.content["metrics"] = MetricRecord(dict(reply.content.metric_records["metrics"]) | {"score-sum": np.nan})
        return reply

    tries: list[int] = []

    def once(reply: Message) -> Message:
        tries.append(reply.metadata.src_node_id)
        return no_score(reply) if tries.count(reply.metadata.src_node_id) == 1 else reply

    changed: dict[tuple[int, str], Answer] = {(h, "2"): once for h in (3, 8, 21)}
    result, _ = federate(tmp_path / "run", changed, rounds=1)
    assert result["hospitals"][str(LIAR)]["taken"] == []
    assert [row["epoch"] for row in result["history"]] == [1] and result["history"][0]["score"] is not None


def test_two_who_lie_are_left_out_one_after_the_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tempt.server")
    liars = (8, 21)
    result, _ = federate(tmp_path / "run", {(8, "2"): zeros, (21, "2"): zeros}, liars=liars, quorum=0.5)
    assert [result["hospitals"][str(h)]["taken"] for h in liars] == [[1, 3, 4], [1, 3, 4]]
    assert [result["hospitals"][str(h)]["taken"] for h in (3, 34)] == [[1, 2, 3, 4]] * 2
    left_out = [line for line in caplog.messages if "the round is done again" in line]
    assert [line.split(" is left out")[0] for line in left_out] == ["hospital 21", "hospital 8"]


def test_a_run_that_cannot_do_without_the_heaviest_update_names_whose_it_was(tmp_path: Path) -> None:
    with pytest.raises(
        TooFewHospitals,
        match=r"round 3: the updates of 0 of 4 .* heaviest update of round 2 was hospital 8's \(100% of the weight\)$",
    ):
        federate(tmp_path / "run", {(LIAR, "2"): zeros}, quorum=1.0)


def failing(places: Iterable[int], error: str) -> dict[tuple[int, str], Answer]:
    return {
        (h, "3"): lambda reply: Message(Error(100, error), metadata=reply.metadata)  # type: ignore[call-overload]
        for h in places
    }


def test_hospitals_that_fail_for_reasons_of_their_own_blame_nobody(tmp_path: Path) -> None:
    with pytest.raises(TooFewHospitals, match=r"round 3: .*; hospital 3: error 100: OSError at files.py:1$"):
        federate(tmp_path / "run", failing((3, 21, 34), "OSError at files.py:1"))


def test_a_hospital_alone_that_makes_no_number_blames_nobody(tmp_path: Path) -> None:
    with pytest.raises(
        TooFewHospitals, match=r"round 3: the updates of 3 of 4 .*; hospital 3: error 100: Floating[^;]*$"
    ):
        federate(tmp_path / "run", failing((3,), "FloatingPointError at local_pretraining.py:1"), quorum=1.0)


def test_a_hospitals_missing_numbers_are_told_from_other_errors(tmp_path: Path) -> None:
    """Three of four say so in each try: each try costs a round, and after a few it ends and names the heaviest."""
    with pytest.raises(
        TooFewHospitals,
        match=r"round 3: .* FloatingPointError .* round 2 was hospital 21's \(76% .*, after 8, 3 had been left out$",
    ):
        federate(tmp_path / "run", failing((3, 21, 34), "FloatingPointError at local_pretraining.py:1"))


def test_a_strategy_that_leaves_no_number_because_of_the_heaviest_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hospital 21 has 60 of 100 records; the strategy can't do with its update of round 2."""
    finish = flower_strategies.finish

    def overflowing(algorithm: Chosen, state: State, gathered: Mean, number: int) -> State:
        found = finish(algorithm, state, gathered, number)
        if (number, gathered.weight) != (2, 100):
            return found
        return found | {NOW: {name: array * np.inf for name, array in found[NOW].items()}}

    monkeypatch.setattr(rounds, "finish", overflowing)
    options = {"strategy": "fedavgm", "options": {"server_momentum": 0.5}}
    result = test_rounds.run(tmp_path, Made(step, rising), **options)
    assert [result["hospitals"][h]["taken"] for h in ("3", "8", "21")] == [[1, 2, 3], [1, 2, 3], [1, 3]]
    (reason,) = result["hospitals"]["21"]["rejected"]
    assert reason.startswith(
        "round 2: fedavgm left NaN or infinity in tensor w, and this update was the heaviest of it"
    )
    second = (30 * step(3, 2) + 10 * step(8, 2)) / 40
    velocity, moved = 0.0, 0.0
    for mean in (test_rounds.mean_step(1), second, test_rounds.mean_step(3)):
        velocity = 0.5 * velocity + mean
        moved += velocity
    assert test_rounds.tensors(tmp_path)["w"] == pytest.approx(test_rounds.INITIAL["w"] + moved, rel=1e-5)


def test_a_strategy_that_leaves_no_number_whoever_is_left_out_names_the_heaviest(tmp_path: Path) -> None:
    with pytest.raises(
        TemptError, match=r"heaviest update of round 1 was hospital 3's \(75% .*, after 21 had been left"
    ):
        test_rounds.run(tmp_path, Made(step, rising), strategy="fedavgm", options={"server_learning_rate": 1e308})


def test_the_heaviest_is_the_largest_weight_and_of_several_the_smallest_id() -> None:
    assert heaviest({3: 5, 8: 9, 21: 9}) == 8


def test_no_more_than_a_few_are_left_out_of_a_round() -> None:
    out, weights = LeftOut(), {h: h for h in range(1, 9)}
    for expected in (8, 7, 6):
        found = out.next_of(2, weights, list(weights), 1)
        assert found == expected
        out.add(2, found)
        weights.pop(found)
    assert out.next_of(2, weights, list(range(1, 9)), 1) is None
    assert out.next_of(3, weights, list(range(1, 9)), 1) == 5, "another round"
    assert out.next_of(3, {}, [1, 2], 1) is None
    assert out.next_of(3, {1: 1, 2: 2}, [1, 2], 2) is None, "a quorum of two"


def test_a_checkpoint_of_before_there_was_a_step_back_is_refused(tmp_path: Path) -> None:
    """Its run's code was another, so that the run is refused before; here the file alone is older."""
    settings = consortium.settings()
    plan = exchange.SeedPlan("x", 42, settings, FederationSettings(rounds=3), consortium.VOCABULARY)
    hospitals = [Hospital(3, 1, 30, 5, 4), Hospital(8, 2, 10, 2, 1), Hospital(21, 3, 60, 0, 3)]
    files = FitFiles.of(tmp_path, 42, PRETRAINING, 0)
    state = rounds._Rounds(plan, hospitals, test_rounds.INITIAL, files)
    state.round(Made(step, rising))
    path = tmp_path / "partial.safetensors"
    state.save(path)
    tensors, about = checkpoint.load(path)
    older = {name: content for name, content in about.items() if name not in ("before", "left_out")}
    checkpoint.save(path, {n: t for n, t in tensors.items() if not n.startswith("before.")}, older)
    with pytest.raises(TemptError, match=r"a checkpoint of another run .* delete it to begin again"):
        rounds._Rounds(plan, hospitals, test_rounds.INITIAL, files).restore(path)
