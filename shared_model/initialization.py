"""Initial weights from a generator of their own, the same whatever was built before."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


def initialize(module: nn.Module, how: Literal["xavier", "normal"], generator: torch.Generator) -> None:
    """Draw every weight of a module anew, in the order of its parameters' names; biases 0, LayerNorm's gains 1.

    `xavier`: linear weights uniform within sqrt(6 / (inputs + outputs)) (Glorot, Bengio, AISTATS 2010), rows of the
    token table and prompts normal with deviation 1/sqrt(c).
    `normal`: everything normal(0, 0.02), as in the released code.
    """
    norms = {f"{name}.weight" for name, child in module.named_modules() if isinstance(child, nn.LayerNorm)}
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name in norms else 0.0)
                continue
            drawn = torch.empty(parameter.shape)
            if how == "normal":
                drawn.normal_(0, 0.02, generator=generator)
            elif name.endswith("embedding") or name.endswith("prompts"):
                drawn.normal_(0, 1 / math.sqrt(parameter.shape[-1]), generator=generator)
            else:
                bound = math.sqrt(6 / sum(parameter.shape))
                drawn.uniform_(-bound, bound, generator=generator)
            parameter.copy_(drawn)


def start_at_rates(head: nn.Sequential, rates: Float[Tensor, " labels"]) -> None:
    """Set the bias of an MLP's last layer to the log-odds of each label's rate, so that training begins from there.

    From a bias of 0, Adam carries the network from a rate of one half down to a few in a thousand by moving everything
    that all records share; in mask prediction less than 1% of the variance is then between records.
    """
    last = head[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.copy_(torch.logit(rates))
