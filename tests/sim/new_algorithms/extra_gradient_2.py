"""Extragradient (Korpelevich, 1976): two exchanges a round, each of which sums gradients; no weights come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared_model.algorithms import fedavg
from shared_model.federated_algorithm import NOW, Answer, Asked, AskedHere, LocalModel, Number, Option, State, Told

AHEAD, GRADIENT, DRAW = "ahead", "gradient", "draw"


def begin(initial: Any) -> State:
    return {NOW: dict(initial), AHEAD: dict(initial)}


def ask(state: State, options: Mapping[str, float], exchange: int) -> Asked:
    return Asked(state[AHEAD if exchange else NOW], numbers={DRAW: options["seed"]})


def local(model: LocalModel, asked: AskedHere, kept: Any) -> tuple[Answer, Mapping[str, Tensor]]:
    draws = torch.Generator().manual_seed(int(asked.numbers[DRAW]))
    loss = model.task.loss(torch.arange(model.task.records), draws)
    gradients = torch.autograd.grad(loss, list(model.parameters.values()), allow_unused=True)
    told = {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(model.parameters.items(), gradients, strict=True)
    }
    return Answer({GRADIENT: told}, loss.item()), {}


def accept(gathered: fedavg.Mean, told: Told) -> None:
    gathered.add(told.arrays[GRADIENT], told.weight)


def finish(state: State, gathered: fedavg.Mean, options: Mapping[str, float], number: int, exchange: int) -> State:
    rate = np.float32(options["eta"])
    moved = {name: state[NOW][name] - rate * gradient for name, gradient in gathered.arrays().items()}
    return state | {AHEAD if exchange == 0 else NOW: moved}


ALGORITHM = replace(
    fedavg.ALGORITHM,
    begin=begin,
    ask=ask,
    local=local,
    accept=accept,
    finish=finish,
    options={"eta": Option(0.1), "seed": Option(7)},
    asks={DRAW: Number((0, 9), "seed of what is drawn")},
    tells={GRADIENT: "gradient"},
    exchanges=2,
)
