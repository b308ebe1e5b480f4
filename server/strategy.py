"""How updates become the next shared tensors: Flower's strategies by name, and SCAFFOLD.

Mean strategies get one reply, our weighted sum of all updates in float64, taken in hospital order as they come: memory
does not grow with hospitals. Median, trimmed mean and Krum need every update at once and ignore weights.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from server.plain_message import array_record, plain_message
from shared_model.errors import TemptError, unknown

Arrays = dict[str, NDArray[np.float32]]

_MEANS = {
    "fedavg": flower.FedAvg,
    "fedprox": flower.FedProx,
    "fedavgm": flower.FedAvgM,
    "fedadam": flower.FedAdam,
    "fedyogi": flower.FedYogi,
    "scaffold": flower.FedAvg,
}
_WITH_ALL = {"fedmedian": flower.FedMedian, "fedtrimmedavg": flower.FedTrimmedAvg, "krum": flower.Krum}
STRATEGIES = sorted({**_MEANS, **_WITH_ALL})
MOST_AT_ONCE = 100
"""Hospitals of a round whose updates a strategy may hold at once: 1.2 GB of a model of the paper's size."""
_WEIGHT = "num-examples"
_BOUNDS = {"beta_1": (0.0, 1.0), "beta_2": (0.0, 1.0), "server_momentum": (0.0, 1.0), "beta": (0.0, 0.5)}
_BOUNDS |= {"tau": (1e-12, math.inf)}
"""The least value of an option and what it stays below; others are at least 0."""


def strategy_options(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """A strategy's options with their defaults, the given ones on top.

    Raises:
        TemptError: no strategy or option has that name, or an option is out of its bounds.
    """
    known_strategy(name)
    parameters = inspect.signature(_class(name).__init__).parameters.values()
    known = {
        p.name: p.default
        for p in parameters
        if isinstance(p.default, (int, float)) and not p.name.startswith(("fraction_", "min_"))
    }
    known.pop("eta_l", None)  # Flower takes it and reads it nowhere
    if name == "fedprox" and "proximal_mu" not in given:
        raise TemptError("strategy 'fedprox' without proximal_mu is fedavg; give it, such as proximal_mu=0.01")
    for option in given:
        if option not in known:
            if not known:
                raise TemptError(f"strategy '{name}' has no options; leave {option} out")
            raise unknown(f"option of {name}", option, known)
        least, below = _BOUNDS.get(option, (0.0, math.inf))
        if not least <= given[option] < below or (isinstance(known[option], int) and given[option] % 1):
            kind = "a whole number" if isinstance(known[option], int) else "a number"
            raise TemptError(f"option {option}={given[option]:g} of {name}: expected {kind} in [{least:g}, {below:g})")
    return known | {option: type(known[option])(value) for option, value in given.items()}


def known_strategy(name: str) -> None:
    """Refuse a name that is no strategy's.

    Raises:
        TemptError: so it is.
    """
    if name not in STRATEGIES:
        raise unknown("strategy", name, STRATEGIES)


def proximal_mu(name: str, options: Mapping[str, float]) -> float:
    """mu of FedProx, which hospitals apply; 0 for every other strategy."""
    return strategy_options(name, options)["proximal_mu"] if name == "fedprox" else 0.0


class Aggregation:
    """One strategy over the rounds of a federation."""

    def __init__(self, name: str, options: Mapping[str, float]) -> None:
        self.name = name
        self._strategy: Any = _class(name)(weighted_by_key=_WEIGHT, **strategy_options(name, options))
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._memory: dict[tuple[int, ...], NDArray[np.float64]] = {}
        self._weight = 0
        self._all: list[tuple[Arrays, int]] = []

    @property
    def holds_all(self) -> bool:
        """Whether a round's updates are all held at once."""
        return self.name in _WITH_ALL

    def check_number(self, hospitals: int) -> None:
        """Refuse rounds of so many hospitals that their updates do not fit into memory.

        Raises:
            TemptError: so it is.
        """
        if self.holds_all and hospitals > MOST_AT_ONCE:
            raise TemptError(
                f"strategy '{self.name}' holds every update at once, at most {MOST_AT_ONCE}, and {hospitals} hospitals "
                "train in a round; use a smaller fraction or another strategy"
            )

    def add(self, update: Arrays, records: int) -> None:
        """Take a hospital's update; the same hospitals must come in the same order for the same bits."""
        if self.holds_all:
            self._all.append((update, records))
            return
        self._weight += records
        for name, array in update.items():
            weighted = np.multiply(array, records, out=self._scratch(array.shape), dtype=np.float64)
            if name in self._sums:
                self._sums[name] += weighted
            else:
                self._sums[name] = weighted.copy()

    def _scratch(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Memory for an array of this shape, the same at each call: new pages cost more than the sums."""
        if shape not in self._memory:
            self._memory[shape] = np.empty(shape)
        return self._memory[shape]

    def finish(self, number: int, current: Arrays) -> Arrays:
        """The next shared tensors, from the updates taken since the last call and the current ones."""
        if self.holds_all:
            updates = self._all
        else:
            # FedAvg (McMahan et al., AISTATS 2017): the mean over records
            mean = {name: (total / self._weight).astype(np.float32) for name, total in self._sums.items()}
            updates = [(mean, self._weight)]
        self.forget()
        if self.name == "fedavgm":
            self._strategy.current_arrays = array_record(current)
        elif hasattr(self._strategy, "current_arrays"):
            self._strategy.current_arrays = dict(current)
        with np.errstate(over="ignore", invalid="ignore"):  # what is no number then is found by who asked for it
            arrays, _ = self._strategy.aggregate_train(number, [_reply(*update) for update in updates])
            return {name: np.asarray(array.numpy(), dtype=np.float32) for name, array in arrays.items()}

    def forget(self) -> None:
        """Drop the updates taken since the last `finish`."""
        self._all, self._sums, self._weight = [], {}, 0

    def state(self) -> dict[str, NDArray[np.generic]]:
        """The server optimizer's moments, for the checkpoint."""
        found: dict[str, NDArray[np.generic]] = {}
        for moment in ("m_t", "v_t"):
            for name, array in (getattr(self._strategy, moment, None) or {}).items():
                found[f"{moment}.{name}"] = array
        for place, array in enumerate(getattr(self._strategy, "momentum_vector", None) or []):
            found[f"momentum_vector.{place:04}"] = array
        return found

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go on from a checkpoint's moments."""
        for moment in ("m_t", "v_t"):
            named = {n.removeprefix(f"{moment}."): a for n, a in state.items() if n.startswith(f"{moment}.")}
            if named:
                setattr(self._strategy, moment, named)
        vector = [state[name] for name in sorted(state) if name.startswith("momentum_vector.")]
        if vector:
            self._strategy.momentum_vector = vector


def _class(name: str) -> type[Any]:
    return cast("type[Any]", {**_MEANS, **_WITH_ALL}[name])


def _reply(arrays: Arrays, records: int) -> Message:
    content = RecordDict({"arrays": array_record(arrays), "metrics": MetricRecord({_WEIGHT: records})})
    return plain_message(content, "train")
