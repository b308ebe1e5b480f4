"""The contract of a pretraining: a network, what it is trained by, and which part of it methods read.

A pretraining is a file of `shared_model/pretrainings/` whose `PRETRAINING` says so; its name is the file's. A method
that says `NEEDS = "<name>"` gets that part as `context.pretrained`; it is computed once a seed for all that need it.
One that differs from another in a field or two is `replace(tempt.PRETRAINING, task=...)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import BaseModel
from torch import nn

from shared_model.errors import TemptError
from shared_model.recommendation import Context
from shared_model.records import RecordSet
from shared_model.settings import OptimizationSettings
from shared_model.training import Task


@dataclass(frozen=True)
class Pretraining:
    """A pretraining.

    Attributes:
        network: a new one of the context on the CPU, its first weights drawn from the generator.
        task: the loss and the score that `training.train` trains it by, of the network, training records, validation
            records, and the context.
        optimization: what the loop is told, of the context.
        reads: the network's module that methods read, without the heads that only pretraining needs; "" for all of it.
        settings: of its own, `--set pretraining-<name>.<field>=value`; in the context as `context.own`.
    """

    network: Callable[[Context, torch.Generator], nn.Module]
    task: Callable[[nn.Module, RecordSet, RecordSet, Context], Task]
    optimization: Callable[[Context], OptimizationSettings]
    reads: str = ""
    settings: type[BaseModel] | None = None


def shared_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """What a federation shares of a network, by name.

    Raises:
        TemptError: the network keeps statistics beside its parameters (BatchNorm's); averaging them is not built, and
            without them hospitals and server would go on with different ones.
    """
    parameters = dict(network.named_parameters())
    if others := sorted(network.state_dict().keys() - parameters.keys()):
        raise TemptError(
            f"federated pretraining shares parameters alone, and the network has the buffer {others[0]}; "
            "use layers without one (LayerNorm, GroupNorm), or register what is constant as not persistent"
        )
    return parameters
