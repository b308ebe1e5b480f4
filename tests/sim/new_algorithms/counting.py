"""FedAvg in the second exchange of a round; every side counts what it did, in all types and in both exchanges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared_model.algorithms import fedavg
from shared_model.federated_algorithm import (
    NOW,
    UPDATE,
    Answer,
    Arrays,
    AskedHere,
    LocalModel,
    State,
    Tensors,
    Told,
    Unusable,
)

OWN, BEFORE, SUMS, HISTORY = "own", "best", "sums", "history"


@dataclass
class _Gathered:
    mean: fedavg.Mean
    exchange: int
    own: int = 0
    before: int = 0


def begin(initial: Arrays) -> State:
    return {NOW: dict(initial), SUMS: {"exchanges": np.array([2**53]), "tenths": np.zeros(1)}, HISTORY: {}}


def local(model: LocalModel, asked: AskedHere, kept: Tensors | None) -> tuple[Answer, Mapping[str, Tensor]]:
    """Keep how many answers of this hospital made a state, with this one."""
    count = 1 if kept is None else int(kept[OWN]) + 1
    loss = model.epochs() if asked.exchange else 0.5
    return Answer({UPDATE: model.tensors()}, loss, {OWN: count}), {OWN: torch.tensor(count)}


def gather(state: State) -> _Gathered:
    return _Gathered(fedavg.Mean(), len(state[HISTORY]) % 2)


def accept(gathered: _Gathered, told: Told) -> Arrays | None:
    """Keep the hospital's own count, of first exchanges alone."""
    if told.numbers[OWN] == 0:
        raise Unusable(f"the hospital {told.hospital} has not counted")
    before = 0 if told.before is None else int(told.before["count"][0])
    fedavg.accept(gathered.mean, told)
    gathered.own, gathered.before = gathered.own + told.numbers[OWN], gathered.before + before
    return None if gathered.exchange else {"count": np.full(1, told.numbers[OWN], np.float32)}


def finish(state: State, gathered: _Gathered, options: Mapping[str, float], number: int, exchange: int) -> State:
    sums = state[SUMS]
    counted = {"exchanges": sums["exchanges"] + 1, "tenths": sums["tenths"] + 0.1}
    history: dict[str, Any] = state[HISTORY] | {f"{number}.{exchange}": np.array([gathered.own, gathered.before])}
    made: State = {SUMS: counted, HISTORY: history}
    if exchange:  # a part that is not there at the beginning, with the name of the engine's own
        made |= {BEFORE: {"round": np.array([number], np.int32)}}
    elif BEFORE in state:
        made |= {BEFORE: state[BEFORE]}
    return made | {NOW: gathered.mean.arrays() if exchange else state[NOW]}


ALGORITHM = replace(
    fedavg.ALGORITHM,
    begin=begin,
    local=local,
    gather=gather,
    accept=accept,
    finish=finish,
    numbers={OWN: (0, 1000)},
    exchanges=2,
    hospital_keeps=True,
    server_keeps=True,
)
