"""SuperNode's loop answers the message that it took, whatever became of those before, against Flower's own state."""

from __future__ import annotations

import importlib
import types
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supernode.nodestate import NodeStateFactory

from hospital_client.in_step import keep_in_step
from server.plain_message import plain_message


class Node:
    """A SuperNode's loop without its processes: what it takes, works on and sends."""

    def __init__(self, loop: Any) -> None:
        stores = ObjectStoreFactory()
        self.state: Any = NodeStateFactory(objectstore_factory=stores).state()
        self.store, self.loop = stores.store(), loop
        self.state.set_node_id(7)
        self.sent: list[tuple[str, int | None]] = []
        run = Run.create_empty(1)
        self.state.store_run(run)
        self.state.set_run_series_context(run.series_id, Context(1, 7, {}, RecordDict(), {}))

    def take(self, kind: str, *, is_over: bool = False) -> int | None:
        """Take a message; its run is over by the time that its objects are fetched."""
        message = plain_message(RecordDict(), "train")
        message.metadata.__dict__.update(_run_id=1, _src_node_id=1, _dst_node_id=7, _group_id=kind)
        message.metadata.__dict__.update(_message_id=message.object_id)

        objects = get_all_nested_objects(message)

        def pull_object(run: int, name: str) -> bytes:
            if is_over:
                raise RunNotRunningException
            return objects[name].deflate()

        def confirm(run: int, name: str) -> None:
            if is_over:
                raise RunNotRunningException

        found: int | None = self.loop._pull_and_store_message(
            state=self.state,
            object_store=self.store,
            node_config={},
            receive=lambda: (message, get_object_tree(message)),
            get_run=None,
            get_fab=None,
            pull_object=pull_object,
            confirm_message_received=confirm,
            trusted_entities=None,
        )
        return found

    def work(self, *, fetches: bool = True, answers: bool = True, ends: bool = True) -> None:
        """What a ClientApp's process does."""
        (task,) = self.state.get_tasks(statuses=["pending"])
        assert self.state.claim_task(task.task_id) and self.state.activate_task(task.task_id)
        if fetches:
            (message,) = self.state.get_messages_legacy(is_reply=False)
            if answers:
                self.loop._insert_message(Message(RecordDict(), reply_to=message), self.state, self.store)
        if ends:
            assert self.state.finish_task(task.task_id, "completed" if answers else "failed", "")

    def push(self) -> None:
        def send(message: Message, tree: Any, seconds: float) -> tuple[set[str], str]:
            self.sent.append((message.metadata.group_id, message.error.code if message.has_error() else None))
            return set(), ""

        self.loop._push_messages(state=self.state, object_store=self.store, send=send, push_object=lambda *of: None)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    loop: Any = importlib.import_module("flwr.supernode.start_client_internal")
    monkeypatch.setattr(loop, "_pull_and_store_message", loop._pull_and_store_message)
    monkeypatch.setattr(loop, "_push_messages", loop._push_messages)
    keep_in_step(loop)
    return Node(loop)


def test_a_message_is_answered(node: Node) -> None:
    assert node.take("1") == 1
    node.work()
    node.push()
    assert node.sent == [("1", None)]


def test_nothing_is_left_of_a_message_whose_run_is_over(node: Node) -> None:
    """Flower worked on it, and sent what came of that in the place of the next message's reply."""
    assert node.take("1", is_over=True) is None
    assert not node.state.get_tasks(statuses=["pending", "starting", "running"])
    assert node.take("2") == 1
    node.work()
    node.push()
    assert node.sent == [("2", None)]


def test_a_reply_to_an_older_message_does_not_take_the_place_of_its_own(node: Node) -> None:
    assert node.take("1") == 1
    older = node.state.get_messages_legacy(is_reply=False)[0]
    (task,) = node.state.get_tasks(statuses=["pending"])
    node.state.finish_task(task.task_id, "failed", "")
    assert node.take("2") == 1
    node.loop._insert_message(Message(Error(8, "late"), reply_to=older), node.state, node.store)
    pushed = node.loop._push_messages

    def works_meanwhile(seconds: float) -> None:
        node.work()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(node.loop, "time", types.SimpleNamespace(sleep=works_meanwhile))
        node.push()
    assert node.sent == [("1", 8), ("2", None)] and node.loop._push_messages is pushed


@pytest.mark.parametrize("fetches", [False, True])
def test_a_process_that_ends_without_a_reply_is_told_as_such(node: Node, fetches: bool) -> None:
    """Flower waited for it without an end."""
    assert node.take("1") == 1
    node.work(fetches=fetches, answers=False)
    node.push()
    assert node.take("2") == 1
    if not fetches:
        node.state.delete_messages(message_ids=[])
    node.work()
    node.push()
    assert node.sent == [("1", 8), ("2", None)]
