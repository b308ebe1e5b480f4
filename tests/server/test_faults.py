"""Replies that are wrong, missing or late: each is left out by name, and the rest is as if it had not been asked.

The Grid here is the in-process one with a hand on the line: it changes or swallows what a hospital answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord

from hospital_client.app import HospitalConfig
from server import exchange, rounds, tuning
from server.federation_settings import FederationSettings
from shared_model import checkpoint
from shared_model.errors import TooFewHospitals
from shared_model.fitting import PRETRAINING, FitFiles
from sim.inprocess_grid import InProcessGrid
from tests.server.federations import Clock, initial_tensors
from tests.sim import consortium

DATASET, SETTINGS = consortium.make_dataset(), consortium.settings(pretraining__epochs="3")
BAD = 8  # the hospital whose replies are tampered with
Tamper = Callable[[Message], Message | None]


class HandOnTheLine(InProcessGrid):
    """Replies of one hospital in one round go through `tamper`; None swallows one."""

    def __init__(
        self, places: dict[int, HospitalConfig], tamper: Tamper, hospital: int = BAD, group: str = "2"
    ) -> None:
        super().__init__(places, None)
        self._tamper, self._hospital, self._group = tamper, hospital, group

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for reply in super().pull_messages(message_ids):
            if reply.metadata.src_node_id == self._hospital and reply.metadata.group_id == self._group:
                changed = self._tamper(reply)
                replies += [changed] if changed is not None else []
            else:
                replies.append(reply)
        return replies


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return consortium.write_dataset(tmp_path_factory.mktemp("data") / "dataset", DATASET)


def federate(
    data: Path, run: Path, tamper: Tamper, *, group: str = "2", **federation: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray], tuple[Any, ...]]:
    """Pretraining and tuning; their results."""
    places = {h: HospitalConfig(data, h, run) for h in consortium.SIZES}
    grid = HandOnTheLine(places, tamper, group=group)
    plan = exchange.SeedPlan(
        "test", 42, SETTINGS, FederationSettings(**{"timeout": 3600.0, **federation}), DATASET.vocabulary
    )
    files = FitFiles.of(run, 42, PRETRAINING, 0)
    with pytest.MonkeyPatch.context() as patched:
        clock = Clock()
        patched.setattr(exchange, "time", clock)
        patched.setattr(rounds, "time", clock)
        hospitals, _ = exchange.greet(grid, plan)
        initial = initial_tensors(SETTINGS, DATASET, 42)
        result = rounds.pretrain(grid, plan, hospitals, initial, files, lambda row: None)
        tensors = {name: tensor.numpy() for name, tensor in checkpoint.load(files.tensors)[0].items()}
        tuned = tuning.tune(
            grid, plan, hospitals, tensors, ["finetune-freeze"], save_scores=False, on_hospital=lambda label: None
        )
    return result, tensors, tuned


def _arrays(change: Callable[[dict[str, np.ndarray]], Any], record: str = "arrays") -> Tamper:
    def tamper(reply: Message) -> Message:
        arrays = {name: array.numpy().copy() for name, array in reply.content.array_records[record].items()}
        arrays = change(arrays) or arrays
        reply.content[record] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        return reply

    return tamper


def _numbers(**changed: Any) -> Tamper:
    def tamper(reply: Message) -> Message:
        numbers = dict(reply.content.metric_records["metrics"])
        numbers |= {name.replace("_", "-"): value for name, value in changed.items()}
        reply.content["metrics"] = MetricRecord({name: v for name, v in numbers.items() if v is not None})
        return reply

    return tamper


def _error(code: int) -> Tamper:
    error = Error(code, "FloatingPointError at local_pretraining.py:1")
    return lambda reply: Message(error, metadata=reply.metadata)  # type: ignore[call-overload]


def _without(record: str) -> Tamper:
    def tamper(reply: Message) -> Message:
        del reply.content[record]
        return reply

    return tamper


EMBEDDING = "encoder.embedding"


def _nan(arrays: dict[str, np.ndarray]) -> None:
    arrays[EMBEDDING][3, 2] = np.nan


def _infinite(arrays: dict[str, np.ndarray]) -> None:
    arrays["mask_diagnoses.0.bias"][0] = -np.inf


def _huge(arrays: dict[str, np.ndarray]) -> None:
    arrays[EMBEDDING] += 1e6


def _beyond(arrays: dict[str, np.ndarray]) -> None:
    arrays[EMBEDDING] += 1e30


def _lying(reply: Message) -> Message:
    """An array that says float32 and (46, 6), and holds seven numbers in double precision."""
    record = reply.content.array_records["arrays"]
    honest, other = record[EMBEDDING], Array(np.arange(7.0))
    record[EMBEDDING] = Array(dtype=honest.dtype, shape=honest.shape, stype=honest.stype, data=other.data)
    return reply


FAULTS: dict[str, tuple[Tamper, list[str]]] = {
    "NaN": (_arrays(_nan), [EMBEDDING, "NaN"]),
    "infinity": (_arrays(_infinite), ["mask_diagnoses.0.bias", "infinity"]),
    "another shape": (_arrays(lambda a: a | {EMBEDDING: a[EMBEDDING][1:]}), [EMBEDDING, "expected float32"]),
    "a shape that broadcasts": (_arrays(lambda a: a | {EMBEDDING: a[EMBEDDING][:1]}), [EMBEDDING, "[1, 6]"]),
    "another dtype": (_arrays(lambda a: a | {EMBEDDING: a[EMBEDDING].astype(np.float64)}), [EMBEDDING, "float64"]),
    "a lying dtype": (_lying, [EMBEDDING, "float64[7]"]),
    "a missing tensor": (_arrays(lambda a: {n: x for n, x in a.items() if n != EMBEDDING}), [EMBEDDING, "missing"]),
    "an unknown tensor": (_arrays(lambda a: a | {"prompts": np.zeros(3)}), ["prompts", "unknown"]),
    "a huge norm": (_arrays(_huge), ["norm", "expected at most"]),
    "a norm beyond float32": (_arrays(_beyond), ["norm is inf", "expected at most"]),
    "more records": (_numbers(num_examples=10**6), ["1000000 training records", "expected 23"]),
    "no records": (_numbers(num_examples=None), ["num-examples", "expected a finite number"]),
    "another hospital": (_numbers(hospital=3), ["hospital 3", "expected 8"]),
    "a loss of NaN": (_numbers(loss=float("nan")), ["loss is nan"]),
    "a loss beyond all bounds": (_numbers(loss=1e308), ["loss is 1e+308", "at most"]),
    "a score below zero": (_numbers(score_sum=-1.0), ["score-sum is -1.0"]),
    "a score above all records": (_numbers(score_sum=2.1), ["score-sum is 2.1", "at most 2"]),
    "no numbers at all": (_without("metrics"), ["no numbers"]),
    "no tensors at all": (_without("arrays"), ["no tensors"]),
    "an error of its own": (_error(100), ["error 100", "FloatingPointError at local_pretraining.py:1"]),
}


@pytest.fixture(scope="module")
def swallowed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The same rounds without that reply."""
    result, tensors, _ = federate(data, tmp_path_factory.mktemp("swallowed"), lambda reply: None)
    return result, tensors


@pytest.fixture(scope="module")
def sound(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return federate(data, tmp_path_factory.mktemp("sound"), lambda reply: reply)[1]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_reply_is_left_out_by_name_and_changes_nothing_else(
    data: Path,
    tmp_path: Path,
    swallowed: tuple[dict[str, Any], dict[str, np.ndarray]],
    sound: dict[str, np.ndarray],
    fault: str,
) -> None:
    tamper, words = FAULTS[fault]
    result, tensors, (numbers, without) = federate(data, tmp_path, tamper)
    part = result["hospitals"][str(BAD)]
    assert part["taken"] == [1, 3] and part["missed"] == 0
    (reason,) = part["rejected"]
    assert reason.startswith("round 2: ") and all(word in reason for word in words), reason
    assert all(p["taken"] == [1, 2, 3] and not p["rejected"] for h, p in result["hospitals"].items() if h != str(BAD))
    assert [name for name in tensors if not np.array_equal(tensors[name], swallowed[1][name])] == []
    assert sorted(numbers) == sorted(consortium.SIZES) and without == {}


def test_a_missing_reply_is_counted_and_the_round_ends_in_time(
    swallowed: tuple[dict[str, Any], dict[str, np.ndarray]], sound: dict[str, np.ndarray]
) -> None:
    result, tensors = swallowed
    assert result["hospitals"][str(BAD)]["missed"] == 1
    assert result["hospitals"][str(BAD)]["taken"] == [1, 3]
    assert any(not np.array_equal(tensors[name], sound[name]) for name in tensors)


def test_an_unavailable_hospital_is_missed_not_rejected(data: Path, tmp_path: Path) -> None:
    result, _, _ = federate(data, tmp_path, _error(5))
    assert result["hospitals"][str(BAD)] | {"missed": 1, "rejected": []} == result["hospitals"][str(BAD)]


def test_below_the_quorum_the_round_fails_by_name(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TooFewHospitals, match=r"round 2: .* 3 of 4 .* quorum is 0.9; hospital 8: the update: tensor .*NaN"
    ):
        federate(data, tmp_path, FAULTS["NaN"][0], quorum=0.9)


def test_below_the_quorum_it_waits_and_the_round_is_done_again(
    data: Path, tmp_path: Path, sound: dict[str, np.ndarray]
) -> None:
    lost: list[Message] = []

    def once(reply: Message) -> Message | None:
        lost.append(reply)
        return reply if len(lost) > 1 else None

    result, tensors, _ = federate(data, tmp_path, once, quorum=1.0, timeout=60.0)
    assert result["hospitals"][str(BAD)] | {"taken": [1, 2, 3], "missed": 1} == result["hospitals"][str(BAD)]
    assert [row["epoch"] for row in result["history"]] == [1, 2, 3]
    assert [name for name in tensors if not np.array_equal(tensors[name], sound[name])] == []


def test_waiting_for_a_hospital_that_never_answers_ends(data: Path, tmp_path: Path) -> None:
    tries: list[Message] = []

    def never(reply: Message) -> None:
        tries.append(reply)

    with pytest.raises(TooFewHospitals, match=r"round 2: .* 3 of 4 .* hospital 8: no reply"):
        federate(data, tmp_path, never, quorum=1.0, timeout=60.0)
    assert 1 < len(tries) < 10


def test_a_hospital_whose_tuning_fails_is_named(data: Path, tmp_path: Path) -> None:
    _, _, (numbers, without) = federate(data, tmp_path, _error(100), group="tune")
    assert sorted(numbers) == [3, 21, 34]
    assert without == {8: "error 100: FloatingPointError at local_pretraining.py:1"}


def _text(reply: Message) -> Message:
    reply.content["config"] = ConfigRecord({"vocabulary": "f" * 64})
    return reply


def _escape(reply: Message) -> Message:
    reply.content["config"] = ConfigRecord({"vocabulary": "\x1b[2J\n"})
    return reply


HELLOS: dict[str, tuple[Tamper, str]] = {
    "a digest that moves the cursor": (_escape, r"hospital 8's vocabulary has the digest '\x1b[2J\n'"),
    "another vocabulary": (_text, "hospital 8's vocabulary has the digest 'ffffffffffff'"),
    "no digest": (_without("config"), "digest ''"),
    "no numbers": (_without("metrics"), "no numbers"),
    "hospital 0": (_numbers(hospital=0), "hospital is 0, expected at least 1"),
    "half a record": (_numbers(train=23.5), "train is 23.5, expected a whole number"),
    "records without end": (_numbers(train=10**12), "train is 1000000000000, expected at most"),
    "NaN records": (_numbers(validation=float("nan")), "validation is nan"),
    "an error": (_error(100), "error 100: FloatingPointError"),
    "nothing": (lambda reply: None, "no reply"),
}


@pytest.mark.parametrize("hello", HELLOS)
def test_a_hello_that_is_wrong_leaves_that_hospital_out_by_name_and_no_other(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hello: str
) -> None:
    monkeypatch.setattr(exchange, "time", Clock())
    tamper, words = HELLOS[hello]
    grid = HandOnTheLine({h: HospitalConfig(data, h, tmp_path) for h in consortium.SIZES}, tamper, group="hello")
    plan = exchange.SeedPlan("test", 42, SETTINGS, FederationSettings(timeout=60), DATASET.vocabulary)
    hospitals, refused = exchange.greet(grid, plan)
    assert [h.hospital for h in hospitals] == [3, 21, 34]
    assert list(refused) == ["node 8"] and words in refused["node 8"], refused


def test_two_nodes_that_say_they_are_one_hospital_are_both_left_out(data: Path, tmp_path: Path) -> None:
    places = {
        1: HospitalConfig(data, 3, tmp_path),
        2: HospitalConfig(data, 3, tmp_path),
        3: HospitalConfig(data, 8, tmp_path),
    }
    plan = exchange.SeedPlan("test", 42, SETTINGS, FederationSettings(), DATASET.vocabulary)
    hospitals, refused = exchange.greet(InProcessGrid(places, None), plan)
    assert [h.hospital for h in hospitals] == [8]
    assert refused == {"hospital 3": "2 nodes say that they are it; none can be believed"}


CONTROLS: dict[str, tuple[Callable[[dict[str, np.ndarray]], Any], str]] = {
    "NaN": (_nan, "the control: tensor encoder.embedding holds NaN"),
    "a huge norm": (_huge, "the control: its norm"),
    "another shape": (lambda a: a | {EMBEDDING: a[EMBEDDING][1:]}, "the control: tensor encoder.embedding is"),
    "a missing tensor": (lambda a: {n: x for n, x in a.items() if n != EMBEDDING}, "the control: tensor"),
}


@pytest.mark.parametrize("fault", CONTROLS)
def test_a_faulty_control_variate_is_left_out_with_its_update(data: Path, tmp_path: Path, fault: str) -> None:
    change, words = CONTROLS[fault]
    result, _, _ = federate(data, tmp_path, _arrays(change, "control"), strategy="scaffold")
    (reason,) = result["hospitals"][str(BAD)]["rejected"]
    assert words in reason
    assert result["hospitals"][str(BAD)]["taken"] == [1, 3]


TUNED = {
    "a score above 1": ({"finetune-freeze.prauc": 1.5}, "finetune-freeze.prauc is 1.5, expected at most 1"),
    "more test records": ({"finetune-freeze.records": 9}, "tells 9 test records, expected 4 as at the start"),
    "no score": ({"finetune-freeze.f1": None}, "finetune-freeze.f1 is None"),
}


@pytest.mark.parametrize("fault", TUNED)
def test_test_metrics_that_cannot_be_are_left_out_by_name(data: Path, tmp_path: Path, fault: str) -> None:
    changed, words = TUNED[fault]

    def tamper(reply: Message) -> Message:
        numbers = dict(reply.content.metric_records["metrics"]) | changed
        reply.content["metrics"] = MetricRecord({name: v for name, v in numbers.items() if v is not None})
        return reply

    _, _, (numbers, without) = federate(data, tmp_path, tamper, group="tune")
    assert sorted(numbers) == [3, 21, 34] and words in without[8], without


def test_an_update_is_undone_at_a_hospital_whose_update_was_not_taken(data: Path, tmp_path: Path) -> None:
    """Kept optimizer state: after a rejected round the hospital goes on from the state before it."""
    bad, sound = (
        federate(data, tmp_path / name, tamper, local_optimizer="keep")[1]
        for name, tamper in (("bad", FAULTS["NaN"][0]), ("missed", lambda reply: None))
    )
    assert [name for name in bad if not np.array_equal(bad[name], sound[name])] == []
