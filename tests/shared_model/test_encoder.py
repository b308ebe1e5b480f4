"""The encoder (Eq. 1, Eq. 2, Eq. 3, Eq. 4) against the literal oracle and against a padded version."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared_model.batching import CLS, FIRST_DIAGNOSIS, TokenRows, code_tokens, pack
from shared_model.encoder import FrozenEncoder, MedicalEncoder
from shared_model.randomness import Dropout
from shared_model.records import CodeSets
from shared_model.settings import EncoderSettings
from tests import oracles

DIAGNOSES, PROCEDURES, C = 137, 11, 6
ROWS = TokenRows(DIAGNOSES, PROCEDURES)
# Sets of 1 code, of none, and of several; two of them share codes.
DIAGNOSIS_SETS = [[4], [0, 1, 2, 7, 40], [], [7, 40, 136], [1]]
PROCEDURE_SETS = [[3, 10], [0], [1, 2, 3, 4, 5, 6, 7], [10], []]


def make_encoder(layers: int = 2, heads: int = 2, c: int = C, **more: object) -> MedicalEncoder:
    encoder = MedicalEncoder(EncoderSettings(c=c, layers=layers, heads=heads, **more), ROWS).double()
    oracles.set_by_formula(encoder)
    return encoder


def tokens_of(diagnoses: Sequence[Sequence[int]], procedures: Sequence[Sequence[int]]) -> list[CodeSets]:
    return [
        code_tokens(CodeSets.of(diagnoses), FIRST_DIAGNOSIS),
        code_tokens(CodeSets.of(procedures), ROWS.first_procedure),
    ]


def encode_diagnoses(encoder: MedicalEncoder, sets: Sequence[Sequence[int]]) -> Tensor:
    return encoder(pack([code_tokens(CodeSets.of(sets), FIRST_DIAGNOSIS)]), None)


def literal(
    parameters: Mapping[str, Tensor],
    heads: int,
    parts: Sequence[CodeSets],
    prompts: Sequence[Tensor] | None = None,
) -> Tensor:
    """Every set's representation by the oracle; each part's sets begin with its prompts."""
    embedding, layers = parameters["embedding"], oracles.layers_of(parameters)
    return torch.stack(
        [
            oracles.represent(
                [embedding[row] for row in rows],
                embedding[CLS],
                layers,
                heads,
                list(prompts[part]) if prompts is not None else (),
            )
            for part, sets in enumerate(parts)
            for rows in sets.lists()
        ]
    )


def padded(encoder: MedicalEncoder, sets: Sequence[Sequence[int]], activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The plain way, from token rows: every set padded to the longest, every position computed in every layer."""
    longest, heads = max(map(len, sets)) + 1, encoder.settings.heads
    rows = torch.tensor([[CLS, *codes] + [0] * (longest - 1 - len(codes)) for codes in sets])
    is_code = torch.tensor([[True] * (len(codes) + 1) + [False] * (longest - 1 - len(codes)) for codes in sets])
    x = encoder.embedding[rows]  # sets longest c
    for layer in encoder.layers:
        q, k, v = (
            linear(x).view(len(sets), longest, heads, -1).transpose(1, 2)
            for linear in (layer.query, layer.key, layer.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=is_code[:, None, None, :])
        multi_head = layer.output(attended.transpose(1, 2).reshape(x.shape))
        x = layer.attention_norm(x + multi_head)
        x = layer.feed_forward_norm(x + layer.feed_forward_out(activation(layer.feed_forward_in(x))))
    return x[:, 0]


def assert_gradients_equal(module: torch.nn.Module, parameters: Mapping[str, Tensor], tolerance: float = 1e-10) -> None:
    """Every parameter's gradient, reported by name with its largest difference."""
    differences = {}
    for name, parameter in module.named_parameters():
        expected = parameters[name].grad
        found = parameter.grad
        assert (found is None) == (expected is None), name
        if found is not None and expected is not None:
            difference = float((found - expected).abs().max())
            if not difference <= tolerance * max(1.0, float(expected.abs().max())):
                differences[name] = difference
    assert differences == {}


@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_encoder_for_each_depth_and_heads_equals_equations_with_gradients(layers: int, heads: int) -> None:
    """Eq. 1, Eq. 2, Eq. 3, Eq. 4: r of every set and the gradient of every parameter, to 1e-10."""
    encoder = make_encoder(layers, heads)
    parts = tokens_of(DIAGNOSIS_SETS, PROCEDURE_SETS)
    parameters = oracles.leaves(encoder)
    expected = literal(parameters, heads, parts)

    found = encoder(pack(parts), None)

    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    weights = oracles.scattered(found.shape, 5)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_gradients_equal(encoder, parameters)


def test_encoder_in_float32_equals_equations_to_1e_5() -> None:
    """Eq. 1 to Eq. 4 in the precision of training, at the paper's depth and heads and a width of 30."""
    encoder = make_encoder(2, 2, c=30).float()
    parts = tokens_of(DIAGNOSIS_SETS, PROCEDURE_SETS)
    expected = literal(oracles.leaves(encoder), 2, parts).detach()

    found = encoder(pack(parts), None).detach()

    assert found.dtype == torch.float32
    assert float((found.double() - expected).abs().max() / expected.abs().max()) < 1e-5


def test_encoder_of_sets_longer_than_a_block_equals_equations() -> None:
    """Sets of 64 and of 101 codes (more than a block's 64 slots and the paper's cut), and short ones beside them."""
    encoder = make_encoder(2, 2)
    parts = tokens_of([list(range(30, 94)), [5], list(range(101))], [[2], [1, 9]])
    with torch.no_grad():
        found = encoder(pack(parts), None)
        expected = literal(oracles.leaves(encoder), 2, parts)

    assert torch.allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_packed_equals_padded_with_gradients(activation: str) -> None:
    """60 sets of 0 to 70 codes; the padded version is torch's own attention. `gelu` is the preset `released`."""
    encoder = make_encoder(3, 3, activation=activation)
    sets = [sorted({(7 * i + j * (i + 3)) % DIAGNOSES for j in range((i * i) % 71)}) for i in range(60)]
    rows = [[FIRST_DIAGNOSIS + code for code in codes] for codes in sets]
    weights = oracles.scattered((60, C), 3)

    found = encode_diagnoses(encoder, sets)
    (found * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in encoder.named_parameters()}
    encoder.zero_grad()
    expected = padded(encoder, rows, F.relu if activation == "relu" else F.gelu)
    (expected * weights).sum().backward()

    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    for name, parameter in encoder.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, rtol=1e-10, atol=1e-10), name


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_last_layer_at_cls_alone_equals_every_token_at_cls(heads: int) -> None:
    """The rearranged Eq. 1-2 of the last layer against the same layer computed at all positions."""
    encoder = make_encoder(1, heads)
    sets = pack(tokens_of(DIAGNOSIS_SETS, PROCEDURE_SETS))
    layer = encoder.layers[0]
    embedded = encoder.embedding[sets.distinct]

    alone = layer.cls_only(embedded[sets.token], sets, None)
    full = layer.every_token(layer.project(embedded), sets, sets.token, None)

    assert torch.allclose(alone, full.reshape(-1, C)[sets.cls_slot], rtol=0, atol=1e-12)


@pytest.mark.parametrize("prompts_per_modality", [1, 2, 3])
@pytest.mark.parametrize("layers", [1, 2])
def test_frozen_encoder_with_prompts_equals_prompted_sequence_with_gradients(
    layers: int, prompts_per_modality: int
) -> None:
    """D'' and P'' of Eq. 14: own prompts at each set's start, [CLS] is read, only prompts have gradients."""
    b = prompts_per_modality
    encoder = make_encoder(layers, 2)
    parts = tokens_of(DIAGNOSIS_SETS, PROCEDURE_SETS)
    prompts = oracles.scattered((2 * b, C), 9).requires_grad_()
    same_prompts = prompts.detach().clone().requires_grad_()
    row = torch.arange(2 * b) + ROWS.first_prompt
    expected = literal(oracles.leaves(encoder), 2, parts, [same_prompts[:b], same_prompts[b:]])

    found = FrozenEncoder(encoder)(pack(parts, [row[:b], row[b:]]), prompts)

    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    weights = oracles.scattered(found.shape, 5)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert prompts.grad is not None and same_prompts.grad is not None
    assert torch.allclose(prompts.grad, same_prompts.grad, rtol=0, atol=1e-10)
    assert all(not p.requires_grad and p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_frozen_encoder_without_prompts_equals_encoder(layers: int) -> None:
    encoder = make_encoder(layers, 2)
    sets = pack(tokens_of(DIAGNOSIS_SETS, PROCEDURE_SETS))
    expected = encoder(sets, None).detach()

    found = FrozenEncoder(encoder)(sets)

    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert not found.requires_grad


def test_frozen_encoder_with_no_prompts_per_modality_equals_encoder() -> None:
    """b = 0: a prompt table without rows changes nothing."""
    encoder = make_encoder()
    parts = tokens_of(DIAGNOSIS_SETS, PROCEDURE_SETS)
    none = torch.empty(0, dtype=torch.int64)
    expected = encoder(pack(parts), None).detach()

    found = FrozenEncoder(encoder)(pack(parts, [none, none]), torch.empty(0, C, dtype=torch.float64))

    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_encoder_of_an_empty_set_is_cls_alone() -> None:
    """A set of zero codes: its softmax (Eq. 1) is 1 on [CLS] itself, so it is finite and the same everywhere."""
    encoder = make_encoder()
    parameters = oracles.leaves(encoder)
    alone = oracles.represent([], parameters["embedding"][CLS], oracles.layers_of(parameters), 2)

    found = encode_diagnoses(encoder, [[], [3, 4], []])
    only_empty = encode_diagnoses(encoder, [[]])

    assert torch.allclose(found[0], alone, rtol=0, atol=1e-12)
    assert torch.allclose(found[2], alone, rtol=0, atol=1e-12)
    assert torch.allclose(only_empty[0], alone, rtol=0, atol=1e-12)


ragged = st.lists(st.lists(st.integers(0, DIAGNOSES - 1), max_size=9, unique=True), min_size=1, max_size=7)


@settings(max_examples=25, deadline=None)
@given(sets=ragged, data=st.data())
def test_encoder_when_codes_of_sets_are_reordered_gives_same_representations(
    sets: list[list[int]], data: st.DataObject
) -> None:
    """There are no positions (Section 3.2.2)."""
    encoder = make_encoder()
    reordered = [data.draw(st.permutations(codes)) for codes in sets]

    found, again = encode_diagnoses(encoder, sets), encode_diagnoses(encoder, reordered)

    assert torch.allclose(found, again, rtol=0, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(sets=ragged, data=st.data())
def test_encoder_when_records_are_reordered_gives_each_the_same_representation(
    sets: list[list[int]], data: st.DataObject
) -> None:
    encoder = make_encoder()
    order = data.draw(st.permutations(range(len(sets))))

    found = encode_diagnoses(encoder, sets)
    again = encode_diagnoses(encoder, [sets[i] for i in order])

    assert torch.allclose(found[list(order)], again, rtol=0, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(sets=ragged, other=st.lists(st.integers(0, DIAGNOSES - 1), max_size=40, unique=True), data=st.data())
def test_encoder_when_one_set_changes_leaves_the_others_unchanged(
    sets: list[list[int]], other: list[int], data: st.DataObject
) -> None:
    """Sets of a block do not see each other."""
    encoder = make_encoder()
    changed = data.draw(st.integers(0, len(sets) - 1))
    others = [i for i in range(len(sets)) if i != changed]

    found = encode_diagnoses(encoder, sets)
    again = encode_diagnoses(encoder, [other if i == changed else codes for i, codes in enumerate(sets)])

    assert torch.allclose(found[others], again[others], rtol=0, atol=1e-12)


def test_encoder_of_one_set_has_no_gradient_at_codes_of_others() -> None:
    """Exactly 0, in both layers: a leak of any size through the mask would show here."""
    encoder = make_encoder()
    sets = [[0, 1, 2], [10, 11], [20]]

    encode_diagnoses(encoder, sets)[1].square().sum().backward()

    touched = encoder.embedding.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert touched == [CLS, FIRST_DIAGNOSIS + 10, FIRST_DIAGNOSIS + 11]


def test_encoder_tells_diagnoses_from_procedures_and_mask_from_cls() -> None:
    """Every row of the token table is its own: position 3 of both vocabularies, [MASK] and [CLS] differ."""
    encoder = make_encoder()
    token_rows = [FIRST_DIAGNOSIS + 3, ROWS.first_procedure + 3, 1, CLS]
    found = encoder(pack([CodeSets.of([[row] for row in token_rows])]), None).detach()

    assert float(torch.pdist(found).min()) > 1e-3


class Cut(Dropout):
    """A dropout that drops all of what it is given at one rate, and records what it was given."""

    def __init__(self, rate: float) -> None:
        super().__init__(torch.Generator())
        self.rate, self.seen = rate, []

    def __call__(self, x: Tensor, rate: float) -> Tensor:
        self.seen.append((rate, x.shape[-1]))
        return x * 0 if rate == self.rate else x


def test_encoder_dropout_of_sublayers_leaves_the_residual() -> None:
    """With both sublayers dropped, Eq. 3 and Eq. 4 leave LayerNorm(LayerNorm(x)) of [CLS] in every layer."""
    encoder = make_encoder(2, 2, dropout=0.25, attention_dropout=0.125)
    expected = encoder.embedding[CLS]
    for layer in encoder.layers:
        expected = layer.feed_forward_norm(layer.attention_norm(expected))
    dropout = Cut(0.25)

    found = encoder(pack([CodeSets.of([[5, 9], [30]])]), dropout)

    assert torch.allclose(found, expected.expand(2, C), rtol=0, atol=1e-12)
    assert [rate for rate, _ in dropout.seen] == [0.125, 0.25, 0.25] * 2


def test_encoder_dropout_of_attention_leaves_the_feed_forward_network() -> None:
    """With all attention dropped, MultiHead of Eq. 2 is 0, as every weight of Eq. 1 is."""
    encoder = make_encoder(2, 2, dropout=0.25, attention_dropout=0.125)
    expected = encoder.embedding[CLS]
    for layer in encoder.layers:
        middle = layer.attention_norm(expected)
        expected = layer.feed_forward_norm(middle + layer.feed_forward_out(F.relu(layer.feed_forward_in(middle))))

    found = encoder(pack([CodeSets.of([[5, 9], [30]])]), Cut(0.125))

    assert torch.allclose(found, expected.expand(2, C), rtol=0, atol=1e-12)


def test_encoder_with_dropout_is_a_function_of_its_generator() -> None:
    encoder = make_encoder(2, 2, dropout=0.3, attention_dropout=0.3)
    sets = pack(tokens_of(DIAGNOSIS_SETS, PROCEDURE_SETS))

    first = encoder(sets, Dropout(torch.Generator().manual_seed(1)))
    again = encoder(sets, Dropout(torch.Generator().manual_seed(1)))
    other = encoder(sets, Dropout(torch.Generator().manual_seed(2)))

    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, encoder(sets, None))


def test_encoder_with_dropout_rates_0_equals_no_dropout() -> None:
    encoder = make_encoder(2, 2, dropout=0, attention_dropout=0)
    sets = pack(tokens_of(DIAGNOSIS_SETS, PROCEDURE_SETS))

    assert torch.equal(encoder(sets, Dropout(torch.Generator().manual_seed(1))), encoder(sets, None))


def test_oracle_attention_of_hand_numbers_is_as_worked_out() -> None:
    """Eq. 1 on paper: one query (2, 0) of width 2, keys (1, 0) and (0, 1); softmax of sqrt(2) and 0."""
    q, k_1, k_2 = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    [output] = oracles.attention([q], [k_1, k_2], [torch.tensor([1.0, 10.0]), torch.tensor([3.0, 30.0])])

    weight = math.exp(math.sqrt(2)) / (math.exp(math.sqrt(2)) + 1)
    assert output.tolist() == pytest.approx([weight + 3 * (1 - weight), 10 * weight + 30 * (1 - weight)])
