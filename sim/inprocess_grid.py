"""A Flower Grid for one machine: it hands each message to the ClientApp itself, on worker processes.

Replies don't depend on the number of processes: a hospital's answer is a function of the message and its folder alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from hospital_client.app import HospitalConfig, make_app
from server.plain_message import plain_message
from shared_model.errors import Defect, TemptError
from sim.workers import Emit, Pool


@dataclass(frozen=True)
class Delivery:
    """A message and the hospital that it is for."""

    message: Message
    place: HospitalConfig

    @property
    def threads(self) -> int:
        return self.place.threads


def deliver(delivery: Delivery, emit: Emit | None = None) -> Message:
    """The hospital's reply."""
    app = make_app(lambda context: delivery.place, simulated=True)
    node = delivery.message.metadata.dst_node_id
    context = Context(run_id=0, node_id=node, node_config={}, state=RecordDict(), run_config={})
    return app(delivery.message, context)


class InProcessGrid(Grid):
    """Hospitals on this machine, by node.

    Args:
        pool: does the work of `deliver`; without one it is done in this process.
    """

    def __init__(self, places: Mapping[int, HospitalConfig], pool: Pool | None) -> None:
        self._places, self._pool = places, pool
        self._queue: deque[Delivery] = deque()
        self._busy: list[Connection] = []
        self._unanswered: set[str] = set()
        self._replies: dict[str, Message] = {}
        self._pushed = 0

    def set_run(self, run: Run) -> None:
        raise NotImplementedError("an in-process federation has no run of Flower's")

    @property
    def run(self) -> Run:
        raise NotImplementedError("an in-process federation has no run of Flower's")

    def get_node_ids(self) -> Iterable[int]:
        return list(self._places)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        self._pushed += 1
        ttl = 1e9 if ttl is None else ttl
        return plain_message(content, message_type, dst_node_id, number=self._pushed, group=group_id, ttl=ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._queue.append(Delivery(message, self._places[message.metadata.dst_node_id]))
            ids.append(message.metadata.message_id)
        self._unanswered.update(ids)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages; at least one if one of them is unanswered."""
        wanted = set(message_ids)
        while wanted & self._unanswered and not wanted & self._replies.keys():
            for reply in self._answers():
                number = reply.metadata.reply_to_message_id
                self._unanswered.remove(number)
                self._replies[number] = reply
        return [self._replies.pop(number) for number in list(self._replies) if number in wanted]

    def _answers(self) -> list[Message]:
        """What is answered next."""
        if self._pool is None:
            return [deliver(self._queue.popleft())]
        self._fill()
        replies = []
        for connection in wait(self._busy):
            assert isinstance(connection, Connection)
            kind, content = self._pool.receive(connection)
            self._busy.remove(connection)
            self._pool.idle.append(connection)
            if kind == "mistake":
                raise TemptError(content)
            if kind == "defect":
                raise Defect(f"a worker process failed:\n{content}")
            replies.append(content)
        self._fill()
        return replies

    def _fill(self) -> None:
        assert self._pool is not None
        while self._queue and len(self._busy) < self._pool.jobs:
            self._busy.append(self._pool.start(self._queue.popleft()))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError("rounds push and pull, so that no more replies are held than must be")
