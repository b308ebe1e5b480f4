"""The contract of a federated algorithm: what the server asks, what a hospital does, how answers make the next tensors.

An algorithm is a file of `shared_model/algorithms/` whose `ALGORITHM` says so; its name is the file's, and `--strategy`
knows it by being there. Most differ from FedAvg in one or two fields: `replace(fedavg.ALGORITHM, local=..., ...)`.

A round is one exchange or several. In each, `ask` says what goes to every hospital that was drawn; `local` answers
there, from what came and what the hospital kept; the server hands the answers to `accept` one after another, in the
order of the hospitals' ids; `finish` makes the next state of them. All are pure functions: what must outlive an
exchange is in the state, a tree of arrays that the checkpoint holds with their types, or in what hospital and server
keep by returning it. What they keep lasts until they keep the next: of an exchange whose answer made the state, and of
no other, whatever is lost, done again or taken back. The engine (`server/rounds.py`) does the rest and knows no
algorithm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
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
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_RESERVED = {
    "part": ("metrics", "config", "codes"),
    "number": ("hospital", "num-examples", "loss", "score-sum", "least-train", "least-validation", "least-test"),
    "asked number": ("local_epochs",),
}
"""Names that the messages and a hospital's policy have for others."""


class Unusable(Exception):
    """Raised by `accept`, before it takes anything, of an answer that can't be used; the text says what it holds."""


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
        tensors: the model's; in a round's first exchange the state's `NOW`, which all hospitals score.
        more: further arrays with the shared tensors' names and shapes, by part.
        numbers: those that the algorithm declares.

    Raises:
        ValueError: a part's name is none, or is taken.
    """

    tensors: Arrays
    more: Mapping[str, Arrays] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_names("part", self.more, UPDATE)


@dataclass(frozen=True)
class AskedHere:
    """The same as it came to a hospital, decoded.

    Attributes:
        exchange: of the round, from 0 on.
        last_accepted: the last exchange, counted over all rounds, of which this hospital's answer was taken; or 0.
        arriving: a gradient as the server will have it, which bfloat16 rounds.
    """

    more: Mapping[str, Tensors]
    numbers: Mapping[str, float]
    exchange: int
    last_accepted: int
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
            term: added to each batch's loss, at least 0; it counts in the mean.
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
        numbers: all that the algorithm declares; one that did not come is its least.
        weight: training records that the hospital counts with.
        share: the same, of those of all hospitals.
        before: what `accept` returned for this hospital's last answer that made a state, else None.
        largest: by part, the norm above which arrays were refused: of an update's movement, of a gradient itself.
    """

    hospital: int
    arrays: Mapping[str, Arrays]
    numbers: Mapping[str, int]
    loss: float
    weight: int
    share: float
    before: Arrays | None = None
    largest: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Algorithm:
    """A federated algorithm.

    Attributes:
        begin: the first state, of the first shared tensors.
        ask: of state, options and exchange.
        local: what a hospital answers, and what it keeps until the next exchange, of what it kept in the last one.
        gather: what an exchange's answers are gathered in, of the state.
        accept: take an answer; what the server keeps of this hospital, or None. It may raise `Unusable`.
        finish: the next state, of the state, what was gathered, options, the round's number and the exchange; or the
            name of Flower's strategy that does it, in `server/flower_strategies.py`.
        options: by name.
        asks: numbers of a message.
        tells: arrays of an answer, all with the shared tensors' names and shapes. An "update" is these tensors as the
            hospital has moved them, and travels as such. A "gradient" is a sum or mean over the hospital's records
            alone: it leaves a deployed hospital only if its policy has `unmasked_sums`.
        numbers: whole numbers of an answer, each with its least and most.
        exchanges: in a round.
        least: answers, of options, with fewer of which it would not keep what it promises.
        hospital_keeps: whether `local` returns something to be kept from exchange to exchange.
        server_keeps: whether `accept` does.
        holds_all: whether the answers of an exchange are all in memory at once.

    Raises:
        ValueError: a name is none, or has another meaning in messages or policies; or there is no exchange.
    """

    begin: Callable[[Arrays], State]
    ask: Callable[[State, Mapping[str, float], int], Asked]
    local: Callable[[LocalModel, AskedHere, Tensors | None], tuple[Answer, Mapping[str, Tensor]]]
    gather: Callable[[State], Any]
    accept: Callable[[Any, Told], Arrays | None]
    finish: Callable[[State, Any, Mapping[str, float], int, int], State] | str
    options: Mapping[str, Option] = field(default_factory=dict)
    asks: Mapping[str, Number] = field(default_factory=dict)
    tells: Mapping[str, Literal["update", "gradient"]] = field(default_factory=lambda: {UPDATE: "update"})
    numbers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    exchanges: int = 1
    least: Callable[[Mapping[str, float]], int] = lambda options: 1
    hospital_keeps: bool = False
    server_keeps: bool = False
    holds_all: bool = False

    def __post_init__(self) -> None:
        _check_names("part", self.tells)
        _check_names("number", self.numbers)
        _check_names("asked number", self.asks)
        if self.exchanges < 1:
            raise ValueError(f"a round has {self.exchanges} exchanges, expected at least 1")

    @property
    def tells_sums(self) -> bool:
        """Whether an answer holds sums over one hospital's records."""
        return "gradient" in self.tells.values()


def _check_names(kind: str, names: Iterable[str], *reserved: str) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"a {kind} is named {name!r}; expected lower-case letters, digits, '-' and '_'")
        if name in (*_RESERVED[kind], *reserved):
            raise ValueError(f"a {kind} is named {name!r}, which has another meaning; choose another name")


def check_state(state: State, initial: Arrays) -> None:
    """Refuse a state that a checkpoint could not hold as it is.

    Args:
        initial: has the shared tensors' names and shapes.

    Raises:
        ValueError: the first part or array that is not what is expected.
    """
    now = state.get(NOW)
    if now is None or now.keys() != initial.keys():
        raise ValueError(f"the state's part '{NOW}' holds not the shared tensors, all of them and no others")
    for name, array in now.items():
        if array.shape != initial[name].shape or array.dtype != np.float32:
            found = f"{array.dtype}{list(array.shape)}"
            raise ValueError(f"the shared tensor {name} is {found}, expected float32{list(initial[name].shape)}")
    for part, of in state.items():
        if not _NAME.fullmatch(part):
            raise ValueError(f"the state has a part {part!r}; expected lower-case letters, digits, '-' and '_'")
        for name, array in of.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
                raise ValueError(f"the state's {part}.{name} is no array of numbers that a checkpoint can hold")
