"""A hospital whose updates are wrong, each round in another way: first on the path of its processes, in a test.

Flower's ClientApp process is caught when it hands a reply over, after all that is checked at the hospital.
"""

from __future__ import annotations

from typing import Any

from tests.server.after_import import AfterImport

EMBEDDING = "encoder.embedding"


def tamper(reply: Any) -> None:
    """Round 1 holds NaN, 2 another shape, 3 lacks a tensor, 4 lies about a type, 5 is huge, 6 tells other records."""
    import numpy as np
    from flwr.app import Array, ArrayRecord, MetricRecord

    number = reply.metadata.group_id
    if not reply.has_content() or "arrays" not in reply.content or not number.isdecimal():
        return
    honest = reply.content["arrays"][EMBEDDING]
    arrays = {name: array.numpy().copy() for name, array in reply.content["arrays"].items()}
    if number == "1":
        arrays[EMBEDDING][0, 0] = np.nan
    elif number == "2":
        arrays[EMBEDDING] = arrays[EMBEDDING][1:]
    elif number == "3":
        del arrays[EMBEDDING]
    elif number == "5":
        arrays[EMBEDDING] += 1e6
    elif number == "6":
        numbers = dict(reply.content["metrics"])
        reply.content["metrics"] = MetricRecord(numbers | {"num-examples": 10**6})
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    if number == "4":
        data = Array(np.arange(7.0)).data
        record[EMBEDDING] = Array(dtype=honest.dtype, shape=honest.shape, stype=honest.stype, data=data)
    reply.content["arrays"] = record


def change(module: Any) -> None:
    """Flower's module hands over what was tampered with."""
    push = module.push_message

    def tampered(client: Any, message: Any, context: Any) -> None:
        tamper(message)
        push(client, message, context)

    module.push_message = tampered


AfterImport("flwr.supernode.runtime.run_clientapp", change)
