"""Messages between the server and hospitals over any Flower Grid: who is there, and one reply a hospital."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from server.federation_settings import FederationSettings
from server.validation import Rejected, number_of
from shared_model.errors import TemptError, TooFewHospitals
from shared_model.settings import Settings

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Hospital:
    """A hospital as it was agreed on at the start.

    Attributes:
        node: Flower's number for it.
        train, validation, test: its records.
    """

    hospital: int
    node: int
    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Plan:
    """What all phases of a federation's seed have in common.

    Attributes:
        experiment: names what hospitals keep of this run, so that no other run's state is gone on with.
    """

    experiment: str
    seed: int
    settings: Settings
    federation: FederationSettings

    def config(self, **more: bool | int | float | str | list[str]) -> ConfigRecord:
        settings = self.settings.model_dump_json()
        return ConfigRecord({"experiment": self.experiment, "seed": self.seed, "settings": settings, **more})


def greet(grid: Grid, plan: Plan, vocabulary_digest: str, *, expected: int = 1) -> list[Hospital]:
    """Every hospital that answers and holds the agreed vocabulary, by id.

    Args:
        expected: hospitals to wait for, within the federation's timeout.

    Raises:
        TemptError: one holds another vocabulary, or two say that they are the same.
        TooFewHospitals: none answers.
    """
    until = time.monotonic() + plan.federation.timeout
    while len(nodes := sorted(grid.get_node_ids())) < expected and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    content = RecordDict({"config": plan.config()})
    messages = {node: grid.create_message(content, "query.hello", node, "hello") for node in nodes}
    found: dict[int, Hospital] = {}
    for node, reply in exchange(grid, messages, plan.federation.timeout):
        if reply is None or reply.has_error():
            continue
        metrics, texts = reply.content.metric_records["metrics"], reply.content.config_records["config"]
        counts = {name: int(number_of(metrics, name, least=0)) for name in ("train", "validation", "test")}
        hospital = int(number_of(metrics, "hospital", least=1))
        if texts["vocabulary"] != vocabulary_digest:
            raise TemptError(
                f"hospital {hospital}: its vocabulary has the digest {str(texts['vocabulary'])[:12]}, expected "
                f"{vocabulary_digest[:12]}; prepare its records with the agreed vocabulary"
            )
        if hospital in found:
            raise TemptError(f"hospital {hospital}: two nodes say that they are it; give each node an id of its own")
        found[hospital] = Hospital(hospital, node, **counts)
    if not found:
        raise TooFewHospitals(f"no hospital of {len(nodes)} answered; expected at least one")
    return [found[hospital] for hospital in sorted(found)]


def exchange(grid: Grid, messages: Mapping[int, Message], timeout: float) -> Iterator[tuple[int, Message | None]]:
    """Send a message to each key and give the replies in the keys' order, as they come; None for one that did not."""
    keys = sorted(messages)
    ids = dict(zip(grid.push_messages([messages[key] for key in keys]), keys, strict=True))
    waiting, there = dict(ids), dict[int, Message]()
    until = time.monotonic() + timeout
    place = 0
    while place < len(keys):
        came = list(grid.pull_messages(list(waiting)))
        for reply in came:
            key = waiting.pop(reply.metadata.reply_to_message_id, None)
            if key is not None:
                there[key] = reply
        late = time.monotonic() > until
        while place < len(keys) and (keys[place] in there or late):
            yield keys[place], there.pop(keys[place], None)
            place += 1
        if not came and place < len(keys):
            time.sleep(_POLL_SECONDS)


def metrics_of(reply: Message, expected: Hospital, records: str | None = "num-examples") -> MetricRecord:
    """A reply's numbers, if it is the hospital's that was asked and tells the agreed number of records."""
    if reply.has_error():
        raise Rejected(f"error {reply.error.code}: {reply.error.reason or ''}"[:200])
    metrics = reply.content.metric_records.get("metrics")
    if metrics is None:
        raise Rejected("no numbers, expected some")
    if number_of(metrics, "hospital") != expected.hospital:
        raise Rejected(f"says that it is hospital {metrics['hospital']}, expected {expected.hospital}")
    if records is not None and number_of(metrics, records) != expected.train:
        raise Rejected(f"tells {metrics[records]} training records, expected {expected.train} as at the start")
    return metrics


def array_record(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Arrays as Flower sends them."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})
