"""Flower's records and messages from plain arrays, also where there is no run of Flower's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, Message, Metadata, RecordDict
from numpy.typing import NDArray


def array_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Arrays as Flower sends them."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def plain_message(
    content: RecordDict, message_type: str, node: int = 0, *, number: int = 0, group: str = "", ttl: float = 1e9
) -> Message:
    """A message to a node without a run: for an aggregation that wants replies, and for a Grid of our own.

    Args:
        number: its id, which a reply refers to.
    """
    metadata = Metadata(
        run_id=0,
        message_id=str(number),
        src_node_id=0,
        dst_node_id=node,
        reply_to_message_id="",
        group_id=group,
        created_at=0.0,
        ttl=ttl,
        message_type=message_type,
    )
    # As Flower's own grids do; its types know only what an app may say
    message: Message = Message(content, metadata=metadata)  # type: ignore[call-overload]
    return message
