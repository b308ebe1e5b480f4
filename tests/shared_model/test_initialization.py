"""First weights: their distributions, and that they depend on the generator alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from shared_model.batching import TokenRows
from shared_model.encoder import MedicalEncoder
from shared_model.initialization import draw_rows, initialize, start_at_rates
from shared_model.objectives import mlp
from shared_model.pretrainings.tempt import PretrainingNetwork
from shared_model.settings import EncoderSettings


class Module(nn.Module):
    """It says how its own parameters begin, whatever they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(200, 100)
        self.norm = nn.LayerNorm(200)
        self.codes = nn.Parameter(torch.empty(300, 64))
        self.tokens = nn.Parameter(torch.empty(200, 64))

    def begin(self, how: Any, generator: torch.Generator) -> None:
        draw_rows(self.codes, how, generator)
        draw_rows(self.tokens, how, generator)


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
    for rows in (module.codes, module.tokens):
        assert deviation(rows) == pytest.approx(1 / 8, rel=0.03)
        assert float(rows.detach().norm(dim=1).mean()) == pytest.approx(1, rel=0.02)
        assert float(rows.detach().mean()) == pytest.approx(0, abs=0.005)


def test_initialize_normal_is_normal_0_02_everywhere() -> None:
    """The released code's."""
    module = initialized("normal")
    for weights in (module.wide.weight, module.codes, module.tokens):
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
    class Reversed(Module):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.tokens = nn.Parameter(torch.empty(200, 64))
            self.codes = nn.Parameter(torch.empty(300, 64))
            self.norm = nn.LayerNorm(200)
            self.wide = nn.Linear(200, 100)

    module, expected = Reversed(), dict(initialized("xavier").named_parameters())
    initialize(module, "xavier", torch.Generator().manual_seed(1))
    assert all(torch.equal(parameter, expected[name]) for name, parameter in module.named_parameters())


def as_it_was(module: nn.Module, how: str, generator: torch.Generator) -> None:
    """The literal rule of the release before, for the modules that it was right for: by name and dimension."""
    norms = {f"{name}.weight" for name, child in module.named_modules() if isinstance(child, nn.LayerNorm)}
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name in norms else 0.0)
            elif how == "normal":
                parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.02, generator=generator))
            elif name.endswith("embedding") or name.endswith("prompts"):
                deviation = 1 / math.sqrt(parameter.shape[-1])
                parameter.copy_(torch.empty(parameter.shape).normal_(0, deviation, generator=generator))
            else:
                bound = math.sqrt(6 / sum(parameter.shape))
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


class PromptsAndHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.empty(4, 6))
        self.head = mlp(12, 5)

    def begin(self, how: Any, generator: torch.Generator) -> None:
        draw_rows(self.prompts, how, generator)


@pytest.mark.parametrize("how", ["xavier", "normal"])
@pytest.mark.parametrize("of", ["pretraining", "encoder", "prompts"])
def test_initialize_of_todays_networks_keeps_every_bit(how: Any, of: str) -> None:
    settings, rows = EncoderSettings(c=6, layers=11, initialization=how), TokenRows(7, 5)  # layer 10 before layer 2

    def build() -> nn.Module:
        if of == "pretraining":
            return PretrainingNetwork(settings, rows, torch.Generator(), "zero")
        return MedicalEncoder(settings, rows) if of == "encoder" else PromptsAndHead()

    found, expected, torchs = build(), build(), torch.get_rng_state()
    initialize(found, how, torch.Generator().manual_seed(3))
    as_it_was(expected, how, torch.Generator().manual_seed(3))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert torch.equal(torch.get_rng_state(), torchs)


class Gated(nn.Module):
    """It says nothing: what its constructor gave is how it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 3.0))
        self.mix = nn.Parameter(torch.eye(4))
        self.after = nn.Parameter(torch.zeros(2, 4))  # LoRA's second matrix
        self.register_buffer("seen", torch.tensor([7.0]))


@pytest.mark.parametrize("how", ["xavier", "normal"])
@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.BatchNorm1d(3), {"weight": [1, 1, 1], "bias": [0, 0, 0], "running_mean": [0] * 3, "running_var": [1] * 3}),
        (nn.BatchNorm1d(2, affine=False), {"running_mean": [0, 0], "running_var": [1, 1]}),
        (nn.GroupNorm(1, 2), {"weight": [1, 1], "bias": [0, 0]}),
        (nn.InstanceNorm1d(2, affine=True), {"weight": [1, 1], "bias": [0, 0]}),
        (nn.RMSNorm(2), {"weight": [1, 1]}),
        (nn.PReLU(), {"weight": [0.25]}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_initialize_of_torchs_modules_begins_as_torch_has_it(how: Any, module: nn.Module, expected: Any) -> None:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(9)
    initialize(nn.Sequential(nn.Linear(2, 2), module), how, torch.Generator().manual_seed(1))
    assert {name: tensor.tolist() for name, tensor in module.state_dict().items() if tensor.ndim} == expected


def test_initialize_of_a_module_that_says_nothing_leaves_what_its_constructor_gave() -> None:
    module = nn.ModuleDict({"gated": Gated(), "list": nn.ParameterList([torch.full((2,), 0.5), torch.ones(2, 2)])})
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    initialize(module, "xavier", torch.Generator().manual_seed(1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(("how", "expected"), [("xavier", 1 / 8), ("normal", 0.02)])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_initialize_of_an_embedding_of_any_name_is_that_of_the_token_table(
    how: Any, expected: float, kind: Any
) -> None:
    module = nn.ModuleDict({"codes": kind(500, 64, padding_idx=3)})
    initialize(module, how, torch.Generator().manual_seed(1))
    rows = module["codes"].weight.detach()
    assert rows[3].tolist() == [0] * 64
    assert deviation(rows[4:]) == pytest.approx(expected, rel=0.03)


class Ones(nn.Linear):
    """A layer that says for itself, as torch's do."""

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.constant_(self.bias, 2)


def test_initialize_of_a_layer_with_its_own_reset_heeds_it() -> None:
    module = nn.Sequential(Ones(2, 2))
    with torch.no_grad():
        module[0].weight.zero_()
    initialize(module, "xavier", torch.Generator().manual_seed(1))
    assert module[0].weight.tolist() == [[1, 1], [1, 1]] and module[0].bias.tolist() == [2, 2]


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.LSTM(3, 4),
        lambda: nn.GRU(3, 4, bidirectional=True),
        lambda: nn.Conv1d(3, 4, 2),
        lambda: nn.Bilinear(3, 4, 2),
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.TransformerEncoderLayer(4, 2, 4),
    ],
)
def test_initialize_of_layers_that_draw_from_torch_depends_on_the_generator_alone(build: Any) -> None:
    found = []
    for before, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(before)
        towers = nn.ModuleList([build(), build()])
        state = torch.get_rng_state()
        initialize(towers, "xavier", torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), state)
        found.append({name: p.detach().clone() for name, p in towers.named_parameters()})
    first, again, other = found
    drawn = [name for name in first if first[name].unique().numel() > 2]
    assert drawn and all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in drawn)
    twins = [name for name in drawn if name.startswith("0.")]
    assert not any(torch.equal(first[name], first[f"1.{name[2:]}"]) for name in twins)


def test_start_at_rates_of_hand_numbers_gives_the_last_layer_their_log_odds() -> None:
    """Rates 1/2, 1/4 and 9/10: log-odds 0, -log 3, log 9; the weights and the inner layer stay."""
    head = mlp(2, 3)
    initialize(head, "xavier", torch.Generator().manual_seed(1))
    weights = head[-1].weight.detach().clone()

    start_at_rates(head, torch.tensor([0.5, 0.25, 0.9]))

    assert head[-1].bias.tolist() == pytest.approx([0, -math.log(3), math.log(9)], abs=1e-6)
    assert torch.equal(head[-1].weight, weights)
    assert head[0].bias.tolist() == [0, 0]
