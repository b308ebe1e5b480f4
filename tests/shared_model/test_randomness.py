"""Streams by (seed, purpose, hospital, epoch), numbers by (stay, code), and dropout."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.randomness import WHOLE_CONSORTIUM, Dropout, generator, uniform_of

CPU = torch.device("cpu")


def draws(*parts: object) -> list[float]:
    return torch.rand(4, generator=generator(CPU, *parts)).tolist()  # type: ignore[arg-type]


def test_generator_of_a_seed_and_purpose_is_seeded_by_their_hash() -> None:
    """SHA-256 of "42:pretraining:7:3", its first 63 bits: a stream that no release may change."""
    number = int.from_bytes(hashlib.sha256(b"42:pretraining:7:3").digest()[:8], "big") >> 1
    expected = torch.rand(4, generator=torch.Generator().manual_seed(number)).tolist()
    assert draws(42, "pretraining", 7, 3) == expected


def test_generators_that_differ_in_one_part_give_other_streams() -> None:
    keys = [(42, "a", 7, 3), (43, "a", 7, 3), (42, "b", 7, 3), (42, "a", 8, 3), (42, "a", 7, 4), (4, "2:a", 7, 3)]
    streams = [draws(*key) for key in keys]
    assert len({tuple(stream) for stream in streams}) == len(keys)
    assert [draws(*key) for key in keys] == streams


def test_generator_does_not_read_or_move_torchs_own_state() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draws(42, "a", WHOLE_CONSORTIUM, 1)
    Dropout(generator(CPU, 42, "a", 0))(torch.ones(10), 0.5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert draws(42, "a", 0, 1) == first


pairs = st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2000)), min_size=1, max_size=20, unique=True)


@settings(max_examples=50, deadline=None)
@given(pairs=pairs, data=st.data())
def test_uniform_of_stays_and_codes_in_any_order_or_subset_gives_each_its_number(
    pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    some = data.draw(st.permutations(pairs))[: data.draw(st.integers(1, len(pairs)))]

    def numbers(of: list[tuple[int, int]]) -> list[float]:
        stay, code = torch.tensor(of).T
        return uniform_of(42, "mask", stay, code).tolist()

    of_all = dict(zip(pairs, numbers(pairs), strict=True))
    assert numbers(some) == [of_all[pair] for pair in some]
    assert all(0 <= number < 1 for number in of_all.values())
    assert len(set(of_all.values())) == len(pairs)


def test_uniform_of_neighbouring_stays_and_codes_is_uniform_and_uncorrelated() -> None:
    """200 stays x 100 codes: mean 1/2, variance 1/12, no correlation between neighbours, by 5 standard deviations."""
    stay, code = torch.arange(200).repeat_interleave(100), torch.arange(100).repeat(200)
    grid = uniform_of(42, "mask", stay, code).view(200, 100)
    assert float(grid.mean()) == pytest.approx(0.5, abs=5 * 0.289 / 141)
    assert float(grid.var()) == pytest.approx(1 / 12, abs=5 * 0.075 / 141)
    for a, b in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]), (grid[1:, :-1], grid[:-1, 1:])):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 5 / 140
    other_seed = uniform_of(43, "mask", stay, code)
    assert abs(float(torch.corrcoef(torch.stack([grid.flatten(), other_seed]))[0, 1])) < 5 / 141


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.5, 0.9])
def test_dropout_at_a_rate_drops_that_share_and_keeps_the_mean(rate: float) -> None:
    """Of 200,001 ones (no multiple of 4): within 5 standard deviations; what is kept is 1 / (1 - rate)."""
    found = Dropout(torch.Generator().manual_seed(5))(torch.ones(200_001, dtype=torch.float64), rate)
    tolerance = 5 * (rate * (1 - rate) / 200_001) ** 0.5
    assert float((found == 0).double().mean()) == pytest.approx(rate, abs=tolerance)
    assert found[found != 0].unique().tolist() == pytest.approx([1 / (1 - rate)], abs=1e-12)
    assert float(found.mean()) == pytest.approx(1, abs=tolerance / (1 - rate))


def test_dropout_of_neighbours_is_independent() -> None:
    """Four decisions come from one draw: each pair of the four, and neighbouring draws, drop together at rate^2."""
    dropped = (Dropout(torch.Generator().manual_seed(6))(torch.ones(400_000), 0.3) == 0).double().view(-1, 4)
    for i in range(4):
        assert float(dropped[:, i].mean()) == pytest.approx(0.3, abs=5 * 0.00145)
        for j in range(i):
            assert float((dropped[:, i] * dropped[:, j]).mean()) == pytest.approx(0.09, abs=5 * 0.0009)
    assert float((dropped[1:, 0] * dropped[:-1, 3]).mean()) == pytest.approx(0.09, abs=5 * 0.0009)


def test_dropout_passes_gradients_where_it_keeps() -> None:
    x = torch.arange(1.0, 31.0).view(2, 3, 5).requires_grad_()
    found = Dropout(torch.Generator().manual_seed(7))(x, 0.5)
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.unique().tolist() == [0, 2]
    assert torch.equal(found.detach(), x.detach() * x.grad)


def test_dropout_at_rate_0_is_the_identity_and_draws_nothing() -> None:
    source = torch.Generator().manual_seed(8)
    before, x = source.get_state(), torch.rand(3, 5)
    assert Dropout(source)(x, 0.0) is x
    assert torch.equal(source.get_state(), before)


def test_dropout_called_twice_drops_anew_and_again_the_same_from_the_same_generator() -> None:
    x = torch.ones(1000)
    one, same = Dropout(torch.Generator().manual_seed(9)), Dropout(torch.Generator().manual_seed(9))
    first, second = one(x, 0.5), one(x, 0.5)
    assert not torch.equal(first, second)
    assert torch.equal(first, same(x, 0.5)) and torch.equal(second, same(x, 0.5))


def test_dropout_keeps_type_and_shape_of_what_is_empty() -> None:
    assert Dropout(torch.Generator())(torch.empty(0, 3, dtype=torch.float64), 0.5).shape == (0, 3)
