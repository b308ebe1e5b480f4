"""A SuperNode that answers the message that it has just taken: Flower's answers any, and so can fall behind for good.

What it waits for is some reply. One to an older message, whose run was over or whose process had been given up, takes
the place of the message's own, which then waits for the next message, and so on: each reply comes a round too late. And
a process that ends before it has fetched its message is waited for without an end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.app import Error, Message

_CRASHED = Error(8, "ClientApp stopped responding.")  # Flower's own, where it can tell it
_AT_WORK = ("pending", "starting", "running")  # a task's states before its end


def keep_in_step(loop: Any) -> None:
    """Let the two halves of SuperNode's loop belong together.

    Args:
        loop: Flower's module, `flwr.supernode.start_client_internal`.
    """
    pull, push = loop._pull_and_store_message, loop._push_messages
    taken: list[Message] = []

    def pulled(*, state: Any, object_store: Any, receive: Callable[[], Any], **others: Any) -> int | None:
        def noted() -> Any:
            found = receive()
            taken[:] = [] if found is None else [found[0]]
            return found

        run: int | None = pull(state=state, object_store=object_store, receive=noted, **others)
        if run is None and taken:
            _forget(state, object_store, taken[0].metadata.message_id)
        return run

    def pushed(*, state: Any, object_store: Any, send: Callable[..., Any], push_object: Callable[..., Any]) -> None:
        answered: set[str] = set()

        def noted(message: Message, *others: Any) -> Any:
            answered.add(message.metadata.reply_to_message_id)
            return send(message, *others)

        while not answered.intersection(message.metadata.message_id for message in taken):
            try:
                push(state=_Waited(state), object_store=object_store, send=noted, push_object=push_object)
            except _NobodyWorks:
                loop._insert_message(Message(_CRASHED, reply_to=taken[0]), state, object_store)

    loop._pull_and_store_message, loop._push_messages = pulled, pushed


class _NobodyWorks(Exception):
    """No reply is there, and no process that would make one."""


class _Waited:
    """SuperNode's state, which is not waited for where nobody works."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def get_messages_legacy(self, **filters: Any) -> Any:
        tasks = self._state.get_tasks(statuses=_AT_WORK)  # first: a reply is stored before its task ends
        found = self._state.get_messages_legacy(**filters)
        if not (found or tasks):
            raise _NobodyWorks
        return found


def _forget(state: Any, object_store: Any, message: str) -> None:
    """Leave nothing of a message that is not answered, as its run is over: neither itself nor work on it."""
    for task in state.get_tasks(statuses=_AT_WORK):
        state.finish_task(task.task_id, "failed", "the message is not answered")
    state.delete_messages(message_ids=[message])
    object_store.delete(message)
