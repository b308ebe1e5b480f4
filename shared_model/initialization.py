"""Initial weights from a generator of their own, the same whatever was built before."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn


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
