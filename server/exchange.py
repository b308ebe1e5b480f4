"""Messages between the server and hospitals over any Flower Grid: who is there, and one reply a hospital."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from server.federation_settings import FederationSettings
from server.told import Told
from server.validation import Rejected, count_of, number_of
from shared_model.errors import HOSPITALS_ERROR
from shared_model.settings import Settings

POLL_SECONDS = 1.0
_GREETING_SECONDS = 300.0  # that hospitals may take to be there, where a federation has no other limit
_SHARE = 0.8  # of the time that an exchange waits, that a hospital's work may take
_WINDOW = 16
"""Replies that are fetched at once: while one hospital is slow, no more than these of the others are held."""
MOST_RECORDS = 10**9


@dataclass(frozen=True)
class Hospital:
    """A hospital as it was agreed on at the start.

    Attributes:
        node: Flower's number for it; None while it is not there.
        train, validation, test: its records.
    """

    hospital: int
    node: int | None
    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Plan:
    """What all phases of a federation's seed have in common.

    Attributes:
        experiment: names what hospitals keep of this run, so that no other run's state is gone on with.
        told: where the operator reads what goes on.
    """

    experiment: str
    seed: int
    settings: Settings
    federation: FederationSettings
    told: Told = field(default_factory=Told)

    def config(self, **more: bool | int | float | str | list[str]) -> ConfigRecord:
        settings = self.settings.model_dump_json()
        limit = _SHARE * (self.federation.timeout or 0.0)
        more |= {"experiment": self.experiment, "seed": self.seed, "settings": settings, "limit": limit}
        return ConfigRecord(dict(more))


def greet(
    grid: Grid, plan: Plan, vocabulary_digest: str, *, expected: int = 1
) -> tuple[list[Hospital], dict[str, str]]:
    """Every hospital that answers and holds the agreed vocabulary, by id, and why others are left out.

    Args:
        expected: hospitals to wait for, within the federation's timeout.
    """
    timeout = plan.federation.timeout
    limit = timeout if timeout is not None else _GREETING_SECONDS
    until = time.monotonic() + limit
    plan.told.say(f"seed {plan.seed}: waiting up to {limit:g} s for {expected} hospitals to be there")
    while len(nodes := sorted(grid.get_node_ids())) < expected and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    names = {info.node_id: info.name for info in grid.get_nodes()}
    content = RecordDict({"config": plan.config()})
    messages = {node: grid.create_message(content, "query.hello", node, "hello", timeout) for node in nodes}
    plan.told.say(f"seed {plan.seed}: {len(nodes)} are there; {within(timeout)} for their greetings")
    claims: dict[int, list[Hospital]] = {}
    refused: dict[str, str] = {}
    for node, reply in exchange(grid, messages, timeout):
        try:
            found = _hospital_of(node, reply, vocabulary_digest)
            if names.get(node, "") not in ("", f"hospital-{found.hospital}"):
                raise Rejected(f"its key is {names[node]}'s, but it says that it is hospital {found.hospital}")
            claims.setdefault(found.hospital, []).append(found)
        except Rejected as why:
            refused[f"node {node}"] = str(why)
    for hospital, found_ones in claims.items():
        if len(found_ones) > 1:
            refused[f"hospital {hospital}"] = f"{len(found_ones)} nodes say that they are it; none can be believed"
    for who, reason in refused.items():
        plan.told.say(f"{who} is left out: {reason}")
    return [claims[hospital][0] for hospital in sorted(claims) if len(claims[hospital]) == 1], refused


def _hospital_of(node: int, reply: Message | None, vocabulary_digest: str) -> Hospital:
    metrics = _numbers_of(reply)
    hospital = count_of(metrics, "hospital", least=1)
    texts = reply.content.config_records.get("config") if reply is not None else None
    digest = str(texts.get("vocabulary", "")) if texts is not None else ""
    if digest != vocabulary_digest:
        raise Rejected(
            f"hospital {hospital}'s vocabulary has the digest '{digest[:12]}', expected '{vocabulary_digest[:12]}'; "
            "prepare its records with the agreed vocabulary"
        )
    counts = {name: count_of(metrics, name, most=MOST_RECORDS) for name in ("train", "validation", "test")}
    return Hospital(hospital, node, **counts)


def within(timeout: float | None) -> str:
    """How long an exchange waits, in words."""
    return "no limit" if timeout is None else f"up to {timeout:g} s"


def exchange(
    grid: Grid, messages: Mapping[int, Message], timeout: float | None
) -> Iterator[tuple[int, Message | None]]:
    """Send a message to each key and give the replies in the keys' order, as they come; None for one that did not.

    Args:
        timeout: seconds to wait in all; None waits for ever, for a Grid that loses no message.
    """
    keys = sorted(messages)
    waiting: dict[str, int] = {}
    there: dict[int, Message | None] = {}
    for key in keys:
        ids = list(grid.push_messages([messages[key]]))
        if ids and ids[0]:
            waiting[ids[0]] = key
        else:  # it could not be sent
            there[key] = None
    until = None if timeout is None else time.monotonic() + timeout
    place = 0
    while place < len(keys):
        came = list(grid.pull_messages(list(waiting)[:_WINDOW])) if waiting else []
        for reply in came:
            key_of_reply = waiting.pop(reply.metadata.reply_to_message_id, None)
            if key_of_reply is not None:
                there[key_of_reply] = reply
        late = until is not None and time.monotonic() > until
        while place < len(keys) and (keys[place] in there or late):
            yield keys[place], there.pop(keys[place], None)
            place += 1
        if not came and place < len(keys):
            time.sleep(POLL_SECONDS)


def is_missing(reply: Message | None) -> bool:
    """Whether nothing came from the hospital itself: no reply, or an error that Flower tells."""
    return reply is None or (reply.has_error() and reply.error.code < HOSPITALS_ERROR)


def metrics_of(reply: Message, expected: Hospital) -> MetricRecord:
    """A reply's numbers, if it is the hospital's that was asked.

    Raises:
        Rejected: it is an error, or another hospital's.
    """
    metrics = _numbers_of(reply)
    if number_of(metrics, "hospital") != expected.hospital:
        raise Rejected(f"says that it is hospital {metrics['hospital']}, expected {expected.hospital}")
    return metrics


def _numbers_of(reply: Message | None) -> MetricRecord:
    if reply is None:
        raise Rejected("no reply")
    if reply.has_error():
        raise Rejected(f"error {reply.error.code}: {reply.error.reason or ''}"[:200])
    metrics = reply.content.metric_records.get("metrics")
    if metrics is None:
        raise Rejected("no numbers, expected some")
    return metrics


def size_of(content: RecordDict) -> int:
    """The bytes of a message's arrays."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())
