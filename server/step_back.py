"""A step back: what an aggregation moves, so that it can be taken back, and whose updates are left out then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.validation import Arrays

_MOST_LEFT_OUT = 3
"""Updates of one round that are left out, one after the other: each costs the round anew."""


@dataclass(frozen=True)
class Moved:
    """What an aggregation moves.

    Attributes:
        current: the shared tensors.
        control: c of SCAFFOLD, else empty.
        moments: the server optimizer's.
        step: local steps that were taken in all.
    """

    current: Arrays
    control: Arrays
    moments: Mapping[str, NDArray[np.generic]]
    step: int

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """For a checkpoint, under names that begin with the prefix."""
        parts = (("now", self.current), ("control", self.control), ("server", self.moments))
        named = {f"{prefix}{part}.{name}": array for part, arrays in parts for name, array in arrays.items()}
        return {name: torch.from_numpy(np.asarray(array)) for name, array in named.items()}

    @staticmethod
    def of(tensors: Mapping[str, Tensor], step: int, like: Moved, prefix: str = "") -> Moved:
        """What `tensors` gave.

        Args:
            like: has the same names.

        Raises:
            KeyError: one is missing.
        """
        server = f"{prefix}server."
        return Moved(
            part_of(tensors, f"{prefix}now.", like.current),
            part_of(tensors, f"{prefix}control.", like.control),
            {name.removeprefix(server): t.numpy() for name, t in tensors.items() if name.startswith(server)},
            step,
        )


def part_of(tensors: Mapping[str, Tensor], prefix: str, like: Arrays) -> Arrays:
    """The arrays of a checkpoint whose names begin with a prefix.

    Raises:
        KeyError: one is missing.
    """
    return {name: np.asarray(tensors[f"{prefix}{name}"].numpy(), dtype=np.float32) for name in like}


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
