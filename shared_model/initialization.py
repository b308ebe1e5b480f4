"""Initial weights from a generator of their own, the same whatever was built before.

A module says how what it holds itself begins, not what its children do: by `begin` (the contract `Begins`), or, as
torch's own modules do, by `reset_parameters`. One that says neither begins as its constructor left it: ones stay ones.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared_model.randomness import global_stream

How = Literal["xavier", "normal"]

_TORCHS = (nn.Linear.reset_parameters, nn.Embedding.reset_parameters, nn.EmbeddingBag.reset_parameters)


@runtime_checkable
class Begins(Protocol):
    """A module that gives its own parameters and buffers their first values."""

    def begin(self, how: How, generator: torch.Generator) -> None: ...


def initialize(module: nn.Module, how: How, generator: torch.Generator) -> None:
    """Give every module in a module its first values, in the order of their parameters' names.

    Linear weights are drawn by `draw_weights` and embeddings by `draw_rows`, from the generator; biases begin with 0.
    Torch's other modules begin as torch has it (gains 1), those that draw from a stream that the generator gives them.
    """
    own = {
        min(f"{path}.{name}" if path else name for name in (*part._parameters, *part._buffers)): part
        for path, part in module.named_modules()
        if part._parameters or part._buffers
    }
    with torch.no_grad():
        for _, part in sorted(own.items(), key=lambda item: item[0]):
            _begin(part, how, generator)


def _begin(module: nn.Module, how: How, generator: torch.Generator) -> None:
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    has_its_own = getattr(reset, "__func__", None) not in _TORCHS
    if isinstance(module, Begins):
        module.begin(how, generator)
    elif isinstance(module, nn.Linear) and not has_its_own:
        draw_weights(module.weight, how, generator)
        if module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag) and not has_its_own:
        draw_rows(module.weight, how, generator)
        if module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()  # draws nothing
    elif reset is not None:
        number = int(torch.randint(2**62, (), generator=generator))
        with global_stream(torch.device("cpu"), number, "reset"):
            reset()


def draw_weights(weight: Tensor, how: How, generator: torch.Generator) -> None:
    """Draw a linear weight.

    `xavier`: uniform within sqrt(6 / (inputs + outputs)) (Glorot, Bengio, AISTATS 2010).
    `normal`: normal(0, 0.02), as in the released code.
    """
    if how == "normal":
        _normal(weight, 0.02, generator)
        return
    bound = math.sqrt(6 / max(sum(weight.shape), 1))
    weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))


def draw_rows(rows: Tensor, how: How, generator: torch.Generator) -> None:
    """Draw vectors of tokens or prompts, one a row.

    `xavier`: normal with deviation 1/sqrt(c), so that a row is about 1 long; `normal`: normal(0, 0.02).
    """
    _normal(rows, 0.02 if how == "normal" else 1 / math.sqrt(rows.shape[-1]), generator)


def _normal(tensor: Tensor, deviation: float, generator: torch.Generator) -> None:
    tensor.copy_(torch.empty(tensor.shape).normal_(0, deviation, generator=generator))


def start_at_rates(head: nn.Sequential, rates: Float[Tensor, " labels"]) -> None:
    """Set the bias of an MLP's last layer to the log-odds of each label's rate, so that training begins from there.

    From a bias of 0, Adam carries the network from a rate of one half down to a few in a thousand by moving everything
    that all records share; in mask prediction less than 1% of the variance is then between records.
    """
    last = head[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.copy_(torch.logit(rates))
