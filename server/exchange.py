"""Messages between the server and hospitals over any Flower Grid: who is there, and one reply a hospital."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from server.federation_settings import FederationSettings
from server.told import StatusFile
from server.validation import BadNumbers, LeftOut, Rejected, count_of, number_of
from shared_model.errors import HOSPITALS_ERROR, Defect, TemptError, printable
from shared_model.messages import ENTRIES, VOCABULARY, Hello, Request
from shared_model.settings import Settings
from shared_model.vocabulary import Vocabulary

T = TypeVar("T")
POLL_SECONDS = 1.0
_GREETING_SECONDS = 300.0  # that hospitals may take to be there, where a federation has no other limit
_SHARE = 0.8  # of the time that an exchange waits, that a hospital's work may take
_LIFETIME = 1.25  # of the time that an exchange waits, that its messages live
_WINDOW = 16
"""Hospitals whose replies are asked for at once: while the first is slow, no more than the others' are held."""
MOST_RECORDS = 10**9
_NO_NUMBER = f"{FloatingPointError.__name__} at "  # how a hospital's error begins whose loss is none


@dataclass(frozen=True)
class Hospital:
    """A hospital as it was agreed on at the start.

    Attributes:
        node: Flower's number for it; None while it is not there.
        train, validation, test: its records; 0 where the hospital's policy has them for too few.
        too_few: which of the three those are.
    """

    hospital: int
    node: int | None
    train: int
    validation: int
    test: int
    too_few: Sequence[str] = ()


@dataclass(frozen=True)
class SeedPlan:
    """What all phases of a federation's seed have in common.

    Attributes:
        experiment: names what hospitals keep of this run, so that no other run's state is gone on with.
        vocabulary: that all records are written in.
        told: where the operator reads what goes on.
        expected: hospitals that are waited for at the start, and that a quorum is a share of.
        largest_share: of all records, that one hospital counts for; None where the server knows what hospitals hold.
    """

    experiment: str
    seed: int
    settings: Settings
    federation: FederationSettings
    vocabulary: Vocabulary
    told: StatusFile = field(default_factory=StatusFile)
    expected: int = 1
    largest_share: float | None = None

    def common(self) -> dict[str, Any]:
        """What all messages of a seed have (`OfSeed`)."""
        return {
            "experiment": self.experiment,
            "seed": self.seed,
            "settings": self.settings,
            "vocabulary": self.vocabulary.digest,
            "limit": limit_of(self.federation.timeout),
        }


def greet(grid: Grid, plan: SeedPlan, *, min_records: int = 0) -> tuple[list[Hospital], dict[str, str]]:
    """Every hospital that answers and holds the agreed vocabulary, by id, and why others are left out.

    A hospital with raw tables prepares its records under the vocabulary that comes with the message.

    Args:
        min_records: a hospital with fewer is left out.
    """
    more = {VOCABULARY: ConfigRecord({**plan.vocabulary.content()})}

    def read(node: int, hospital: int, reply: Message) -> Hospital:
        return _hospital_of(node, hospital, reply, plan.vocabulary.digest, min_records)

    found, refused = ask_everybody(
        grid,
        Hello(**plan.common()),
        more,
        "hello",
        plan.federation.timeout,
        plan.told,
        expected=plan.expected,
        read=read,
    )
    for hospital in (found[hospital] for hospital in sorted(found)):
        if hospital.too_few:
            parts = ", ".join(hospital.too_few)
            plan.told.say(
                f"hello: hospital {hospital.hospital} has too few records by its policy, counted as none: {parts}"
            )
    return [found[hospital] for hospital in sorted(found)], refused


def ask_everybody(
    grid: Grid,
    request: Request,
    more: Mapping[str, ConfigRecord],
    group: str,
    timeout: float | None,
    told: StatusFile,
    *,
    expected: int,
    read: Callable[[int, int, Message], T],
) -> tuple[dict[int, T], dict[str, str]]:
    """What each hospital that is there answers, by the id that it says and its key does not gainsay; why others don't.

    Args:
        more: codes that go with the request.
        expected: hospitals to wait for, within the timeout, whose answers can be taken or have no part by the rules.
            One that was refused is asked again if it went away and came back. Without a timeout nobody else will come.
        read: makes of node, hospital and reply what is wanted, or raises `Rejected`.
    """
    content, limit = content_of(request, more), timeout if timeout is not None else _GREETING_SECONDS
    until = time.monotonic() + limit
    told.say(f"{group}: waiting up to {limit:g} s for {expected} hospitals to be there")
    claims: dict[int, list[T]] = {}
    refused: dict[int, str] = {}
    asked: set[int] = set()
    without_part: set[int] = set()

    def accepted() -> dict[int, T]:
        return {hospital: answers[0] for hospital, answers in claims.items() if len(answers) == 1}

    def awaited() -> int:
        return expected - len(accepted()) - len(without_part)

    while not asked or (timeout is not None and awaited() > 0):
        while len(nodes := set(grid.get_node_ids()) - asked) < awaited() and time.monotonic() < until:
            asked -= refused.keys() - set(grid.get_node_ids()) - without_part
            time.sleep(POLL_SECONDS)
        if not nodes:
            break
        asked |= nodes
        names = {info.node_id: info.name for info in grid.get_nodes()}
        messages = {node: grid.create_message(content, request.route, node, group, lifetime(timeout)) for node in nodes}
        told.say(f"{group}: {len(nodes)} are there; waiting {within(timeout)} for their answers")
        for node, reply in exchange(grid, messages, timeout):
            refused.pop(node, None)
            try:
                hospital = count_of(numbers_of(reply), "hospital", least=1)
                assert reply is not None
                if names.get(node, "") not in ("", f"hospital-{hospital}"):
                    raise Rejected(f"its key is {names[node]}'s, but it says that it is hospital {hospital}")
                claims.setdefault(hospital, []).append(read(node, hospital, reply))
            except Rejected as why:
                refused[node] = str(why)
                if isinstance(why, LeftOut):
                    without_part.add(node)
                told.say(f"{group}: node {node} is left out: {why}")
    left_out = {f"node {node}": why for node, why in refused.items()}
    for hospital, answers in claims.items():
        if len(answers) > 1:
            why_all = f"{len(answers)} nodes say that they are it; none can be believed"
            left_out[f"hospital {hospital}"] = why_all
            told.say(f"{group}: hospital {hospital} is left out: {why_all}")
    return accepted(), left_out


def _hospital_of(node: int, hospital: int, reply: Message, vocabulary_digest: str, min_records: int) -> Hospital:
    metrics = numbers_of(reply)
    texts = reply.content.config_records.get("config")
    digest = str(texts.get("vocabulary", "")) if texts is not None else ""
    if digest != vocabulary_digest:
        raise Rejected(
            f"hospital {hospital}'s vocabulary has the digest '{printable(digest, 12)}', expected "
            f"'{vocabulary_digest[:12]}'; prepare its records with the agreed vocabulary"
        )
    counts = {name: count_of(metrics, name, most=MOST_RECORDS) for name in ("train", "validation", "test")}
    least = max(1, min_records)  # who has no part in an agreement says 0
    if sum(counts.values()) < least:
        raise LeftOut(f"hospital {hospital} has {sum(counts.values())} records, expected at least {least}")
    few = [name for name, records in counts.items() if records < least_of(metrics, name)]
    return Hospital(hospital, node, **(counts | dict.fromkeys(few, 0)), too_few=few)


def least_of(metrics: Mapping[str, object], part: str) -> int:
    """Records of a part below which a hospital's policy lets nothing leave that stands on them; 0 if it tells none.

    In a reply to other messages than the greeting it is told in the place of what did not leave.

    Raises:
        Rejected: it is no whole number from 1 on.
    """
    name = f"least-{part}"
    return count_of(metrics, name, least=1, most=MOST_RECORDS) if name in metrics else 0


def limit_of(timeout: float | None) -> float:
    """Seconds that a hospital's work may take; 0 for no limit."""
    return _SHARE * (timeout or 0.0)


def within(timeout: float | None) -> str:
    """How long an exchange waits, in words."""
    return "no limit" if timeout is None else f"up to {timeout:g} s"


def lifetime(timeout: float | None) -> float | None:
    """Seconds that Flower keeps a message and its reply: what came within the limit is still fetched after it."""
    return None if timeout is None else _LIFETIME * timeout


def exchange(
    grid: Grid, messages: Mapping[int, Message], timeout: float | None
) -> Iterator[tuple[int, Message | None]]:
    """Send a message to each key and give the replies in the keys' order, as they come; None for one that did not.

    Args:
        timeout: seconds to wait in all; None waits for ever, for a Grid that loses no message.
    """
    keys = sorted(messages)
    waiting: dict[int, str] = {}
    there: dict[int, Message] = {}
    for key in keys:
        ids = list(grid.push_messages([messages[key]]))
        if ids and ids[0]:  # else it could not be sent
            waiting[key] = ids[0]
    until = None if timeout is None else time.monotonic() + timeout
    place = 0
    while place < len(keys):
        late = until is not None and time.monotonic() > until  # then each is asked for once more
        came = False
        for key in keys[place : place + _WINDOW]:
            if key in waiting and (reply := _pulled(grid, waiting[key], messages[key])) is not None:
                there[key], came = reply, True
                del waiting[key]
            while place < len(keys) and (keys[place] not in waiting or (late and keys[place] <= key)):
                yield keys[place], there.pop(keys[place], None)
                place += 1
        if not came and not late and place < len(keys):
            time.sleep(POLL_SECONDS)


def _pulled(grid: Grid, message_id: str, message: Message) -> Message | None:
    """The reply to one message, if it is there; an error of its hospital's if it can't be read.

    One at a time, as Flower raises what is wrong with one reply and loses those that were to come with it.
    """
    try:
        replies = list(grid.pull_messages([message_id]))
        for reply in replies:
            if reply.metadata.reply_to_message_id != message_id:
                raise ValueError("it says that it answers another message")
            if not (reply.has_error() or isinstance(reply.content, RecordDict)):
                raise TypeError("its content is no records")
    except (TemptError, Defect):  # of a simulation's worker
        raise
    except Exception as error:
        why = f"its reply can't be read ({type(error).__name__})"
        return Message(Error(HOSPITALS_ERROR, why), reply_to=message)
    return replies[0] if replies else None


def come_back(grid: Grid, nodes: Collection[int | None], needed: int, until: float) -> bool:
    """Whether so many of these nodes are there before a time; waits for them."""
    while time.monotonic() < until:
        time.sleep(POLL_SECONDS)
        if len(set(nodes).intersection(grid.get_node_ids())) >= needed:
            return True
    return False


def is_missing(reply: Message | None) -> bool:
    """Whether nothing came from the hospital itself: no reply, or an error that Flower tells."""
    return reply is None or (reply.has_error() and reply.error.code < HOSPITALS_ERROR)


_FLOWERS = {
    3: "it was not there before the message's time was over",
    4: "its reply was gone before it was fetched",
    5: "it went away: no heartbeat of its SuperNode came for a minute",
    8: "the process of its work was stopped or killed before it answered",
}


def error_of(reply: Message) -> str:
    """What an error says, on one line; in our words what Flower tells of a hospital that said nothing itself."""
    words = _FLOWERS.get(reply.error.code)
    return (
        words
        if words is not None
        else printable(" ".join(f"error {reply.error.code}: {reply.error.reason or ''}".split()), 200)
    )


def metrics_of(reply: Message, expected: Hospital) -> MetricRecord:
    """A reply's numbers, if it is the hospital's that was asked.

    Raises:
        Rejected: it is an error, or another hospital's.
    """
    metrics = numbers_of(reply)
    if number_of(metrics, "hospital") != expected.hospital:
        raise Rejected(f"says that it is hospital {metrics['hospital']}, expected {expected.hospital}")
    return metrics


def numbers_of(reply: Message | None) -> MetricRecord:
    """A reply's numbers.

    Raises:
        Rejected: there is no reply, or it is an error.
    """
    if reply is None:
        raise Rejected("no reply")
    if reply.has_error():
        kind = BadNumbers if (reply.error.reason or "").startswith(_NO_NUMBER) else Rejected
        raise kind(error_of(reply))
    metrics = reply.content.metric_records.get("metrics")
    if metrics is None:
        raise Rejected("no numbers, expected some")
    return metrics


def content_of(request: Request, more: Mapping[str, ArrayRecord | ConfigRecord]) -> RecordDict:
    """A message's content.

    Args:
        more: its arrays and lists of codes.
    """
    return RecordDict({ENTRIES: ConfigRecord(dict(request.entries())), **more})


def size_of(content: RecordDict) -> int:
    """The bytes of a message's arrays."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())
