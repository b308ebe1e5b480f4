"""FedAvg (McMahan et al., AISTATS 2017): the mean of what hospitals have moved the tensors to, over records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from shared_model.federated_algorithm import (
    NOW,
    UPDATE,
    Algorithm,
    Answer,
    Arrays,
    Asked,
    AskedHere,
    LocalModel,
    State,
    Tensors,
    Told,
)


class Mean:
    """A mean over records, summed in float64 as the arrays come: memory does not grow with hospitals."""

    def __init__(self) -> None:
        self.weight = 0
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._memory: dict[tuple[int, ...], NDArray[np.float64]] = {}

    def add(self, arrays: Mapping[str, NDArray[Any]], weight: int) -> None:
        """Take arrays; the same ones must come in the same order for the same bits."""
        self.weight += weight
        for name, array in arrays.items():
            weighted = np.multiply(array, weight, out=self._scratch(array.shape), dtype=np.float64)
            if name in self._sums:
                self._sums[name] += weighted
            else:
                self._sums[name] = weighted.copy()

    def arrays(self) -> Arrays:
        return {name: (total / self.weight).astype(np.float32) for name, total in self._sums.items()}

    def _scratch(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Memory for an array of this shape, the same at each call: new pages cost more than the sums."""
        if shape not in self._memory:
            self._memory[shape] = np.empty(shape)
        return self._memory[shape]


def begin(initial: Arrays) -> State:
    return {NOW: dict(initial)}


def ask(state: State, options: Mapping[str, float], exchange: int) -> Asked:
    return Asked(state[NOW])


def local(model: LocalModel, asked: AskedHere, kept: Tensors | None) -> tuple[Answer, Mapping[str, Tensor]]:
    loss = model.epochs()
    return Answer({UPDATE: model.tensors()}, loss), {}


def gather(state: State) -> Mean:
    return Mean()


def accept(gathered: Mean, told: Told) -> None:
    gathered.add(told.arrays[UPDATE], told.weight)


def finish(state: State, gathered: Mean, options: Mapping[str, float], number: int, exchange: int) -> State:
    return {NOW: gathered.arrays()}


ALGORITHM = Algorithm(begin, ask, local, gather, accept, finish)
