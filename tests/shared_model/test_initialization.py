"""First weights: their distributions, and that they depend on the generator alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from shared_model.initialization import initialize, start_at_rates
from shared_model.objectives import mlp


class Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(200, 100)
        self.norm = nn.LayerNorm(200)
        self.embedding = nn.Parameter(torch.empty(300, 64))
        self.prompts = nn.Parameter(torch.empty(200, 64))


def initialized(how: str, seed: int = 1) -> Module:
    module = Module()
    for parameter in module.parameters():
        nn.init.constant_(parameter, torch.nan)
    initialize(module, how, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    return module


def deviation(x: torch.Tensor) -> float:
    return float(x.detach().double().std())


@pytest.mark.parametrize("how", ["xavier", "normal"])
def test_initialize_sets_biases_0_and_gains_1(how: str) -> None:
    module = initialized(how)
    assert module.wide.bias.tolist() == [0] * 100
    assert module.norm.weight.tolist() == [1] * 200
    assert module.norm.bias.tolist() == [0] * 200


def test_initialize_xavier_is_uniform_in_glorots_bound_and_rows_are_of_length_1() -> None:
    module = initialized("xavier")
    bound = math.sqrt(6 / 300)
    weights = module.wide.weight.detach()
    assert 0.999 * bound < float(weights.abs().max()) <= bound
    assert deviation(weights) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    for rows in (module.embedding, module.prompts):
        assert deviation(rows) == pytest.approx(1 / 8, rel=0.03)
        assert float(rows.detach().norm(dim=1).mean()) == pytest.approx(1, rel=0.02)
        assert float(rows.detach().mean()) == pytest.approx(0, abs=0.005)


def test_initialize_normal_is_normal_0_02_everywhere() -> None:
    """The released code's."""
    module = initialized("normal")
    for weights in (module.wide.weight, module.embedding, module.prompts):
        assert deviation(weights) == pytest.approx(0.02, rel=0.03)
        assert float(weights.detach().abs().max()) > 0.06, "normal, not uniform"


@pytest.mark.parametrize("how", ["xavier", "normal"])
def test_initialize_from_the_same_generator_gives_the_same_bits_whatever_was_drawn_before(how: str) -> None:
    first = initialized(how)
    torch.rand(7)
    again, other = initialized(how), initialized(how, seed=2)
    for (name, a), (_, b), (_, c) in zip(
        first.named_parameters(), again.named_parameters(), other.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert a.ndim == 1 or not torch.equal(a, c), name


def test_initialize_does_not_depend_on_the_order_of_construction() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prompts = nn.Parameter(torch.empty(200, 64))
            self.embedding = nn.Parameter(torch.empty(300, 64))
            self.norm = nn.LayerNorm(200)
            self.wide = nn.Linear(200, 100)

    module, expected = Reversed(), dict(initialized("xavier").named_parameters())
    initialize(module, "xavier", torch.Generator().manual_seed(1))
    assert all(torch.equal(parameter, expected[name]) for name, parameter in module.named_parameters())


def test_start_at_rates_of_hand_numbers_gives_the_last_layer_their_log_odds() -> None:
    """Rates 1/2, 1/4 and 9/10: log-odds 0, -log 3, log 9; the weights and the inner layer stay."""
    head = mlp(2, 3)
    initialize(head, "xavier", torch.Generator().manual_seed(1))
    weights = head[-1].weight.detach().clone()

    start_at_rates(head, torch.tensor([0.5, 0.25, 0.9]))

    assert head[-1].bias.tolist() == pytest.approx([0, -math.log(3), math.log(9)], abs=1e-6)
    assert torch.equal(head[-1].weight, weights)
    assert head[0].bias.tolist() == [0, 0]
