"""FedOpt: an optimizer at the server takes the mean's movement for a gradient; one of Flower's strategies does it.

Its moments are the state's part `server`, under the names of Flower's attributes.
"""

from __future__ import annotations

from dataclasses import replace

from shared_model.algorithms import fedavg
from shared_model.federated_algorithm import NOW, Arrays, Option, State

SERVER = "server"


def begin(initial: Arrays) -> State:
    return {NOW: dict(initial), SERVER: {}}


def adaptive(eta: float) -> dict[str, Option]:
    """The options of Reddi et al., with their defaults but for the learning rate."""
    return {
        "eta": Option(eta),
        "beta_1": Option(0.9, below=1.0),
        "beta_2": Option(0.99, below=1.0),
        "tau": Option(0.001, least=1e-12),
    }


ALGORITHM = replace(fedavg.ALGORITHM, begin=begin, finish="FedAvgM")
