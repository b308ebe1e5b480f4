"""The contract of a federated algorithm: what the server asks, what a hospital does, how answers make the next tensors.

An algorithm is a file of `shared_model/algorithms/` whose `ALGORITHM` says so; its name is the file's, and `--strategy`
knows it by being there. Most differ from FedAvg in one or two fields: `replace(fedavg.ALGORITHM, local=..., ...)`.

A round is one exchange or several. In each, `ask` says what goes to every hospital that was drawn; `local` answers
there, from what came and what the hospital kept; the server hands the answers to `accept` one after another, in the
order of the hospitals' ids; `finish` makes the next state of them. All are pure functions: what must outlive an
exchange is in the state, a tree of arrays that the checkpoint holds, or in what hospital and server keep by returning
it. The engine (`server/rounds.py`) does the rest and knows no algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from shared_model.training import Task

Arrays = dict[str, NDArray[np.float32]]
State = dict[str, dict[str, NDArray[Any]]]
"""The server's, by part and name: `NOW` are the shared tensors, other parts are the algorithm's own."""
Tensors = Mapping[str, Tensor]
NOW = "now"
UPDATE = "arrays"
"""How an answer names the shared tensors as a hospital has moved them."""


@dataclass(frozen=True)
class Option:
    """An option of an algorithm.

    Attributes:
        default: whole for a whole number; None where one must be given.
        least, below: its bounds.
        example: such as is given.
    """

    default: float | None
    least: float = 0.0
    below: float = math.inf
    example: float = 0.01


@dataclass(frozen=True)
class Number:
    """A number that a message of the algorithm holds.

    Attributes:
        accepted: least and most that a deployed hospital's policy accepts by default.
        description: stands in the policy.
    """

    accepted: tuple[float, float]
    description: str


@dataclass(frozen=True)
class Asked:
    """What the server sends to the hospitals that were drawn.

    Attributes:
        tensors: the model's; in a round's first exchange the shared tensors, which all hospitals score.
        more: further arrays with the shared tensors' names and shapes, by part.
        numbers: those that the algorithm declares.
    """

    tensors: Arrays
    more: Mapping[str, Arrays] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AskedHere:
    """The same as it came to a hospital, decoded.

    Attributes:
        exchange: of the round, from 0 on.
        last_taken: the last round of which an answer of this hospital was taken, 0 for none.
        arriving: a gradient as the server will have it, which bfloat16 rounds.
    """

    more: Mapping[str, Tensors]
    numbers: Mapping[str, float]
    exchange: int
    last_taken: int
    arriving: Callable[[Tensors], Tensors] = lambda gradient: gradient


@runtime_checkable
class LocalModel(Protocol):
    """A hospital's model and records, as `local` gets them: the tensors that came are in it."""

    @property
    def task(self) -> Task: ...

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The shared ones, by name."""

    @property
    def steps(self) -> int:
        """That `epochs` takes."""

    def epochs(
        self, *, term: Callable[[], Tensor] | None = None, before_step: Callable[[], None] | None = None
    ) -> float:
        """Train for the local epochs that a round has.

        Args:
            term: added to each batch's loss.
            before_step: called when a batch's gradients are there.

        Returns:
            the mean loss of a record in the last epoch.
        """

    def tensors(self) -> dict[str, Tensor]:
        """The shared tensors as they are now."""


@dataclass(frozen=True)
class Answer:
    """What `local` has to tell.

    Attributes:
        arrays: by part, as the algorithm's `tells`.
        loss: mean of a record, as the pretraining has it.
        numbers: those that the algorithm declares, or some of them.
    """

    arrays: Mapping[str, Tensors]
    loss: float
    numbers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Told:
    """The same at the server, once it is checked.

    Attributes:
        weight: training records that the hospital counts with.
        share: the same, of those of all hospitals.
        before: what `accept` returned for this hospital's last answer that made a round, else None.
    """

    arrays: Mapping[str, Arrays]
    numbers: Mapping[str, int]
    weight: int
    share: float
    before: Arrays | None = None


@dataclass(frozen=True)
class Algorithm:
    """A federated algorithm.

    Attributes:
        begin: the first state, of the first shared tensors.
        ask: of state, options and exchange.
        local: what a hospital answers, and what it keeps until the next round, of what it kept in the last one.
        gather: what an exchange's answers are gathered in, of the state.
        accept: take an answer; what the server keeps of this hospital, or None.
        finish: the next state, of the state, what was gathered, options, the round's number and the exchange; None
            where one of Flower's strategies of the same name does it, in `server/flower_strategies.py`.
        options: by name.
        asks: numbers of a message.
        tells: arrays of an answer, all with the shared tensors' names and shapes. An "update" is these tensors as the
            hospital has moved them, and travels as such. A "gradient" is a sum or mean over the hospital's records
            alone: it leaves a deployed hospital only if its policy has `unmasked_sums`.
        numbers: whole numbers of an answer, each with its least and most.
        exchanges: in a round.
        hospital_keeps: whether `local` returns something to be kept from round to round.
        server_keeps: whether `accept` does.
        holds_all: whether the answers of an exchange are all in memory at once.
    """

    begin: Callable[[Arrays], State]
    ask: Callable[[State, Mapping[str, float], int], Asked]
    local: Callable[[LocalModel, AskedHere, Tensors | None], tuple[Answer, Mapping[str, Tensor]]]
    gather: Callable[[State], Any]
    accept: Callable[[Any, Told], Arrays | None]
    finish: Callable[[State, Any, Mapping[str, float], int, int], State] | None
    options: Mapping[str, Option] = field(default_factory=dict)
    asks: Mapping[str, Number] = field(default_factory=dict)
    tells: Mapping[str, Literal["update", "gradient"]] = field(default_factory=lambda: {UPDATE: "update"})
    numbers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    exchanges: int = 1
    hospital_keeps: bool = False
    server_keeps: bool = False
    holds_all: bool = False

    @property
    def tells_sums(self) -> bool:
        """Whether an answer holds sums over one hospital's records."""
        return "gradient" in self.tells.values()
