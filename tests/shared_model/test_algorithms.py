"""Every file of shared_model/algorithms: options are Flower's where Flower ends its rounds, and names are its own."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from flwr.serverapp import strategy as flower

from hospital_client.egress import ALLOWED_NUMBERS
from server.step_back import Stand, state_of
from shared_model.algorithms import algorithm, algorithms, chosen
from shared_model.errors import TemptError
from shared_model.federated_algorithm import NOW, Arrays

INITIAL: Arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(5, np.float32)}
CLASSES = {name.lower(): found for name, found in vars(flower).items() if isinstance(found, type)}


def test_algorithms_are_the_files_that_are_there() -> None:
    assert algorithms() == (
        *("fedadam", "fedavg", "fedavgm", "fedmedian", "fedprox", "fedtrimmedavg", "fedyogi", "krum", "scaffold"),
    )


@pytest.mark.parametrize("name", [name for name in algorithms() if algorithm(name).finish is None])
def test_options_of_what_flower_does_are_flowers(name: str) -> None:
    parameters = inspect.signature(CLASSES[name].__init__).parameters.values()
    expected = {
        p.name: p.default
        for p in parameters
        if isinstance(p.default, (int, float)) and not p.name.startswith(("fraction_", "min_"))
    }
    expected.pop("eta_l", None)  # Flower takes it and reads it nowhere
    found = {option: of.default for option, of in algorithm(name).options.items()}
    assert found == expected
    assert [type(value) for value in found.values()] == [type(expected[option]) for option in found]


@pytest.mark.parametrize("name", algorithms())
def test_names_of_an_algorithm_meet_no_others(name: str) -> None:
    found = algorithm(name)
    assert not any(ALLOWED_NUMBERS["pretrain"].fullmatch(number) for number in found.numbers)
    assert not {"metrics", "config", "codes"}.intersection(found.tells)
    assert not {"best", "before"}.intersection(found.begin(INITIAL))
    assert all(
        option.default is None or option.least <= option.default < option.below for option in found.options.values()
    )


@pytest.mark.parametrize("name", algorithms())
def test_state_is_a_tree_of_arrays_that_a_checkpoint_holds(name: str) -> None:
    begun = algorithm(name).begin(INITIAL)
    state = {part: of or {"m_t.w": np.full(2, 3.0)} for part, of in begun.items()}
    assert state[NOW].keys() == INITIAL.keys()
    tensors = Stand(state, 3, 0, 7).tensors("before.")
    found = state_of(tensors | {"now.w": torch.zeros(2)}, begun, "before.")
    assert sorted(found) == sorted(state)
    for part, of in state.items():
        assert {n: a.tolist() for n, a in found[part].items()} == {n: a.tolist() for n, a in of.items()}
    with pytest.raises(KeyError):
        state_of({n: t for n, t in tensors.items() if n != "before.now.b"}, begun, "before.")


def test_options_are_completed_and_bound() -> None:
    assert chosen("fedadam", {"eta": 1}).options == {"eta": 1.0, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001}
    assert chosen("krum", {"num_malicious_nodes": 2.0}).options == {"num_malicious_nodes": 2}
    for name, given, words in (
        ("fedaverage", {}, "did you mean 'fedavg'"),
        ("fedavg", {"eta": 1.0}, "strategy 'fedavg' has no options; leave eta out"),
        ("fedadam", {"etaa": 1.0}, "did you mean 'eta'"),
        ("fedadam", {"beta_1": 1.0}, r"option beta_1=1 of fedadam: expected a number in \[0, 1\)"),
        ("fedadam", {"tau": 0.0}, r"option tau=0 of fedadam: expected a number in \[1e-12, inf\)"),
        ("krum", {"num_malicious_nodes": 0.5}, "expected a whole number"),
        ("fedprox", {}, "strategy 'fedprox' needs proximal_mu; give it, such as proximal_mu=0.01"),
    ):
        with pytest.raises(TemptError, match=words):
            chosen(name, given)
