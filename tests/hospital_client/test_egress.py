"""Nothing but metrics and shared tensors leaves a hospital: every reply's bytes are read for anything else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from hospital_client import egress
from hospital_client.app import Place
from server import exchange, rounds, tuning
from server.federation_settings import FederationSettings
from shared_model import checkpoint
from shared_model.fitting import PRETRAINING, FitFiles
from shared_model.transport import Transport
from sim.inprocess_grid import InProcessGrid
from tests.server.federations import initial_tensors
from tests.sim import consortium

DATASET, SETTINGS = consortium.make_dataset(), consortium.settings()


class Listening(InProcessGrid):
    """Keeps every reply as it leaves a hospital."""

    def __init__(self, places: dict[int, Place]) -> None:
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
    grid = Listening({h: Place(data, h, run) for h in consortium.SIZES})
    plan = exchange.Plan("test", 42, SETTINGS, FederationSettings(strategy="scaffold", local_optimizer="keep"))
    hospitals = exchange.greet(grid, plan, DATASET.vocabulary.digest)
    files = FitFiles.of(run, 42, PRETRAINING, 0)
    rounds.pretrain(grid, plan, hospitals, initial_tensors(SETTINGS, DATASET, 42), files, lambda row: None)
    shared = {name: tensor.numpy() for name, tensor in checkpoint.load(files.tensors)[0].items()}
    models = ["finetune", "finetune-freeze", "tempt"]
    tuning.tune(grid, plan, hospitals, shared, models, save_scores=True, on_hospital=lambda label: None)
    return grid.replies, run


def content_of(reply: Message) -> bytes:
    """Everything that a reply holds, as bytes: names, texts, numbers and arrays."""
    parts = []
    for records in (reply.content.array_records, reply.content.metric_records, reply.content.config_records):
        for name, record in records.items():
            parts.append(name.encode())
            for key, value in record.items():
                parts += [key.encode(), value.data if hasattr(value, "data") else repr(value).encode()]
    return b"\0".join(parts)


def test_no_reply_holds_a_code_a_drug_or_a_stay(heard: tuple[list[Message], Path]) -> None:
    replies, _ = heard
    vocabulary = DATASET.vocabulary
    texts = [*vocabulary.diagnoses, *vocabulary.procedures, *vocabulary.medication_names]
    texts += [str(code) for code in vocabulary.medications]
    secrets = [text.encode() for text in texts]
    for stay in DATASET.records.stay.tolist():
        secrets += [np.int64(stay).tobytes(), np.float64(stay).tobytes(), np.int64(stay).byteswap().tobytes()]
    assert len(replies) == 4 * 5, "hello, two rounds, the score of the last one, tuning"
    for reply in replies:
        assert not reply.has_error()
        found = content_of(reply)
        assert [secret for secret in secrets if secret in found] == []


def test_the_search_finds_a_stay_that_a_reply_holds(heard: tuple[list[Message], Path]) -> None:
    """So that the test above could fail."""
    reply = heard[0][0]
    stay = DATASET.records.stay[0].item()
    reply.content.metric_records["metrics"]["loss"] = [stay]
    assert str(stay).encode() in content_of(reply)
    del reply.content.metric_records["metrics"]["loss"]


def test_every_reply_stands_in_its_hospitals_ledger(heard: tuple[list[Message], Path]) -> None:
    replies, run = heard
    for hospital in consortium.SIZES:
        lines = [json.loads(line) for line in (run / "egress" / f"{hospital}.jsonl").read_text().splitlines()]
        assert [(line["kind"], line["round"]) for line in lines] == [
            ("hello", 0),
            ("pretrain", 1),
            ("pretrain", 2),
            ("pretrain", 3),
            ("tune", 0),
        ]
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
        assert lines[1]["bytes"] > 0 and lines[3]["bytes"] == lines[4]["bytes"] == 0


GOOD = {"encoder.embedding": np.zeros((3, 2), np.float32)}
MAY = {"encoder.embedding": (3, 2)}


@pytest.mark.parametrize(
    ("kind", "arrays", "numbers", "texts", "named"),
    [
        ("pretrain", {"prompts": np.zeros(2, np.float32)}, {}, {}, "prompts"),
        ("pretrain", {"encoder.embedding": np.zeros((3, 2))}, {}, {}, "encoder.embedding"),
        ("pretrain", {"encoder.embedding": np.zeros((4, 2), np.float32)}, {}, {}, "encoder.embedding"),
        ("pretrain", GOOD, {"stay": 7}, {}, "stay"),
        ("pretrain", GOOD, {"loss": [0.1, 0.2]}, {}, "loss"),
        ("pretrain", GOOD, {}, {"vocabulary": "0" * 64}, "vocabulary"),
        ("hello", {}, {}, {"vocabulary": "428.9, I50.0"}, "vocabulary"),
        ("hello", {}, {}, {"name": "0" * 64}, "name"),
        ("tune", {}, {"tempt.scores": 0.5}, {}, "tempt.scores"),
        ("tune", {}, {"tempt.prauc.428": 0.5}, {}, "tempt.prauc.428"),
    ],
)
def test_what_a_kind_does_not_allow_never_leaves(
    kind: str, arrays: egress.Arrays, numbers: egress.Numbers, texts: egress.Texts, named: str
) -> None:
    egress.check("pretrain", GOOD, {"loss": 0.5, "hospital": 3}, {}, MAY, Transport())
    with pytest.raises(ValueError, match=named):
        egress.check(kind, arrays, numbers, texts, MAY, Transport())
