"""Raw tables of a made-up consortium, hospital by hospital and all together, and a Grid of hospitals that hold them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from hospital_client.app import HospitalConfig
from hospital_client.partition import read_partition
from server import exchange
from server.federation_settings import FederationSettings
from server.plain_message import plain_message
from server.told import StatusFile
from server.vocabulary_agreement import Agreement, agree
from shared_model.errors import TemptError
from shared_model.records import RecordSet
from shared_model.vocabulary import Vocabulary
from shared_model.vocabulary_rules import AgreementRules
from sim.inprocess_grid import InProcessGrid
from tests.hospital_client.policies import write_policy
from tests.hospital_client.raw_tables import COLUMNS, write_tables
from tests.hospital_client.test_egress import content_of
from tests.sim import consortium

Tables = dict[str, list[tuple[Any, ...]]]
LOOSE = {"min_records": 1, "top_medications": 300, "top_procedures": 1000}
SIZES = {3: 61, 8: 47, 21: 29}  # stays
FIRST_STAY = 7_000_001


def make_tables(seed: int, sizes: Mapping[int, int] = SIZES) -> Tables:
    """Tables in which many codes are rare, some in one hospital alone, and no code looks like a stay or a count."""
    draw = np.random.default_rng(seed)
    tables: Tables = {name: [] for name in COLUMNS}
    stay = FIRST_STAY
    for hospital, count in sizes.items():
        for _ in range(count):
            stay += int(draw.integers(1, 4))
            tables["patient"].append((stay, hospital, f"PATIENT-{stay // 3}"))
            for code in _drawn(draw, 40):
                tables["diagnosis"].append((stay, f"{200 + code}.5, K{code:03}", 0))
            for code in _drawn(draw, 40):
                tables["treatment"].append((stay, f"area|group {code % 7}|treatment {code:03}", 0))
            for code in _drawn(draw, 30):
                for _ in range(int(draw.integers(1, 4))):
                    name = f"DRUG {code:03} FORM {min(int(draw.geometric(0.3)), 9)}"
                    tables["medication"].append((stay, 5_000_000_001 + code, name if draw.random() < 0.9 else "", "No"))
    return tables


def _drawn(draw: np.random.Generator, codes: int) -> list[int]:
    """A set of codes, the first ones often; sometimes none."""
    return sorted({min(int(code), codes - 1) for code in draw.geometric(0.12, draw.integers(0, 6)) - 1})


def of_hospitals(tables: Mapping[str, Iterable[tuple[Any, ...]]]) -> dict[int, Tables]:
    """Each hospital's own tables; rows of stays that nobody has go to the first."""
    hospital = {row[0]: row[1] for row in tables["patient"]}
    first = min(hospital.values())
    own: dict[int, Tables] = {number: {name: [] for name in COLUMNS} for number in sorted(set(hospital.values()))}
    for name, rows in tables.items():
        for row in rows:
            own[hospital.get(row[0], first)][name].append(row)
    return own


class RawConsortium:
    """The consortium's raw tables below a folder: `all`, and each hospital's; `state/<n>/<id>` is what one keeps."""

    def __init__(self, folder: Path, tables: Tables) -> None:
        self.folder, self.tables, self.states = folder, tables, 0
        self.own = of_hospitals(tables)
        self.all = write_tables(folder / "all", tables)
        self.raw = {number: write_tables(folder / "raw" / str(number), own) for number, own in self.own.items()}

    def places(self, minimum_count: int = 1) -> dict[int, HospitalConfig]:
        """Hospitals that have answered nobody yet: each call gives them other folders."""
        self.states += 1
        state = self.folder / "state" / str(self.states)
        return {
            number: HospitalConfig(
                raw,
                number,
                write_policy(state / str(number)),
                deployed=True,
                is_raw=True,
                minimum_count=minimum_count,
            )
            for number, raw in self.raw.items()
        }


class Listening(InProcessGrid):
    """Keeps every reply, by kind and hospital; all that is sent travels in Flower's own bytes."""

    def __init__(self, places: Mapping[int, HospitalConfig]) -> None:
        super().__init__(places, None)
        self.replies: list[tuple[str, int, Message]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        for message in sent:
            message.content = _travelled(message.content)
        return super().push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        kinds = {d.message.metadata.message_id: d.message.metadata.message_type for d in self._queue}
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            assert not reply.has_error(), reply.error
            reply.content = _travelled(reply.content)
            kind = kinds[reply.metadata.reply_to_message_id].partition(".")[2]
            self.replies.append((kind, reply.metadata.src_node_id, reply))
        return replies

    def of(self, kind: str) -> dict[int, Message]:
        return {hospital: reply for found, hospital, reply in self.replies if found == kind}


def _travelled(content: RecordDict) -> RecordDict:
    return recorddict_from_proto(
        type(recorddict_to_proto(content)).FromString(recorddict_to_proto(content).SerializeToString())
    )


def agreed(places: dict[int, HospitalConfig], minimum_count: int = 1, least: int = 1, **rules: int) -> Agreement:
    chosen = AgreementRules(minimum_count=minimum_count, **LOOSE | rules)
    return agree(InProcessGrid(places, None), chosen, StatusFile(), timeout=None, expected=len(places), least=least)


def records_under(vocabulary: Vocabulary, places: dict[int, HospitalConfig], min_records: int) -> dict[int, RecordSet]:
    """What each hospital that is let in prepared when it was greeted."""
    plan = exchange.SeedPlan("test", 42, consortium.settings(), FederationSettings(), vocabulary)
    found = {}
    for hospital, place in places.items():
        try:
            let_in, refused = exchange.greet(InProcessGrid({hospital: place}, None), plan, min_records=min_records)
        except TemptError as why:  # in a simulation it is told in words
            assert "fewer than the minimum" in str(why)
            continue
        assert len(let_in) + len(refused) == 1
        assert all("expected at least" in why for why in refused.values()), refused
        for told in let_in:
            own = read_partition(place.folder / "prepared" / vocabulary.digest, hospital)
            assert own.vocabulary == vocabulary
            assert told.train + told.validation + told.test == len(own.records)
            found[hospital] = own.records
    return found


def stays_of(rows: list[tuple[Any, ...]], column: int) -> dict[Any, set[int]]:
    """Which stays have what a column holds."""
    found: dict[Any, set[int]] = defaultdict(set)
    for row in rows:
        if row[column] != "":
            found[row[column]].add(row[0])
    return found


def secrets(content: RecordDict, tables: Tables, minimum: int) -> list[bytes]:
    """What some reply's bytes hold of stays, patients, and of codes and names that too few stays have."""
    data = content_of(plain_message(content, "query"))
    texts = [str(row[0]) for row in tables["patient"]] + [row[2] for row in tables["patient"]]
    numbers = [row[0] for row in tables["patient"]]
    for table, column in (("diagnosis", 1), ("treatment", 1), ("medication", 1), ("medication", 2)):
        rare = [what for what, stays in stays_of(tables[table], column).items() if len(stays) < minimum]
        texts += [str(what) for what in rare]
        numbers += [what for what in rare if isinstance(what, int)]
    found = [text.encode() for text in texts]
    for number in numbers:
        found += [np.int64(number).tobytes(), np.int64(number).byteswap().tobytes(), np.float64(number).tobytes()]
    return [secret for secret in found if secret in data]
