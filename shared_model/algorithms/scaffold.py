"""SCAFFOLD (Karimireddy et al., ICML 2020): gradients are corrected by c - c_i, so that hospitals do not drift apart.

c_i is the mean gradient of a hospital's last update, and c the mean of all c_i over records. A hospital tells how far
its c_i has moved, and whether it moved from 0 because it kept none (a lost disk, a damaged file). Then what it had
contributed before must go, which neither side could know from c alone. So the server keeps what each hospital's c_i is
to it; it could add these up from what it was told anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared_model.algorithms import fedavg
from shared_model.federated_algorithm import (
    NOW,
    UPDATE,
    Answer,
    Arrays,
    Asked,
    AskedHere,
    LocalModel,
    State,
    Tensors,
    Told,
    Unusable,
)

_C, _IS_NEW = "control", "control-is-new"


@dataclass
class _Gathered:
    mean: fedavg.Mean
    c: dict[str, NDArray[np.float64]]


def begin(initial: Arrays) -> State:
    return {NOW: dict(initial), _C: {name: np.zeros_like(array) for name, array in initial.items()}}


def ask(state: State, options: Mapping[str, float], exchange: int) -> Asked:
    return Asked(state[NOW], {_C: state[_C]})


def local(model: LocalModel, asked: AskedHere, kept: Tensors | None) -> tuple[Answer, Mapping[str, Tensor]]:
    """Correct each gradient, and remember the mean of the raw ones.

    With plain gradient steps that mean is the new control variate of the paper's option II; it is one with Adam too.
    """
    c = asked.more[_C]
    own = {name: torch.zeros_like(of) if kept is None else kept[f"{_C}.{name}"] for name, of in c.items()}
    correction = {name: of - own[name] for name, of in c.items()}
    sums = {name: torch.zeros_like(p) for name, p in model.parameters.items()}

    def correct() -> None:
        for name, parameter in model.parameters.items():
            if parameter.grad is not None:
                sums[name] += parameter.grad
                parameter.grad += correction[name]

    loss = model.epochs(before_step=correct)
    now = {name: total / model.steps for name, total in sums.items()}
    moved = {name: now[name] - own[name] for name in own}
    # what rounding takes away on the way is missing in c: in c_i, too, or the two would drift apart
    rounded = asked.arriving(moved)
    now = {name: of + (rounded[name] - moved[name]) for name, of in now.items()}
    numbers = {_IS_NEW: 1} if kept is None and asked.last_accepted else {}
    return Answer({UPDATE: model.tensors(), _C: moved}, loss, numbers), {f"{_C}.{n}": of for n, of in now.items()}


def gather(state: State) -> _Gathered:
    return _Gathered(fedavg.Mean(), {name: array.astype(np.float64) for name, array in state[_C].items()})


def accept(gathered: _Gathered, told: Told) -> Arrays:
    """Take an update and what c_i has moved by; the c_i that the hospital has now.

    Raises:
        Unusable: c_i would be larger than a gradient can be, by steps each of which can.
    """
    moved, before, is_new = told.arrays[_C], told.before, told.numbers[_IS_NEW] == 1
    now = dict(moved) if is_new or before is None else {name: before[name] + array for name, array in moved.items()}
    norm = sum(float(np.square(array, dtype=np.float64).sum()) for array in now.values()) ** 0.5
    if norm > told.largest[_C]:
        raise Unusable(f"the {_C}: its norm is {norm:.3g} now, expected at most {told.largest[_C]:.3g}")
    fedavg.accept(gathered.mean, told)
    for name, array in moved.items():
        step = array.astype(np.float64)
        if is_new and before is not None:
            step -= before[name]
        gathered.c[name] += step * told.share  # c moves by the hospital's share of all records
    return now


def finish(state: State, gathered: _Gathered, options: Mapping[str, float], number: int, exchange: int) -> State:
    return {NOW: gathered.mean.arrays(), _C: {name: array.astype(np.float32) for name, array in gathered.c.items()}}


ALGORITHM = replace(
    fedavg.ALGORITHM,
    begin=begin,
    ask=ask,
    local=local,
    gather=gather,
    accept=accept,
    finish=finish,
    tells={UPDATE: "update", _C: "gradient"},
    numbers={_IS_NEW: (0, 1)},
    hospital_keeps=True,
    server_keeps=True,
)
