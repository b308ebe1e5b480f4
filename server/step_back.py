"""A step back: where a federation stood before a round, and whose updates are left out when it is done again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared_model.federated_algorithm import State

_MOST_LEFT_OUT = 3
"""Updates of one round that are left out, one after the other: each costs the round anew."""


@dataclass(frozen=True)
class Stand:
    """Where a federation stands between two exchanges.

    Attributes:
        epoch: rounds that are done.
        exchange: of the round that comes next.
        step: local steps that were taken in all.
    """

    state: State
    epoch: int
    exchange: int
    step: int

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """For a checkpoint, under names that begin with the prefix."""
        named = {f"{prefix}{part}.{name}": array for part, of in self.state.items() for name, array in of.items()}
        return {name: torch.from_numpy(np.asarray(array, order="C")) for name, array in named.items()}

    def about(self) -> dict[str, int]:
        """The same, of what is no tensor."""
        return {"epoch": self.epoch, "exchange": self.exchange, "step": self.step}


def names_of(state: State) -> dict[str, list[str]]:
    """What `state_of` needs to know: the arrays of each part, an empty one's too."""
    return {part: list(of) for part, of in state.items()}


def state_of(tensors: Mapping[str, Tensor], names: Mapping[str, Sequence[str]], prefix: str = "") -> State:
    """What `Stand.tensors` gave, each array with its type.

    Args:
        names: what `names_of` gave.

    Raises:
        KeyError: an array is missing.
    """
    return {part: arrays_of(tensors, f"{prefix}{part}.", of) for part, of in names.items()}


def arrays_of(tensors: Mapping[str, Tensor], prefix: str, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """The arrays of a checkpoint whose names begin with a prefix.

    Raises:
        KeyError: one is missing.
    """
    return {name: tensors[f"{prefix}{name}"].numpy() for name in names}


@dataclass
class LeftOut:
    """Whose updates are left out of a round, as the tensors that they gave could not be gone on with."""

    round: int = 0
    hospitals: list[int] = field(default_factory=list)

    def of_round(self, number: int) -> list[int]:
        return self.hospitals if number == self.round else []

    def add(self, number: int, hospital: int) -> None:
        self.hospitals = [*self.of_round(number), hospital]
        self.round = number

    def next_of(self, number: int, weights: Mapping[int, int], asked: Sequence[int], needed: int) -> int | None:
        """The heaviest update of a round, if the round can be done without it.

        Args:
            weights: of the updates that made the round, by hospital.
            asked: the hospitals that were drawn, with those that are left out already.
            needed: updates that a round needs.
        """
        out = self.of_round(number)
        if not weights or len(out) >= _MOST_LEFT_OUT or len(set(asked) - {*out}) - 1 < needed:
            return None
        return heaviest(weights)

    def in_words(self, number: int, weights: Mapping[int, int]) -> str:
        """Whose update of a round was the heaviest, for an error that leaving it out can't mend."""
        if not weights:
            return ""
        hospital, out = heaviest(weights), self.of_round(number)
        words = f"; the heaviest update of round {number} was hospital {hospital}'s"
        words += f" ({weights[hospital] / sum(weights.values()):.0%} of the weight)"
        return words + (f", after {', '.join(map(str, out))} had been left out" if out else "")


def heaviest(weights: Mapping[int, int]) -> int:
    """The hospital of the largest weight; of several, the one of the smallest id."""
    return min(weights, key=lambda hospital: (-weights[hospital], hospital))
