"""FedProx (Li et al., MLSys 2020): FedAvg, where the distance from what came in counts as loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from shared_model.algorithms import fedavg
from shared_model.federated_algorithm import (
    NOW,
    UPDATE,
    Answer,
    Asked,
    AskedHere,
    LocalModel,
    Number,
    Option,
    State,
    Tensors,
)

_MU = "proximal_mu"


def ask(state: State, options: Mapping[str, float], exchange: int) -> Asked:
    return Asked(state[NOW], numbers={_MU: options[_MU]})


def local(model: LocalModel, asked: AskedHere, kept: Tensors | None) -> tuple[Answer, Mapping[str, Tensor]]:
    mu, parameters = asked.numbers[_MU], list(model.parameters.values())
    start = [p.detach().clone() for p in parameters]

    def proximal() -> Tensor:
        apart = [(p - before).square().sum() for p, before in zip(parameters, start, strict=True)]
        return 0.5 * mu * torch.stack(apart).sum()

    loss = model.epochs(term=proximal if mu else None)
    return Answer({UPDATE: model.tensors()}, loss), {}


ALGORITHM = replace(
    fedavg.ALGORITHM,
    ask=ask,
    local=local,
    options={_MU: Option(None)},
    asks={_MU: Number((0, 10), "mu of the strategy fedprox")},
)
