"""Nothing but metrics and shared tensors leaves a hospital: every reply's bytes are read for anything else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from hospital_client import app, egress
from hospital_client.app import HospitalConfig
from server import exchange, rounds, tuning
from server.federation_settings import FederationSettings
from server.plain_message import plain_message
from shared_model import checkpoint
from shared_model.algorithms import algorithm
from shared_model.fitting import PRETRAINING, FitFiles
from shared_model.messages import Hello
from shared_model.transport import Transport
from sim.inprocess_grid import InProcessGrid
from tests.server.federations import initial_tensors
from tests.sim import consortium

DATASET, SETTINGS = consortium.make_dataset(), consortium.settings()


class Listening(InProcessGrid):
    """Keeps every reply as it leaves a hospital."""

    def __init__(self, places: dict[int, HospitalConfig]) -> None:
        super().__init__(places, None)
        self.replies: list[Message] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        self.replies += replies
        return replies


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Message], Path]:
    """Every reply of a federation with all that can travel, and the run directory."""
    run = tmp_path_factory.mktemp("run")
    data = consortium.write_dataset(tmp_path_factory.mktemp("data") / "dataset", DATASET)
    grid = Listening({h: HospitalConfig(data, h, run) for h in consortium.SIZES})
    plan = exchange.SeedPlan(
        "test", 42, SETTINGS, FederationSettings(strategy="scaffold", local_optimizer="keep"), DATASET.vocabulary
    )
    hospitals, _ = exchange.greet(grid, plan)
    files = FitFiles.of(run, 42, PRETRAINING, 0)
    rounds.pretrain(grid, plan, hospitals, initial_tensors(SETTINGS, DATASET, 42), files, lambda row: None)
    shared = {name: tensor.numpy() for name, tensor in checkpoint.load(files.tensors)[0].items()}
    models = ["finetune", "finetune-freeze", "tempt"]
    tuning.tune(grid, plan, hospitals, shared, models, save_scores=True, on_hospital=lambda label: None)
    return grid.replies, run


@pytest.mark.parametrize("model", ["tempt", "p-tuning-1", "p-tuning-2", "lora8", "LoRA", "a-1-b", "finetune-freeze"])
def test_metrics_of_a_model_of_any_name_may_leave_and_nothing_else_of_it(model: str) -> None:
    def check(name: str) -> None:
        egress.check("tune", {name: 0.5}, {})

    for name in ("records", "prauc", "jaccard", "f1", "medications", "best_epoch", "seconds.fit", "seconds.evaluation"):
        check(f"{model}.{name}")
    for name in ("stay", "prauc.1", "prauc\n", "seconds", ""):
        with pytest.raises(ValueError, match="must not leave"):
            check(f"{model}.{name}")
    with pytest.raises(ValueError, match="must not leave"):
        check("401.9, I10.prauc")


def content_of(reply: Message) -> bytes:
    """Everything that a reply holds, as bytes: names, texts, numbers and arrays."""
    parts = []
    for records in (reply.content.array_records, reply.content.metric_records, reply.content.config_records):
        for name, record in records.items():
            parts.append(name.encode())
            for key, value in record.items():
                parts += [key.encode(), value.data if hasattr(value, "data") else repr(value).encode()]
    return b"\0".join(parts)


def secrets_in(content: bytes) -> list[bytes]:
    """The codes, drugs and ids of stays that some bytes hold, in the forms in which they could travel."""
    vocabulary = DATASET.vocabulary
    texts = [*vocabulary.diagnoses, *vocabulary.procedures, *vocabulary.medication_names]
    texts += [str(code) for code in vocabulary.medications]
    secrets = [text.encode() for text in texts]
    for stay in DATASET.records.stay.tolist():
        secrets += [np.int64(stay).tobytes(), np.float64(stay).tobytes(), np.int64(stay).byteswap().tobytes()]
        secrets += [np.float32(stay).tobytes() * 2]
    found = [secret for secret in secrets if secret in content]
    stays = {str(stay).encode() for stay in DATASET.records.stay.tolist()}
    return found + [number for number in re.findall(rb"(?<![\d.])\d+(?![\d.])", content) if number in stays]


def test_no_reply_holds_a_code_a_drug_or_a_stay(heard: tuple[list[Message], Path]) -> None:
    replies, _ = heard
    assert len(replies) == 4 * 5 - 1, "hello, two rounds, the last one's score where a record validates, tuning"
    for reply in replies:
        assert not reply.has_error()
        assert secrets_in(content_of(reply)) == []


def test_the_search_finds_what_a_reply_must_not_hold() -> None:
    """So that the test above could fail."""
    stay = DATASET.records.stay[7].item()
    for record in (
        MetricRecord({"loss": stay}),
        MetricRecord({"loss": [5, stay]}),
        ConfigRecord({"vocabulary": DATASET.vocabulary.diagnoses[3]}),
        ArrayRecord({"w": Array(np.array([0.0, stay]))}),
        ArrayRecord({"w": Array(np.array([stay, 5]))}),
    ):
        message = plain_message(RecordDict({"metrics": record}), "train")
        assert secrets_in(content_of(message)), record


def test_an_error_leaves_as_its_kind_and_place_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = consortium.write_dataset(tmp_path / "dataset", DATASET)
    stay, code = DATASET.records.stay[0].item(), DATASET.vocabulary.diagnoses[0]

    def fails(*_: object) -> None:
        raise ValueError(f"stay {stay} has {code}")

    monkeypatch.setattr(app, "read_partition", fails)
    place = HospitalConfig(data, 3, tmp_path / "folder")
    plan = exchange.SeedPlan("test", 42, SETTINGS, FederationSettings(), DATASET.vocabulary)
    message = plain_message(exchange.content_of(Hello(**plan.common()), {}), "query.hello", 3, number=1)
    context = Context(run_id=0, node_id=3, node_config={}, state=RecordDict(), run_config={})
    reply = app.make_app(lambda context: place)(message, context)
    assert reply.has_error()
    assert re.fullmatch(r"ValueError at test_egress\.py:\d+", reply.error.reason or "")
    assert str(stay) in caplog.text, "the hospital itself is told"
    (line,) = [json.loads(line) for line in place.ledger().read_text().splitlines()]
    assert (line["kind"], line["texts"]) == ("hello", {"error": reply.error.reason})
    assert secrets_in(content_of(plain_message(RecordDict(), "train")) + (reply.error.reason or "").encode()) == []


def test_every_reply_stands_in_its_hospitals_ledger(heard: tuple[list[Message], Path]) -> None:
    replies, run = heard
    for hospital in consortium.SIZES:
        lines = [json.loads(line) for line in (run / "egress" / f"{hospital}.jsonl").read_text().splitlines()]
        last_score = [] if hospital == consortium.WITHOUT_VALIDATION else [("pretrain", 3)]
        expected = [("hello", 0), ("pretrain", 1), ("pretrain", 2), *last_score, ("tune", 0)]
        assert [(line["kind"], line["round"]) for line in lines] == expected
        own = [reply for reply in replies if reply.metadata.src_node_id == hospital]
        for line, reply in zip(lines, own, strict=True):
            records = reply.content.array_records
            sent = {
                **dict(records.get("arrays", {})),
                **{f"control/{name}": array for name, array in records.get("control", {}).items()},
            }
            assert sorted(line["arrays"]) == sorted(sent)
            assert line["bytes"] == sum(array.numpy().nbytes for array in sent.values())
            assert line["numbers"] == dict(reply.content.metric_records["metrics"])
        assert [line["bytes"] > 0 for line in lines] == [round in (1, 2) for _, round in expected]


def test_half_a_line_that_a_killed_process_left_is_written_anew(tmp_path: Path) -> None:
    ledger = tmp_path / "egress" / "8.jsonl"
    for number in (1, 2, 3):
        egress.record(ledger, "hello", number, {}, {"hospital": 8}, {})
        if number == 2:
            whole = ledger.read_bytes()
            ledger.write_bytes(whole[:-5])
    assert [json.loads(line)["round"] for line in ledger.read_text().splitlines()] == [1, 3]


GOOD = {"encoder.embedding": np.zeros((3, 2), np.float32)}
ROWS = {"encoder.embedding": np.zeros((1, 2), np.float32), "encoder.embedding/rows": np.zeros(1, np.int32)}
MAY = {"encoder.embedding": (3, 2)}


@pytest.mark.parametrize(
    ("kind", "numbers", "texts", "named"),
    [
        ("pretrain", {"stay": 7}, {}, "stay"),
        ("pretrain", {"loss": [0.1, 0.2]}, {}, "loss"),
        ("pretrain", {"control-is-new": 1}, {}, "control-is-new"),
        ("pretrain", {}, {"vocabulary": "0" * 64}, "vocabulary"),
        ("hello", {}, {"vocabulary": "428.9, I50.0"}, "vocabulary"),
        ("hello", {}, {"name": "0" * 64}, "name"),
        ("tune", {"tempt.scores": 0.5}, {}, "tempt.scores"),
        ("tune", {"tempt.prauc.428": 0.5}, {}, "tempt.prauc.428"),
    ],
)
def test_what_a_kind_does_not_allow_never_leaves(
    kind: str, numbers: egress.Numbers, texts: egress.Texts, named: str
) -> None:
    egress.check("pretrain", {"loss": 0.5, "hospital": 3}, {})
    egress.check("pretrain", {"loss": 0.5, "control-is-new": 1}, {}, algorithm("scaffold").numbers)
    with pytest.raises(ValueError, match=named):
        egress.check(kind, numbers, texts)


@pytest.mark.parametrize(
    ("name", "arrays", "named"),
    [
        ("fedavg", {"arrays": {"prompts": np.zeros(2, np.float32)}}, "prompts"),
        ("fedavg", {"arrays": {"encoder.embedding": np.zeros((3, 2))}}, "encoder.embedding"),
        ("fedavg", {"arrays": {"encoder.embedding": np.zeros((4, 2), np.float32)}}, "encoder.embedding"),
        ("fedavg", {"arrays": GOOD, "control": GOOD}, "'control'"),
        ("scaffold", {"arrays": ROWS, "control": ROWS}, "'control'"),
        (None, {"arrays": GOOD}, "'arrays'"),
    ],
)
def test_arrays_that_an_algorithm_does_not_tell_never_leave(
    name: str | None, arrays: Mapping[str, egress.Arrays], named: str
) -> None:
    written = Transport(changed_rows=True)
    egress.check_arrays({"arrays": ROWS}, algorithm("fedavg"), MAY, written)
    egress.check_arrays({"arrays": ROWS, "control": GOOD}, algorithm("scaffold"), MAY, written)
    found = None if name is None else algorithm(name)
    with pytest.raises(ValueError, match=f"{named}.* must not leave"):
        egress.check_arrays(arrays, found, MAY, written)


COUNTED = {
    "procedure-counts": np.array([5, 7]),
    "medications": np.array([900, 901, 902]),
    "medication-counts": np.array([5, 6, 9]),
}
CODES = {"diagnoses": ["I10"], "procedures": ["a|b", "a|c"]}
CUT = {"diagnoses": 2, "procedures": 3, "medications": 5}
HELD = {name: np.zeros(size, bool) for name, size in CUT.items()}
HELD |= {"named": np.array([4])}
NAMES = {"names": ["DRUG"]}


@pytest.mark.parametrize(
    ("kind", "arrays", "codes", "named"),
    [
        ("counts", COUNTED | {"stays": np.array([5])}, CODES, "stays"),
        ("counts", COUNTED | {"diagnoses": np.zeros(2, bool)}, CODES, "diagnoses"),
        ("counts", COUNTED | {"procedure-counts": np.array([5, 4])}, CODES, "procedure-counts"),
        ("counts", COUNTED | {"medication-counts": np.array([4, 6, 9])}, CODES, "medication-counts"),
        ("counts", COUNTED | {"procedure-counts": np.array([5, 7, 1000])}, CODES, "procedure-counts"),
        ("counts", COUNTED | {"medications": np.array([900.0, 901.0, 902.0])}, CODES, "medications"),
        ("counts", COUNTED | {"medications": np.arange(20_001)}, CODES, "medications"),
        ("counts", COUNTED, CODES | {"patients": ["B"]}, "patients"),
        ("counts", COUNTED, CODES | NAMES, "names"),
        ("counts", COUNTED, CODES | {"diagnoses": ["x" * 201]}, "diagnoses"),
        ("counts", COUNTED, CODES | {"diagnoses": [""]}, "diagnoses"),
        ("counts", COUNTED, CODES | {"diagnoses": ["x"] * 20_001}, "diagnoses"),
        ("remaining", HELD | {"diagnoses": np.zeros(3, bool)}, NAMES, "diagnoses"),
        ("remaining", HELD | {"diagnoses": np.zeros(2, np.int64)}, NAMES, "diagnoses"),
        ("remaining", HELD | {"name-counts": np.array([11])}, NAMES, "name-counts"),
        ("remaining", HELD, {"names": ["DRUG\x1b[2J"]}, "names"),
        ("remaining", HELD | {"named": np.array([4, 5])}, NAMES, "named"),
        ("remaining", HELD, NAMES | {"diagnoses": ["I10"]}, "diagnoses"),
    ],
)
def test_what_an_answer_of_the_agreement_does_not_allow_never_leaves(
    kind: str, arrays: egress.Arrays, codes: egress.Codes, named: str
) -> None:
    egress.check_agreement("vocabulary_counts", COUNTED, CODES, {}, 5)
    egress.check_agreement("vocabulary_remaining", HELD, NAMES, CUT, 5)
    with pytest.raises(ValueError, match=named):
        egress.check_agreement(f"vocabulary_{kind}", arrays, codes, CUT if kind == "remaining" else {}, 5)
