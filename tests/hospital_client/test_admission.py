"""A deployed hospital against servers that mean harm: what is refused is named, and nothing of it is answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from hospital_client import admission, app, local_tuning
from hospital_client.app import HospitalConfig, make_app
from hospital_client.launch import _in_words
from hospital_client.partition import read_partition
from hospital_client.policy import FILE, Policy
from server.plain_message import array_record, plain_message
from server.validation import Arrays
from shared_model.errors import printable
from shared_model.files import read_json
from tests.hospital_client.policies import write_policy
from tests.server.federations import initial_tensors
from tests.sim import consortium

ENOUGH, FEW = 3, 8
DATASET = consortium.make_dataset(consortium.make_records({ENOUGH: 53, FEW: 10, 21: 4}))  # 42/5/6, 8/1/1, 3/0/1
INITIAL = initial_tensors(consortium.settings(), DATASET, 42)
ROUND = {
    **{
        "train": True,
        "score": True,
        "epochs": 1,
        "only-hospital": False,
        "last-accepted": 0,
        "first-epoch": 1,
        "serial": 1,
    },
    **{
        "algorithm": "fedavg",
        "exchange": 0,
        "keep-optimizer": False,
        "bfloat16": False,
        "changed-rows": False,
        "round": 1,
    },
}
TUNING = {"models": ["finetune-freeze"], "save-scores": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return consortium.write_dataset(tmp_path_factory.mktemp("data") / "dataset", DATASET)


@pytest.fixture(autouse=True)
def _no_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is a process a message, and has tests of its own."""
    monkeypatch.setattr(app, "time_limit", lambda seconds: nullcontext())


@pytest.fixture
def place(data: Path, tmp_path: Path) -> HospitalConfig:
    """A hospital as `tempt hospital launch` has it, with the default policy."""
    return HospitalConfig(data, ENOUGH, tmp_path / "state", deployed=True)


def sent(
    place: HospitalConfig,
    kind: str,
    arrays: Arrays | None = None,
    *,
    control: bool = False,
    raw: dict[str, str] | None = None,
    **more: Any,
) -> Message:
    """What a hospital answers to a message with the tiny settings, but for `settings` and what else is given.

    Args:
        raw: entries as they are sent.
    """
    config = {"experiment": "x", "seed": 42, "vocabulary": DATASET.vocabulary.digest, "limit": 0.0}
    config["settings"] = consortium.settings(**more.pop("settings", {})).model_dump_json()
    own: dict[str, Any] = {"pretrain": ROUND, "tune": TUNING}.get(kind, {})
    own = own | ({"algorithm": "scaffold"} if control else {})
    records: dict[str, Any] = {"config": ConfigRecord(config | own | more | (raw or {}))}
    if kind != "hello":
        records["arrays"] = array_record(INITIAL if arrays is None else arrays)
    if control:
        records["control"] = array_record({name: np.zeros_like(array) for name, array in INITIAL.items()})
    message = plain_message(RecordDict(records), f"{'query' if kind == 'hello' else 'train'}.{kind}", place.hospital)
    context = Context(run_id=0, node_id=1, node_config={}, state=RecordDict(), run_config={})
    return make_app(lambda context: place)(message, context)


def numbers(reply: Message) -> dict[str, Any]:
    assert not reply.has_error(), reply.error
    return dict(reply.content.metric_records["metrics"])


def refusal(reply: Message) -> str:
    assert reply.has_error() and reply.error.code == 100
    return str(reply.error.reason)


def lines_of(place: HospitalConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.ledger().read_text().splitlines()]


def moved(step: int) -> Arrays:
    return {name: array + np.float32(step / 64) for name, array in INITIAL.items()}


def test_what_is_refused_is_named_to_the_server_in_the_ledger_and_on_the_hospitals_screen(
    place: HospitalConfig,
) -> None:
    for kind in ("hello", "pretrain", "tune"):
        why = refusal(sent(place, kind, settings={"pretraining__learning_rate": "1", "encoder__dropout": "0"}))
        assert why == (
            "refused by policy: encoder.dropout is 0, accepted 0.1 to 0.6; "
            "pretraining.learning_rate is 1, accepted 1e-05 to 0.01"
        )
        line = lines_of(place)[-1]
        assert (line["kind"], line["texts"], line["arrays"], line["numbers"]) == (kind, {"error": why}, {}, {})
        assert line["settings"]["pretraining"]["learning_rate"] == 1 and line["seed"] == 42
        assert _in_words(line).endswith(why) and "supernode.log" not in _in_words(line)
        assert len(printable(f"error 100: {why}", 200)) == len(f"error 100: {why}"), (
            "the server's operator reads it all"
        )
    assert not (place.folder / admission.FILE).exists(), "what is refused is not counted"
    assert {path.name for path in place.folder.iterdir()} == {"egress"}


def test_a_refused_request_wrote_what_it_liked_into_the_ledger(place: HospitalConfig) -> None:
    """Megabytes of it, as refused requests are not counted."""
    junk = "A" * 10_000
    own = json.loads(consortium.settings().model_dump_json()) | {junk: {"x": junk}}
    for kind, more in (
        ("hello", {}),
        ("pretrain", {"algorithm": junk}),
        ("pretrain", {f"asked.{junk}": float("nan")}),
        ("tune", {}),
    ):
        content = {"settings": json.dumps(own)} if not more else {}
        assert sent(place, kind, raw=content, **more).has_error()
    text = place.ledger().read_text()
    assert "AAAAAAAAAA" * 10 not in text and "NaN" not in text
    assert len(lines_of(place)) == 4


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"epochs": 21}, "rounds.local_epochs is 21, accepted 1 to 20"),
        ({"epochs": 0}, "rounds.local_epochs is 0"),
        ({"algorithm": "fedprox", "asked.proximal_mu": -1.0}, "rounds.proximal_mu is -1, accepted 0 to 10"),
        ({"algorithm": "fedprox", "asked.proximal_mu": float("nan")}, "rounds.proximal_mu is nan"),
    ],
)
def test_a_rounds_own_numbers_are_bound(place: HospitalConfig, more: Mapping[str, Any], named: str) -> None:
    assert named in refusal(sent(place, "pretrain", **more))


def test_mean_gradients_leave_only_where_sums_of_this_hospital_alone_may(place: HospitalConfig) -> None:
    assert "refused by policy: unmasked_sums is false" in refusal(sent(place, "pretrain", control=True))
    write_policy(place.folder, "unmasked_sums = true\n")
    assert "control" in sent(place, "pretrain", control=True).content.array_records


def test_an_edit_holds_from_the_next_message_on_and_a_damaged_one_is_no_answer(place: HospitalConfig) -> None:
    numbers(sent(place, "hello"))
    write_policy(place.folder, "most_seeds = 0\n")
    numbers(sent(place, "hello"))  # its seed was answered before
    assert refusal(sent(place, "hello", seed=43)) == "refused by policy: most_seeds is 0, and so many were answered"
    write_policy(place.folder, "most_seed = 0\n")
    assert refusal(sent(place, "hello")).startswith("TemptError at policy.py:")
    (place.folder / FILE).unlink()
    numbers(sent(place, "hello", seed=43))
    assert not (place.folder / FILE).exists(), "launch writes it"


# ------------------------------------------------------------------------------------------------ requests in all


def test_rounds_count_over_all_experiments_and_a_repeated_one_is_free(place: HospitalConfig) -> None:
    write_policy(place.folder, "most_rounds = 3\n")
    first = sent(place, "pretrain", experiment="a")
    for _ in range(4):  # a server that was killed asks again, with other limits of time
        again = sent(place, "pretrain", experiment="a", limit=7.5)
        assert numbers(again) == numbers(first)
    numbers(sent(place, "pretrain", moved(1), experiment="b"))
    numbers(sent(place, "pretrain", moved(1), experiment="b", train=False))
    for more in ({"experiment": "c"}, {"round": 2}, {"seed": 43}, {"first-epoch": 2}, {"train": False}):
        assert (
            refusal(sent(place, "pretrain", **more)) == "refused by policy: most_rounds is 3, and so many were answered"
        )
    numbers(sent(place, "pretrain", experiment="a"))
    answered = [line.get("request") for line in lines_of(place) if "error" not in line["texts"]]
    assert answered == [1, 1, 1, 1, 1, 2, 3, 1]
    assert admission.counts_of(place.folder).seeds == [42], "a refused request's seed is not counted"
    assert "most_rounds 3 (3 answered), most_seeds 5 (1 answered)" in admission.summary(place.folder)


def test_a_deleted_count_begins_anew(place: HospitalConfig) -> None:
    write_policy(place.folder, "most_rounds = 1\n")
    numbers(sent(place, "pretrain"))
    refusal(sent(place, "pretrain", moved(1)))
    (place.folder / admission.FILE).unlink()
    numbers(sent(place, "pretrain", moved(1)))


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"seeds": 3}', '{"seeds": ["x"]}', '{"rounds": [1]}', '{"tunings": null}']
)
def test_damaged_counts_are_no_counts_of_zero(
    place: HospitalConfig, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    place.folder.mkdir()
    (place.folder / admission.FILE).write_text(text)
    assert refusal(sent(place, "hello")).startswith("TemptError at ")
    assert str(place.folder / admission.FILE) in caplog.text


def test_seeds_are_bound_in_greetings_rounds_and_tunings(place: HospitalConfig) -> None:
    for seed in range(5):
        numbers(sent(place, "hello", seed=seed))
    for kind in ("hello", "pretrain", "tune"):
        assert "most_seeds is 5" in refusal(sent(place, kind, seed=99))
    numbers(sent(place, "hello", seed=3))


def test_a_sweep_of_thresholds_encoders_or_models_ends_and_the_same_tuning_is_answered_from_what_was_kept(
    place: HospitalConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_policy(place.folder, "most_tunings = 2\n")
    told = numbers(sent(place, "tune"))
    numbers(sent(place, "tune", settings={"evaluation__threshold": "0.5"}))
    for sweep in (
        {"settings": {"evaluation__threshold": "0.7"}},
        {"arrays": moved(1)},
        {"models": ["finetune-freeze", "tempt"]},
        {"seed": 43},
        {"experiment": "another"},
    ):
        assert "most_tunings is 2" in refusal(sent(place, "tune", **sweep))
    again = numbers(sent(place, "tune", limit=3.5))
    seconds = {name for name in told if ".seconds." in name}
    assert {n: v for n, v in again.items() if n not in seconds} == {n: v for n, v in told.items() if n not in seconds}
    monkeypatch.setattr(local_tuning, "fit_and_evaluate", None)
    assert numbers(sent(place, "tune", limit=3.5)) == again, "from its file"


def test_a_node_that_launch_configured_is_bound_and_one_of_flowers_simulation_is_not(
    data: Path, tmp_path: Path
) -> None:
    def policy_of(node: dict[str, Any], run: dict[str, Any]) -> Policy | None:
        return app._of_node(Context(run_id=0, node_id=1, node_config=node, state=RecordDict(), run_config=run)).policy()

    launched = {"hospital-id": 3, "partition": str(data), "folder": str(tmp_path)}
    assert policy_of(launched, {}) == Policy()
    write_policy(tmp_path, "most_rounds = 3\n")
    assert policy_of(launched, {}) == Policy(most_rounds=3)
    simulated = {"data": str(data), "out": str(tmp_path), "device": "cpu"}
    assert policy_of({"partition-id": 0, "num-partitions": 3}, simulated) is None


def test_simulations_are_bound_by_no_policy(place: HospitalConfig) -> None:
    simulated = replace(place, deployed=False)
    write_policy(place.folder, "most_rounds = 0\nmost_seed = broken")
    trap = {"pretraining__learning_rate": "1", "encoder__dropout": "0"}
    assert "loss" in numbers(sent(simulated, "pretrain", settings=trap, control=True))
    few = replace(simulated, hospital=FEW)
    assert "score-sum" in numbers(sent(few, "pretrain"))
    assert numbers(sent(few, "hello")) == {"hospital": FEW, "train": 8, "validation": 1, "test": 1}
    assert not (place.folder / admission.FILE).exists()
    assert {line["seed"] for line in lines_of(simulated)} == {42} and "request" not in lines_of(simulated)[0]


# ---------------------------------------------------------------------------------------------------- too few records


def test_scores_and_metrics_of_too_few_records_do_not_leave(place: HospitalConfig) -> None:
    few = replace(place, hospital=FEW)
    least = {"least-train": 5, "least-validation": 5, "least-test": 5}
    assert numbers(sent(few, "hello")) == {"hospital": FEW, "train": 8, "validation": 1, "test": 1} | least
    round_ = sent(few, "pretrain")
    assert numbers(round_).keys() == {"hospital", "num-examples", "loss", "least-validation"}
    assert "arrays" in round_.content.array_records, "eight records are enough to train on"
    told = numbers(sent(few, "tune"))
    assert told.keys() == {
        *("hospital", "least-validation", "least-test"),
        *("finetune-freeze.seconds.fit", "finetune-freeze.seconds.evaluation"),
    }
    kept = read_json(few.folder / "results.json")["models"]["finetune-freeze"]["seeds"]["42"]["hospitals"][str(FEW)]
    assert kept["records"] == 1 and "prauc" in kept, "the hospital itself has them"
    for line in lines_of(few):
        assert not {"score-sum", "finetune-freeze.prauc", "finetune-freeze.best_epoch"} & set(line["numbers"])


def test_enough_records_leave_as_before(place: HospitalConfig) -> None:
    assert numbers(sent(place, "pretrain")).keys() == {"hospital", "num-examples", "loss", "score-sum"}
    assert "finetune-freeze.prauc" in numbers(sent(place, "tune"))
    write_policy(place.folder, "least_validation_records = 6\nleast_test_records = 6\n")
    assert numbers(sent(place, "pretrain"))["least-validation"] == 6
    told = numbers(sent(place, "tune"))
    assert told["finetune-freeze.records"] == 6 and "finetune-freeze.best_epoch" not in told
    write_policy(place.folder, "least_test_records = 7\n")
    assert "finetune-freeze.f1" not in numbers(sent(place, "tune"))


def test_update_of_too_few_training_records_does_not_leave(place: HospitalConfig) -> None:
    reply = sent(replace(place, hospital=21), "pretrain")
    assert numbers(reply) == {"hospital": 21, "num-examples": 0, "least-train": 5, "least-validation": 5}
    assert not reply.content.array_records


# ------------------------------------------------------------------------- attacks that read records before


def orders_of(code: int) -> list[Arrays]:
    """Tensors under which every record gets the same scores: with a code before all others, and after them."""
    found = []
    for rank in (consortium.DIAGNOSES, -1):
        arrays = {name: np.zeros_like(array) for name, array in INITIAL.items()}
        bias = np.arange(consortium.DIAGNOSES, dtype=np.float32)
        bias[code] = rank
        found.append(arrays | {"mask_diagnoses.2.bias": bias})
    return found


def test_orders_of_scores_read_a_validation_record_in_simulations_and_nothing_of_a_deployed_hospital(
    place: HospitalConfig,
) -> None:
    records = read_partition(place.partition, FEW).split(42).validation
    few = replace(place, hospital=FEW)

    def found(of: HospitalConfig) -> set[int] | None:
        read = set()
        for code in sorted({*records.diagnoses.codes.tolist(), 0, 7, 20}):
            settings = {"pretraining__mask_fraction": "0.5"}
            told = [numbers(sent(of, "pretrain", a, train=False, settings=settings)) for a in orders_of(code)]
            if any("score-sum" not in each for each in told):
                return None
            read |= {code} if told[0]["score-sum"] > told[1]["score-sum"] else set()
        return read

    read = found(replace(few, deployed=False, folder=few.folder / "simulated"))
    assert read and read <= set(records.diagnoses.codes.tolist()), "so the attack is one"
    assert found(few) is None


def test_thresholds_do_not_count_a_test_records_medications(place: HospitalConfig) -> None:
    few = replace(place, hospital=FEW)
    for threshold in ("0", "0.001", "1"):
        assert "evaluation.threshold" in refusal(sent(few, "tune", settings={"evaluation__threshold": threshold}))
    for threshold in ("0.1", "0.3", "0.9"):
        told = numbers(sent(few, "tune", settings={"evaluation__threshold": threshold}))
        assert not any(name.endswith((".jaccard", ".f1", ".medications", ".prauc")) for name in told)
