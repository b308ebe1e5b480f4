"""FedAvgM (Hsu et al., 2019): gradient descent with momentum at the server."""

from __future__ import annotations

from dataclasses import replace

from shared_model.algorithms import _server_optimizer
from shared_model.federated_algorithm import Option

ALGORITHM = replace(
    _server_optimizer.ALGORITHM,
    finish="FedAvgM",
    options={"server_learning_rate": Option(1.0), "server_momentum": Option(0.0, below=1.0)},
)
