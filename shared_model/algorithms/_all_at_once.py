"""What needs every update at once and ignores weights; one of Flower's strategies ends the round."""

from __future__ import annotations

from dataclasses import replace

from shared_model.algorithms import fedavg
from shared_model.federated_algorithm import UPDATE, Arrays, State, Told

Updates = list[tuple[Arrays, int]]


def gather(state: State) -> Updates:
    return []


def accept(gathered: Updates, told: Told) -> None:
    gathered.append((dict(told.arrays[UPDATE]), told.weight))


ALGORITHM = replace(fedavg.ALGORITHM, gather=gather, accept=accept, finish="FedMedian", holds_all=True)
