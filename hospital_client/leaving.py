"""What leaves a hospital: a reply, checked and written into the ledger before it is handed over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from hospital_client import egress, one_agreement
from hospital_client.reply import Reply
from shared_model.algorithms import algorithm as algorithm_of
from shared_model.messages import CUT, TENSORS, VOCABULARY, CountCodes, OfSeed, Pretrain, Request
from shared_model.settings import Settings
from shared_model.transport import Transport


def of_a_stranger(request: Request) -> dict[str, Any]:
    """The same of a message that the policy has not let in yet: what has bounds, as the rest may be anything."""
    if not isinstance(request, OfSeed):
        return {}
    bound = request.settings.model_dump(mode="json", include=set(Settings.model_fields))
    return {"seed": request.seed, "settings": bound}


def in_the_ledger(request: Request, number: int | None) -> dict[str, Any]:
    """What the ledger says of a message: its seed, settings and what its algorithm asks, as far as it has them.

    Args:
        number: of the request, among those that the policy counts.
    """
    if not isinstance(request, OfSeed):
        return {}
    found: dict[str, Any] = {"seed": request.seed, "settings": request.settings.model_dump(mode="json")}
    if isinstance(request, Pretrain):
        found |= {"algorithm": request.algorithm, "exchange": request.exchange, "numbers_asked": dict(request.asked)}
    return found if number is None else found | {"request": number}


def content_of(
    request: Request, content: RecordDict, reply: Reply, ledger: Path, told: Mapping[str, Any], *, minimum: int
) -> RecordDict:
    """The reply's content, once it holds nothing but what its kind allows and stands in the ledger.

    Args:
        content: of the message that the request is of.
        told: what the ledger says of the request.
        minimum: stays below which no code leaves in an agreement.

    Raises:
        ValueError: something must not leave.
        OSError: the ledger can't be written to.
    """
    kind = request.kind
    records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {"metrics": MetricRecord(dict(reply.numbers))}
    if isinstance(request, CountCodes):
        cut = {name: len(cast(list[Any], codes)) for name, codes in content.config_records.get(CUT, {}).items()}
        egress.check(kind, reply.numbers, reply.texts)
        egress.check_agreement(kind, reply.arrays.get("arrays", {}), reply.codes, cut, minimum)
    elif isinstance(request, Pretrain):
        shapes = {name: tuple(array.shape) for name, array in content.array_records[TENSORS].items()}
        algorithm = algorithm_of(request.algorithm)
        egress.check(kind, reply.numbers, reply.texts, algorithm.numbers)
        egress.check_arrays(reply.arrays, algorithm, shapes, request.transport)
    else:
        egress.check(kind, reply.numbers, reply.texts)
        egress.check_arrays(reply.arrays, None, {}, Transport())
    everything: dict[str, NDArray[Any]] = {}
    for part, arrays in reply.arrays.items():
        if arrays:
            records[part] = ArrayRecord({key: Array(array) for key, array in arrays.items()})
        everything |= {key if part == TENSORS else f"{part}/{key}": array for key, array in arrays.items()}
    number = request.round if isinstance(request, Pretrain) else 0
    came = next((content.config_records[name] for name in (CUT, VOCABULARY) if name in content), None)
    asked = one_agreement.sizes_and_digest(came) if came is not None else None
    egress.record(ledger, kind, number, everything, reply.numbers, reply.texts, reply.codes, asked, told)
    if reply.texts:
        records["config"] = ConfigRecord(dict(reply.texts))
    if reply.codes:
        records["codes"] = ConfigRecord(dict(reply.codes))
    return RecordDict(records)
