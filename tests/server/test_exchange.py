"""One exchange over a Grid whose hospitals are silent, slow, or answer what can't be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from server import exchange
from server.plain_message import plain_message
from server.told import StatusFile
from server.validation import Rejected
from shared_model.messages import CountCodes
from tests.server.federations import Clock


class Line(Grid):
    """Hospitals 1, 2, ...; as Flower's Grid, it gives a reply once, and loses it if it can't read it.

    Args:
        after: seconds after which a hospital answers; None: never. The others do at once.
        unreadable: what Flower raises when it reads a hospital's reply.
        there: seconds from which and up to which a hospital is there, once or several times; the others always are.
        to: the hospital whose message a reply says that it answers, where it is not its own.
    """

    def __init__(
        self,
        hospitals: int,
        clock: Clock,
        after: dict[int, float | None] | None = None,
        unreadable: dict[int, BaseException] | None = None,
        to: dict[int, int] | None = None,
        there: dict[int, list[tuple[float, float]]] | None = None,
    ) -> None:
        self.hospitals, self._clock = range(1, hospitals + 1), clock
        self._after, self._unreadable, self._to = after or {}, unreadable or {}, to or {}
        self._there = there or {}
        self._sent: dict[str, Message] = {}
        self.pulled = 0

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any: ...

    def get_node_ids(self) -> Iterable[int]:
        now = self._clock.now
        return [h for h in self.hospitals if any(a <= now < b for a, b in self._there.get(h, [(0.0, 1e9)]))]

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return plain_message(content, message_type, dst_node_id, number=dst_node_id, group=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Sequence[str]:
        found = list(messages)
        self._sent |= {message.metadata.message_id: message for message in found}
        return [message.metadata.message_id for message in found]

    def pull_messages(self, message_ids: Iterable[str]) -> Sequence[Message]:
        replies = []
        for message in [self._sent.pop(number) for number in sorted(message_ids, key=int) if self._answered(number)]:
            hospital = message.metadata.dst_node_id
            if hospital in self._unreadable:
                raise self._unreadable[hospital]
            numbers = MetricRecord({"hospital": hospital})
            message.metadata.__dict__["_message_id"] = str(self._to.get(hospital, hospital))
            replies.append(Message(RecordDict({"metrics": numbers}), reply_to=message))
            self.pulled += 1
        return replies

    def _answered(self, number: str) -> bool:
        after = self._after.get(int(number), 0.0)
        return number in self._sent and after is not None and after <= self._clock.now

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def exchange(self, timeout: float | None) -> Iterable[tuple[int, Message | None]]:
        messages = {h: self.create_message(RecordDict(), "query", h, "test") for h in self.hospitals}
        return exchange.exchange(self, messages, timeout)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(exchange, "time", found)
    return found


def taken(replies: Iterable[tuple[int, Message | None]]) -> list[int]:
    """The hospitals that answered, in the order in which their replies are given."""
    return [hospital for hospital, reply in replies if reply is not None and not reply.has_error()]


def test_sixteen_silent_hospitals_do_not_cost_the_other_replies(clock: Clock) -> None:
    line = Line(80, clock, after=dict.fromkeys(range(1, 17)))
    assert taken(line.exchange(60.0)) == list(range(17, 81))


def test_replies_that_came_while_the_first_hospitals_were_silent_are_taken_at_the_limit(clock: Clock) -> None:
    line = Line(80, clock, after={h: None if h % 3 == 0 else 59.0 for h in range(1, 81)})
    assert taken(line.exchange(60.0)) == [h for h in range(1, 81) if h % 3]


def test_one_slow_hospital_does_not_fill_the_memory_with_the_others_replies(clock: Clock) -> None:
    line = Line(80, clock, after={1: 30.0})
    given = most = 0
    for hospital, reply in line.exchange(60.0):
        assert reply is not None
        most = max(most, line.pulled - given)
        given += 1
        assert hospital == given, "in the hospitals' order"
    assert given == 80 and most <= 16


def test_messages_live_longer_than_the_wait_for_replies_as_flower_drops_both_together(clock: Clock) -> None:
    assert exchange.lifetime(None) is None
    assert (exchange.lifetime(3600.0) or 0.0) >= 3600.0 + 600.0


@pytest.mark.parametrize(
    "error", [json.JSONDecodeError("no JSON", "x", 0), MemoryError(), RecursionError(), KeyError("a\x1b[31m")]
)
def test_a_reply_that_flower_cannot_read_is_its_hospitals_rejection_and_costs_no_other(
    clock: Clock, error: BaseException
) -> None:
    found = dict(Line(5, clock, unreadable={2: error}).exchange(None))
    assert taken(found.items()) == [1, 3, 4, 5]
    assert found[2] is not None and not exchange.is_missing(found[2])
    assert exchange.error_of(found[2]) == f"error 100: its reply can't be read ({type(error).__name__})"


def test_a_reply_whose_content_is_no_records_is_its_hospitals_rejection(clock: Clock) -> None:
    class Bare(Line):
        def pull_messages(self, message_ids: Iterable[str]) -> Sequence[Message]:
            replies = super().pull_messages(message_ids)
            for reply in replies:
                if reply.metadata.src_node_id == 2:
                    reply.__dict__["_content"] = ArrayRecord()  # as Flower reads it, if a hospital sends it so
            return replies

    found = dict(Bare(3, clock).exchange(None))
    assert taken(found.items()) == [1, 3]
    assert found[2] is not None and "can't be read" in exchange.error_of(found[2])


def test_a_reply_that_says_it_answers_another_hospitals_message_is_not_taken_for_that_hospitals(clock: Clock) -> None:
    found = dict(Line(3, clock, to={3: 1}, after={1: 5.0}).exchange(60.0))
    assert taken(found.items()) == [1, 2]
    assert found[1] is not None and found[1].content.metric_records["metrics"]["hospital"] == 1
    assert found[3] is not None and "can't be read" in exchange.error_of(found[3])


def greeted(line: Line, expected: int, refuses: Callable[[int], bool]) -> tuple[list[int], dict[str, str]]:
    def read(node: int, hospital: int, reply: Message) -> int:
        if refuses(hospital):
            raise Rejected("another vocabulary")
        return hospital

    request = CountCodes(minimum_count=1, min_records=1)
    found, refused = exchange.ask_everybody(
        line, request, {}, "hello", 60.0, StatusFile(), expected=expected, read=read
    )
    return sorted(found), refused


def test_a_refused_hospital_does_not_end_the_wait_for_the_expected_ones(clock: Clock) -> None:
    line = Line(3, clock, there={3: [(20.0, 1e9)]})
    assert greeted(line, 2, lambda hospital: hospital == 1) == ([2, 3], {"node 1": "another vocabulary"})
    assert 20.0 <= clock.now < 25.0


def test_waiting_for_hospitals_in_the_place_of_refused_ones_ends_at_the_limit(clock: Clock) -> None:
    assert greeted(Line(3, clock), 3, lambda hospital: hospital == 1)[0] == [2, 3]
    assert 60.0 <= clock.now < 65.0


def test_a_refused_hospital_that_is_mended_and_comes_back_is_asked_again(clock: Clock) -> None:
    line = Line(2, clock, there={1: [(0.0, 5.0), (30.0, 1e9)]})
    assert greeted(line, 2, lambda hospital: hospital == 1 and clock.now < 20) == ([1, 2], {})
