"""Flower's strategies as the end of a round, for algorithms whose file names one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from numpy.typing import NDArray

from server.plain_message import array_record, plain_message
from shared_model.algorithms import Chosen
from shared_model.algorithms._server_optimizer import SERVER
from shared_model.algorithms.fedavg import Mean
from shared_model.errors import TemptError
from shared_model.federated_algorithm import NOW, Arrays, State

_WEIGHT = "num-examples"


def check_strategy(algorithm: Chosen) -> None:
    """Refuse a strategy that Flower does not have, or not with the algorithm's options, before anything is asked for.

    Raises:
        TemptError: what is wrong with which file.
    """
    name = algorithm.algorithm.finish
    if not isinstance(name, str):
        return
    try:
        _strategy(name, algorithm.options)
    except (AttributeError, TypeError, ValueError) as error:
        raise TemptError(f"strategy '{algorithm.name}': Flower's {name} does not end its rounds: {error}") from None


def finish(algorithm: Chosen, state: State, gathered: Mean | list[tuple[Arrays, int]], number: int) -> State:
    """The next state, by the strategy of Flower's that the algorithm names.

    Args:
        gathered: a mean, for a strategy that goes on from one, or every update with its weight.
    """
    strategy = _strategy(str(algorithm.algorithm.finish), algorithm.options)
    _restore(strategy, state.get(SERVER, {}))
    current = state[NOW]
    strategy.current_arrays = array_record(current) if isinstance(strategy, flower.FedAvgM) else dict(current)
    updates = [(gathered.arrays(), gathered.weight)] if isinstance(gathered, Mean) else gathered
    with np.errstate(over="ignore", invalid="ignore"):  # what is no number then is found by who asked for it
        arrays, _ = strategy.aggregate_train(number, [_reply(*update) for update in updates])
        found = {name: np.asarray(array.numpy(), dtype=np.float32) for name, array in arrays.items()}
    return {NOW: found} | ({SERVER: _moments(strategy)} if SERVER in state else {})


def _strategy(name: str, options: Mapping[str, float]) -> Any:
    return getattr(flower, name)(weighted_by_key=_WEIGHT, **options)


def _moments(strategy: Any) -> dict[str, NDArray[np.generic]]:
    """A server optimizer's, under the names of Flower's attributes."""
    found: dict[str, NDArray[np.generic]] = {}
    for moment in ("m_t", "v_t"):
        for name, array in (getattr(strategy, moment, None) or {}).items():
            found[f"{moment}.{name}"] = array
    for place, array in enumerate(getattr(strategy, "momentum_vector", None) or []):
        found[f"momentum_vector.{place:04}"] = array
    return found


def _restore(strategy: Any, moments: Mapping[str, NDArray[np.generic]]) -> None:
    for moment in ("m_t", "v_t"):
        named = {n.removeprefix(f"{moment}."): a for n, a in moments.items() if n.startswith(f"{moment}.")}
        if named:
            setattr(strategy, moment, named)
    vector = [moments[name] for name in sorted(moments) if name.startswith("momentum_vector.")]
    if vector:
        strategy.momentum_vector = vector


def _reply(arrays: Arrays, records: int) -> Message:
    content = RecordDict({"arrays": array_record(arrays), "metrics": MetricRecord({_WEIGHT: records})})
    return plain_message(content, "train")
