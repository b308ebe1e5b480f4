"""Every file of shared_model/algorithms: options are Flower's where Flower ends its rounds, and names are its own."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.serverapp import strategy as flower

import shared_model.algorithms
from hospital_client.egress import ALLOWED_NUMBERS
from server.flower_strategies import check_strategy, finish
from server.step_back import Stand, names_of, state_of
from shared_model import checkpoint
from shared_model.algorithms import Chosen, algorithm, algorithms, chosen
from shared_model.errors import TemptError
from shared_model.federated_algorithm import NOW, UPDATE, Arrays, Asked, Number, State, Told, check_state

INITIAL: Arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(5, np.float32)}


def test_algorithms_are_the_files_that_are_there() -> None:
    folder = Path(next(iter(shared_model.algorithms.__path__)))
    files = {path.stem.replace("_", "-") for path in folder.glob("[a-z]*.py")}
    assert set(algorithms()) == files >= {"fedadam", "fedavg", "fedprox", "krum", "scaffold"}


@pytest.mark.parametrize("name", [name for name in algorithms() if isinstance(algorithm(name).finish, str)])
def test_options_of_what_flower_does_are_flowers(name: str) -> None:
    strategy = getattr(flower, str(algorithm(name).finish))
    assert strategy.__name__.lower() == name, "whose options these are"
    check_strategy(chosen(name, {}))
    parameters = inspect.signature(strategy.__init__).parameters.values()
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
    check_state(found.begin(INITIAL), INITIAL)
    assert all(
        option.default is None or option.least <= option.default < option.below for option in found.options.values()
    )


FEDAVG = algorithm("fedavg")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: replace(FEDAVG, tells={"metrics": "gradient"}), "a part is named 'metrics', which has another"),
        (lambda: replace(FEDAVG, tells={"A.b": "gradient"}), "a part is named 'A.b'; expected lower-case"),
        (lambda: replace(FEDAVG, numbers={"score-sum": (0, 1)}), "a number is named 'score-sum', which has another"),
        (
            lambda: replace(FEDAVG, asks={"local_epochs": Number((0, 1), "")}),
            "asked number is named 'local_epochs'",
        ),
        (lambda: replace(FEDAVG, exchanges=0), "a round has 0 exchanges"),
        (lambda: Asked(INITIAL, {UPDATE: INITIAL}), "a part is named 'arrays', which has another"),
        (lambda: Asked(INITIAL, {"config": INITIAL}), "a part is named 'config', which has another"),
    ],
)
def test_names_that_have_another_meaning_are_refused(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "holds not the shared tensors"),
        ({NOW: {"w": INITIAL["w"]}}, "holds not the shared tensors"),
        ({NOW: INITIAL | {"b": np.ones(5)}}, r"tensor b is float64\[5\], expected float32\[5\]"),
        ({NOW: INITIAL | {"b": np.ones(4, np.float32)}}, r"tensor b is float32\[4\], expected float32\[5\]"),
        ({NOW: INITIAL, "a.b": {}}, "has a part 'a.b'"),
        ({NOW: INITIAL, "own": {"x": 1.0}}, "own.x is no array"),
        ({NOW: INITIAL, "own": {"x": np.ones(1, np.complex64)}}, "own.x is no array"),
        ({NOW: INITIAL, "own": {"x": np.array(["a"])}}, "own.x is no array"),
    ],
)
def test_a_state_that_no_checkpoint_holds_is_refused(state: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_state(state, INITIAL)


def test_state_is_a_tree_of_arrays_that_a_checkpoint_holds_with_their_types(tmp_path: Path) -> None:
    state: State = {
        NOW: INITIAL,
        "best": {"w": np.full(1, 0.1 + 0.2)},
        "count": {"n": np.array(2**24 + 3)},
        "history": {f"{kind}{number}": np.arange(3.0)[::-1] for kind in "sy" for number in range(3)},
        "switch": {"on": np.array([True, False]), "small": np.array([7], np.uint8)},
        "empty": {},
    }
    check_state(state, INITIAL)
    tensors = Stand(state, 3, 0, 7).tensors("state.") | {"best.w": torch.zeros(1)}
    checkpoint.save(tmp_path / "a.safetensors", tensors, {"names": names_of(state)})
    tensors, about = checkpoint.load(tmp_path / "a.safetensors")
    found = state_of(tensors, about["names"], "state.")
    assert list(found) == list(state)
    for part, of in state.items():
        assert list(found[part]) == list(of)
        for name, array in of.items():
            assert (found[part][name].dtype, found[part][name].shape) == (array.dtype, array.shape)
            assert found[part][name].tobytes() == array.tobytes()
    with pytest.raises(KeyError):
        state_of({n: t for n, t in tensors.items() if n != "state.now.b"}, about["names"], "state.")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no attribute 'ALGORITHM'"),
        ("ALGORITHM = ", "invalid syntax"),
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("from shared_model.federated_algorithm import Algorithm\nALGORITHM = Algorithm()", "missing .* required"),
    ],
)
def test_a_file_that_breaks_the_contract_is_one_line_and_costs_no_other_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, words: str
) -> None:
    (tmp_path / "half_done.py").write_text(content)
    monkeypatch.setattr(shared_model.algorithms, "__path__", [*shared_model.algorithms.__path__, str(tmp_path)])
    algorithms.cache_clear()
    try:
        with pytest.raises(TemptError, match=f"strategy 'half-done': .*{words}.*; its file breaks the contract"):
            algorithm("half-done")
        assert algorithm("fedavg").exchanges == 1
    finally:
        algorithms.cache_clear()
        sys.modules.pop("shared_model.algorithms.half_done", None)


def test_a_strategy_that_flower_has_not_is_refused_before_anything_is_asked_for() -> None:
    for wrong in (replace(algorithm("fedadam"), finish="FedAdamm"), replace(algorithm("krum"), finish="FedAdam")):
        with pytest.raises(TemptError, match=r"strategy 'new': Flower's FedAdam.* does not end its rounds"):
            check_strategy(Chosen("new", wrong, {"num_malicious_nodes": 0}))


@pytest.mark.parametrize(
    ("name", "options", "least"),
    [
        ("fedavg", {}, 1),
        ("krum", {}, 1),
        ("krum", {"num_malicious_nodes": 2}, 7),
        ("fedtrimmedavg", {}, 5),
        ("fedtrimmedavg", {"beta": 0.0}, 1),
        ("fedtrimmedavg", {"beta": 0.25}, 4),
        ("fedtrimmedavg", {"beta": 0.001}, 1000),
        ("fedtrimmedavg", {"beta": 0.49}, 3),
        ("fedtrimmedavg", {"beta": 1 / 49}, 50),  # as 49 times it is below 1 in floats, for Flower, too
        ("fedtrimmedavg", {"beta": 1e-6}, 10**6),
        ("fedtrimmedavg", {"beta": 1e-300}, 10**9),
    ],
)
def test_an_algorithm_says_how_many_answers_it_needs(name: str, options: dict[str, float], least: int) -> None:
    found = chosen(name, options)
    assert found.algorithm.least(found.options) == least


def test_flowers_trimmed_mean_trims_from_so_many_on() -> None:
    """One hospital of a billion: with the least number it is gone, with one fewer it is in the mean."""
    found = chosen("fedtrimmedavg", {"beta": 0.3})
    least = found.algorithm.least(found.options)
    state: State = {NOW: {"w": np.zeros(1, np.float32)}}
    for hospitals in (least, least - 1):
        gathered = found.algorithm.gather(state)
        for hospital in range(hospitals):
            update = {"w": np.full(1, 1e9 if hospital == 0 else 1.0, np.float32)}
            found.algorithm.accept(gathered, Told(hospital, {UPDATE: update}, {}, 0.0, 1, 0.1))
        moved = finish(found, state, gathered, 1)[NOW]["w"]
        assert (moved == 1) == (hospitals == least)


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
