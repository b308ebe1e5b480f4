"""The losses (Eq. 5, Eq. 6, Eq. 7, Eq. 8, Eq. 9, Eq. 10, Eq. 13) and the masks of Section 3.3.1."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shared_model.batching import MASK
from shared_model.objectives import (
    choose_masked,
    contrastive_loss,
    hide,
    least_contrastive_loss,
    mask_prediction_loss,
    masked_labels,
    mlp,
    recommendation_loss,
)
from shared_model.records import CodeSets
from tests import oracles

RECORDS, DIAGNOSES, PROCEDURES, C = 5, 7, 11, 3


def labels_of(shape: tuple[int, int], number: int) -> Tensor:
    return (oracles.scattered(shape, number) > 0.4).double()


def gradient(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of))


def test_mlp_of_a_row_equals_linear_relu_linear() -> None:
    """MLP of Eq. 5, Eq. 8, Eq. 12 and Eq. 14, its input's width inside."""
    network = mlp(C, DIAGNOSES).double()
    oracles.set_by_formula(network)
    x = oracles.scattered((C,), 4)

    assert network[0].weight.shape == (C, C)
    expected = oracles.mlp(x, *oracles.mlp_of(oracles.leaves(network), ""))
    assert torch.allclose(network(x[None])[0], expected, rtol=0, atol=1e-12)


def test_mask_prediction_loss_of_logits_equals_equations_with_gradients() -> None:
    """Eq. 5, Eq. 6 and Eq. 7: means over vocabulary and records, both modalities added."""
    logits_d = (3 * oracles.scattered((RECORDS, DIAGNOSES), 1)).requires_grad_()
    logits_p = (3 * oracles.scattered((RECORDS, PROCEDURES), 2)).requires_grad_()
    y_d, y_p = labels_of((RECORDS, DIAGNOSES), 3), labels_of((RECORDS, PROCEDURES), 4)

    found = mask_prediction_loss(logits_d, y_d, logits_p, y_p)
    expected = oracles.mask_loss(
        [oracles.sigmoid(row) for row in logits_d],
        y_d.tolist(),
        [oracles.sigmoid(row) for row in logits_p],
        y_p.tolist(),
    )

    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    for a, b in zip(gradient(found, logits_d, logits_p), gradient(expected, logits_d, logits_p), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_mask_prediction_loss_of_hand_numbers_is_as_worked_out() -> None:
    """Eq. 6: probability 1/2 costs log 2 a code whatever the label, in each modality."""
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    found = mask_prediction_loss(zeros, labels_of((2, 3), 1), zeros[:, :2], labels_of((2, 2), 2))
    assert float(found) == pytest.approx(2 * math.log(2), abs=1e-12)


def test_mask_prediction_loss_of_extreme_logits_is_finite() -> None:
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = mask_prediction_loss(logits, torch.tensor([[0.0, 1.0]]), logits, torch.tensor([[1.0, 0.0]]))
    assert float(loss.detach()) == pytest.approx(1e4)
    assert gradient(loss, logits)[0].isfinite().all()


def test_recommendation_loss_of_logits_equals_equation_with_gradient() -> None:
    """Eq. 13."""
    logits = (3 * oracles.scattered((RECORDS, DIAGNOSES), 6)).requires_grad_()
    y = labels_of((RECORDS, DIAGNOSES), 7)
    y[2] = 0  # a record without a positive label

    found = recommendation_loss(logits, y)
    expected = oracles.tuning_loss([oracles.sigmoid(row) for row in logits], y.tolist())

    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    assert torch.allclose(gradient(found, logits)[0], gradient(expected, logits)[0], rtol=0, atol=1e-12)


def test_losses_of_float64_logits_and_float32_labels_are_float64() -> None:
    """Eq. 6 and Eq. 13 in the precision of the network: labels are float32 wherever they are made."""
    logits, y = oracles.scattered((RECORDS, DIAGNOSES), 6), labels_of((RECORDS, DIAGNOSES), 7)
    found = torch.stack(
        [recommendation_loss(logits, y.float()), mask_prediction_loss(logits, y.float(), logits, y.float())]
    )
    expected = [float(recommendation_loss(logits, y)), float(mask_prediction_loss(logits, y, logits, y))]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_recommendation_loss_of_hand_numbers_is_as_worked_out() -> None:
    """Eq. 13: probabilities 3/4 (prescribed) and 1/4 (not) cost log(4/3) each, 1/4 (prescribed) costs log 4."""
    logits = torch.tensor([[math.log(3), -math.log(3)], [-math.log(3), -math.log(3)]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert float(recommendation_loss(logits, y)) == pytest.approx((3 * math.log(4 / 3) + math.log(4)) / 4, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.8, 0.1, 2.0])
@pytest.mark.parametrize("records", [2, 3, 5])
def test_contrastive_loss_of_a_batch_equals_equations_with_gradients(records: int, temperature: float) -> None:
    """Eq. 9 and Eq. 10: both directions, the positive pair not in the denominator."""
    u_d = oracles.scattered((records, C), 1).requires_grad_()
    u_p = oracles.scattered((records, C), 2).requires_grad_()

    found = contrastive_loss(u_d, u_p, temperature)
    expected = oracles.contrastive_loss(list(u_d), list(u_p), temperature)

    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    for a, b in zip(gradient(found, u_d, u_p), gradient(expected, u_d, u_p), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)


def test_contrastive_loss_of_hand_numbers_is_as_worked_out() -> None:
    """Eq. 9 on paper: u_d = x, y; u_p = x, -x. The cosines are 1, -1 (first row) and 0, 0 (second), tau is 1/2.

    L_dp = ((-2 - 2) + (0 - 0)) / 2 = -2; L_pd takes the denominators from the columns: ((0 - 2) + (-2 - 0)) / 2 = -2.
    So it is negative, which it could not be with the positive in the denominator. Lengths do not count.
    """
    u_d = torch.tensor([[3.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    u_p = torch.tensor([[0.5, 0.0], [-7.0, 0.0]], dtype=torch.float64)
    assert float(contrastive_loss(u_d, u_p, 0.5)) == pytest.approx(-4, abs=1e-12)
    assert float(oracles.contrastive_loss(list(u_d), list(u_p), 0.5)) == pytest.approx(-4, abs=1e-12)


def test_contrastive_loss_of_hand_numbers_adds_negatives_and_averages_records() -> None:
    """Eq. 9 with all vectors equal: cosine 1 everywhere, so a record costs log(B - 1), in both directions (Eq. 10)."""
    same = torch.ones(5, 2, dtype=torch.float64)
    assert float(contrastive_loss(same, same, 0.8)) == pytest.approx(2 * math.log(4), abs=1e-12)


def test_contrastive_loss_of_a_batch_of_one_is_0_with_gradient_0() -> None:
    """Eq. 9 has no negative then; the released code gives NaN."""
    u_d, u_p = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[3.0, -1.0]], requires_grad=True)
    loss = contrastive_loss(u_d, u_p, 0.8)
    assert float(loss.detach()) == 0
    assert [g.tolist() for g in gradient(loss, u_d, u_p)] == [[[0, 0]], [[0, 0]]]


def test_vector_of_zeros_has_no_gradient_and_changes_nothing_of_others() -> None:
    """It has no direction: with 1e-12 for its length, as torch has it, its gradient is 1e12 times all others."""
    u_d = oracles.scattered((4, C), 1)
    u_d[2] = 0
    u_d.requires_grad_()
    u_p = oracles.scattered((4, C), 2).requires_grad_()
    apart = u_d.detach().clone()
    apart[2] = 0
    others = [0, 1, 3]
    # a constant row of cosines 0 in its place
    similarity = torch.zeros(4, 4, dtype=torch.float64)
    v_d, v_p = apart.requires_grad_(), u_p.detach().clone().requires_grad_()
    for i in others:
        similarity = similarity.index_put(
            (torch.tensor(i), torch.arange(4)), torch.stack([oracles.cosine(v_d[i], of) for of in v_p]) / 0.8
        )
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        rest = [j for j in range(4) if j != i]
        expected = expected - (similarity[i, i] - similarity[i, rest].exp().sum().log()) / 4
        expected = expected - (similarity[i, i] - similarity[rest, i].exp().sum().log()) / 4

    loss = contrastive_loss(u_d, u_p, 0.8)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)
    of_d, of_p = gradient(loss, u_d, u_p)
    wanted_d, wanted_p = gradient(expected, v_d, v_p)
    assert of_d[2].tolist() == [0.0] * C
    assert torch.allclose(of_d[others], wanted_d[others], rtol=0, atol=1e-11)
    assert torch.allclose(of_p, wanted_p, rtol=0, atol=1e-11)


sets_of_codes = st.lists(st.lists(st.integers(0, 10), max_size=6, unique=True), min_size=1, max_size=8)


@settings(max_examples=100, deadline=None)
@given(sets=sets_of_codes, seed=st.integers(0, 2**31), fraction=st.floats(0.01, 0.99))
def test_choose_masked_of_any_sets_masks_each_chosen_code_and_one_at_least(
    sets: list[list[int]], seed: int, fraction: float
) -> None:
    codes = CodeSets.of(sets)
    uniform = torch.rand(len(codes.codes), generator=torch.Generator().manual_seed(seed))

    masked = choose_masked(codes, uniform, fraction).tolist()

    start = 0
    for own in sets:
        numbers = uniform[start : start + len(own)].tolist()
        limit = torch.tensor(fraction, dtype=torch.float32)
        expected = [bool(torch.tensor(n) < limit) or n == min(numbers) for n in numbers]
        assert masked[start : start + len(own)] == expected
        assert not own or any(masked[start : start + len(own)])
        start += len(own)
    assert len(masked) == start


def test_choose_masked_over_many_codes_masks_the_fraction() -> None:
    """20 sets of 2,000 codes at 15%: within 4 standard deviations (0.0018) of it; in single codes all are masked."""
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(3))
    many = CodeSets.of([list(range(2000))] * 20)
    assert float(choose_masked(many, uniform, 0.15).double().mean()) == pytest.approx(0.15, abs=4 * 0.0018)
    single = CodeSets.of([[1]] * 50)
    assert bool(choose_masked(single, uniform[:50], 0.15).all())


def test_choose_masked_of_hand_numbers_is_as_worked_out() -> None:
    codes = CodeSets.of([[4, 8, 9], [1, 2], [], [6]])
    uniform = torch.tensor([0.1, 0.5, 0.14, 0.9, 0.4, 0.99])
    assert choose_masked(codes, uniform, 0.15).tolist() == [True, False, True, False, True, True]


def test_masked_labels_of_hand_numbers_are_1_at_masked_codes_alone() -> None:
    """y of Eq. 6: codes that are shown count as absent."""
    codes = CodeSets.of([[0, 3], [], [2, 3]])
    masked = torch.tensor([True, False, False, True])
    assert masked_labels(codes, masked, 5).tolist() == [[1, 0, 0, 0, 0], [0] * 5, [0, 0, 0, 1, 0]]


def hidden(tokens: CodeSets, masked: Tensor, mask: float, random: float, seed: int = 0) -> CodeSets:
    return hide(
        tokens,
        masked,
        mask_token_fraction=mask,
        random_code_fraction=random,
        rows=range(100, 150),
        generator=torch.Generator().manual_seed(seed),
    )


def test_hide_with_mask_tokens_alone_puts_mask_at_masked_codes() -> None:
    """D' of Section 3.3.1."""
    found = hidden(CodeSets.of([[102, 105], [], [149]]), torch.tensor([False, True, True]), 1.0, 0.0)
    assert found.lists() == [[102, MASK], [], [MASK]]


def test_hide_with_a_mix_draws_80_10_10() -> None:
    """40,000 masked codes of token 99, which no random row is: 80% [MASK], 10% random rows of all kinds, 10% kept."""
    tokens = CodeSets.of([[99] * 40_000, [98] * 1000])
    masked = torch.tensor([True] * 40_000 + [False] * 1000)

    found = hidden(tokens, masked, 0.8, 0.1)

    of_masked = found.codes[:40_000]
    drawn = of_masked[(of_masked != MASK) & (of_masked != 99)]
    assert float((of_masked == MASK).double().mean()) == pytest.approx(0.8, abs=0.008)
    assert float((of_masked == 99).double().mean()) == pytest.approx(0.1, abs=0.006)
    assert len(drawn) / 40_000 == pytest.approx(0.1, abs=0.006)
    assert sorted(set(drawn.tolist())) == list(range(100, 150))
    assert found.codes[40_000:].tolist() == [98] * 1000, "what is not masked stays"


@pytest.mark.parametrize("mask, random, kept", [(0.0, 1.0, False), (0.0, 0.0, True)])
def test_hide_at_the_ends_of_the_mix_is_exact(mask: float, random: float, kept: bool) -> None:
    found = hidden(CodeSets.of([[99] * 200]), torch.ones(200, dtype=torch.bool), mask, random).codes
    assert bool((found == 99).all()) if kept else bool(((found >= 100) & (found < 150)).all())


def test_hide_of_a_generator_is_deterministic() -> None:
    tokens, masked = CodeSets.of([list(range(100, 150))]), torch.ones(50, dtype=torch.bool)
    first, again, other = (hidden(tokens, masked, 0.5, 0.5, seed).codes for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def simplex(records: int) -> Tensor:
    """Vectors that are as far from one another as can be: each cosine is -1 / (records - 1)."""
    return torch.eye(records, dtype=torch.float64) - 1 / records


@pytest.mark.parametrize("temperature", [0.01, 0.8, 100.0])
@pytest.mark.parametrize("records", [2, 3, 5, 64])
def test_least_contrastive_loss_of_a_batch_is_that_of_a_simplex(records: int, temperature: float) -> None:
    """Eq. 9 and Eq. 10 at their least: pairs alike, and records as far apart as can be."""
    u = simplex(records)
    expected = float(oracles.contrastive_loss(list(u), list(u), temperature))
    assert least_contrastive_loss(records, temperature) == pytest.approx(expected, rel=1e-12)


def test_least_contrastive_loss_of_one_record_or_none_is_zero() -> None:
    assert [least_contrastive_loss(records, 0.8) for records in (0, 1)] == [0.0, 0.0]


@settings(max_examples=200)
@given(st.integers(2, 7), st.integers(1, 5), st.floats(0.05, 20), st.integers(0, 10**6), st.sampled_from([0.0, 1.0]))
def test_contrastive_loss_of_any_batch_is_not_below_its_least(
    records: int, c: int, temperature: float, seed: int, alike: float
) -> None:
    """Whatever the vectors: of chance, with pairs alike or nearly so, a zero among them (Eq. 9 and Eq. 10)."""
    draws = torch.Generator().manual_seed(seed)
    u_d, noise = torch.randn(2, records, c, dtype=torch.float64, generator=draws)
    u_p = alike * u_d + (1 - alike) * noise
    u_p[0] *= seed % 3
    found = float(contrastive_loss(u_d, u_p, temperature))
    assert found >= least_contrastive_loss(records, temperature) - 1e-9 / temperature


@pytest.mark.parametrize("records", [2, 3, 4])
def test_contrastive_loss_that_is_descended_ends_near_its_least_and_not_below(records: int) -> None:
    """What training itself would find; in float32, as it is computed (Eq. 9)."""
    draws = torch.Generator().manual_seed(records)
    u = torch.randn(2, records, 5, generator=draws).requires_grad_()
    optimizer = torch.optim.Adam([u], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = contrastive_loss(u[0], u[1], 0.8)
        loss.backward()
        optimizer.step()
    least = least_contrastive_loss(records, 0.8)
    assert least - 1e-5 <= loss.item() <= least + 0.01
