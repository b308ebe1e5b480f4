"""The contract of every method found: it fits, repeats itself, keeps off what is not for learning, and can be stored.

A new file of `sim/baselines/` or `shared_model/adaptation/` is a new case of each test here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shared_model import checkpoint
from shared_model.adaptation import adaptations
from shared_model.batching import TokenRows
from shared_model.fitting import PRETRAINING
from shared_model.pretrainings import pretraining
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.recommendation import Context, Fitted, is_default, own_settings_of
from shared_model.records import CodeSets, RecordSet, Split
from sim.methods import chosen, method, method_names, needs
from sim.units import FitUnit, RunPlan, fit_unit
from tests import oracles
from tests.sim import consortium

ROWS = TokenRows(consortium.DIAGNOSES, consortium.PROCEDURES)
DATASET = consortium.make_dataset()
SPLIT = DATASET.split(42)
POISONED = consortium.poisoned(DATASET, 42).split(42)
OWN = 8  # the hospital of a fit of scope "hospital"

every_method = pytest.mark.parametrize("name", method_names())


def context_of(name: str, **more: Any) -> Context:
    settings = consortium.settings()
    part = None
    if (needed := needs(name)) is not None:
        found, bare = pretraining(needed), Context(settings, ROWS, consortium.MEDICATIONS, 42, 0, torch.device("cpu"))
        part = found.network(bare, torch.Generator()).get_submodule(found.reads)
        oracles.set_by_formula(part)
        part.eval()
    hospital = WHOLE_CONSORTIUM if method(name).SCOPE == "consortium" else OWN
    values: dict[str, Any] = {"seed": 42, "hospital": hospital, "device": torch.device("cpu"), "part": part}
    values["own"] = settings.own(name, own_settings_of(method(name)))
    return Context(settings=settings, rows=ROWS, medications=consortium.MEDICATIONS, **(values | more))


def part(name: str, records: RecordSet) -> RecordSet:
    return records if method(name).SCOPE == "consortium" else records.of_hospital(OWN)


def fit(name: str, context: Context | None = None, split: Split = SPLIT) -> Fitted:
    return method(name).fit(part(name, split.train), part(name, split.validation), context or context_of(name))


def answer(name: str, tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Tensor:
    """The scores of a method's answer; its sets as 0 and 1 where it has none."""
    scores, chosen = method(name).answer(tensors, records, context)
    return chosen.float() if scores is None else scores


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def losses(fitted: Fitted) -> list[float]:
    return [row["loss"] for row in fitted.history]


def test_method_names_when_listed_are_the_files_in_the_order_of_the_table() -> None:
    root = consortium.ROOT
    files = {
        path.stem.replace("_", "-")
        for folder in ("sim/baselines", "shared_model/adaptation")
        for path in (root / folder).glob("*.py")
        if path.stem != "__init__"
    }
    names = method_names()
    assert set(names) == files and len(names) == len(files)
    known = ["frequency", "hospital-frequency", "full-train", "single-train", "finetune-freeze", "finetune", "tempt"]
    assert [name for name in names if name in known] == known
    assert chosen(["tempt", "frequency"]) == ["tempt", "frequency"]  # rows come as they were asked for
    unasked = [name for name in names if is_default(method(name))]
    assert chosen([]) == unasked
    assert chosen([], "federated") == [name for name in unasked if name in adaptations()]
    assert chosen([], "local") == [name for name in unasked if method(name).SCOPE == "hospital"]


@every_method
def test_method_says_its_row_its_scope_and_the_papers_figures(name: str) -> None:
    of = method(name)
    assert of.TITLE and len(of.TITLE) <= 24  # the table's column
    assert of.SCOPE in ("consortium", "hospital")
    assert set(of.PAPER) <= {"prauc", "jaccard", "f1"}
    assert all(0 < mean < 1 and (std is None or 0 < std < 0.05) for mean, std in of.PAPER.values())
    assert (of.__doc__ or "").strip()


@every_method
def test_answer_of_a_fit_is_sets_and_where_it_has_scores_they_are_probabilities(name: str) -> None:
    fitted = fit(name)
    for records in (part(name, SPLIT.test), part(name, SPLIT.test).select(torch.tensor([0]))):
        scores, chosen = method(name).answer(fitted.tensors, records, context_of(name))
        assert chosen.shape == (len(records), consortium.MEDICATIONS) and chosen.dtype == torch.bool
        if scores is not None:
            assert scores.shape == chosen.shape
            assert scores.dtype == torch.float32 and not scores.requires_grad
            assert bool(((scores >= 0) & (scores <= 1)).all())


@every_method
def test_answer_for_a_record_does_not_depend_on_its_neighbours_or_its_medications(name: str) -> None:
    fitted, context = fit(name), context_of(name)
    records = part(name, SPLIT.test)
    together = answer(name, fitted.tensors, records, context)
    unknown = replace(records, medications=CodeSets.of([[]] * len(records)))
    for i in range(len(records)):
        alone = answer(name, fitted.tensors, unknown.select(torch.tensor([i])), context)
        assert torch.allclose(alone[0], together[i], rtol=0, atol=1e-6)


@every_method
def test_fit_twice_gives_the_same_bits(name: str) -> None:
    torch.manual_seed(1)
    first = fit(name)
    torch.manual_seed(2)
    torch.rand(5)
    second = fit(name)
    assert_same_tensors(second.tensors, first.tensors)
    assert losses(second) == losses(first) and second.best_epoch == first.best_epoch and second.about == first.about


@every_method
def test_fit_with_another_seed_differs_where_it_is_trained(name: str) -> None:
    first, other = fit(name), fit(name, context_of(name, seed=43))
    if not first.history:
        pytest.skip("has no epochs")
    assert losses(first) != losses(other)


@every_method
def test_fit_learns(name: str) -> None:
    """Its training loss falls; without one, it is no worse than one half for every medication."""
    context = context_of(name, epochs=40)
    quick = consortium.settings(tuning__learning_rate="0.02", training__learning_rate="0.02")
    fitted = fit(name, replace(context, settings=quick))
    if fitted.history:
        assert losses(fitted)[-1] < losses(fitted)[0]
    else:
        train = part(name, SPLIT.train)
        found = answer(name, fitted.tensors, train, context_of(name))
        labels = train.medications.multi_hot(consortium.MEDICATIONS)
        assert float(((found - labels) ** 2).mean()) < 0.25


@every_method
def test_fitted_tensors_when_saved_and_loaded_answer_the_same(name: str, tmp_path: Path) -> None:
    fitted = fit(name)
    checkpoint.save(tmp_path / "one.safetensors", fitted.tensors, fitted.about)
    tensors, about = checkpoint.load(tmp_path / "one.safetensors")
    assert about == fitted.about
    records = part(name, SPLIT.test)
    answers = [answer(name, of, records, context_of(name)) for of in (fitted.tensors, tensors)]
    assert torch.equal(answers[0], answers[1])


@every_method
def test_fit_leaves_the_pretrained_part(name: str) -> None:
    context = context_of(name)
    if context.part is None:
        pytest.skip("adapts no pretraining")
    before = {of: tensor.clone() for of, tensor in context.part.state_dict().items()}
    fitted = fit(name, context)
    answer(name, fitted.tensors, part(name, SPLIT.test), context)
    assert_same_tensors(dict(context.part.state_dict()), before)
    assert all(p.grad is None for p in context.part.parameters())


@every_method
def test_fit_for_fixed_epochs_does_not_read_validation_records(name: str) -> None:
    clean, other = (fit(name, context_of(name, epochs=3), split) for split in (SPLIT, POISONED))
    if not clean.history:
        pytest.skip("has no epochs")
    assert [row["score"] for row in clean.history] == [None] * 3
    assert_same_tensors(other.tensors, clean.tensors)
    assert losses(other) == losses(clean)


@every_method
def test_fit_reads_validation_records_for_a_choice_alone(name: str) -> None:
    """Of an epoch; what a method without epochs chooses stands in `about`, and the same choice is the same tensors."""
    clean, other = fit(name), fit(name, split=POISONED)
    if not clean.history:
        if other.about == clean.about:
            assert_same_tensors(other.tensors, clean.tensors)
        else:
            assert sorted(other.tensors) == sorted(clean.tensors)
        return
    both = min(len(clean.history), len(other.history))
    assert losses(clean)[:both] == losses(other)[:both]
    assert [row["score"] for row in clean.history] != [row["score"] for row in other.history]
    for fitted in (clean, other):
        assert_same_tensors(fit(name, context_of(name, epochs=fitted.best_epoch)).tensors, fitted.tensors)


@every_method
def test_fit_without_validation_records_keeps_its_last_epoch(name: str) -> None:
    nothing = SPLIT.validation.select(torch.tensor([], dtype=torch.int64))
    fitted = fit(name, split=replace(SPLIT, validation=nothing))
    assert fitted.best_epoch == len(fitted.history)
    if fitted.history:
        assert [row["score"] for row in fitted.history] == [None] * fitted.best_epoch
        assert_same_tensors(fitted.tensors, fit(name, context_of(name, epochs=fitted.best_epoch)).tensors)


@every_method
def test_fit_of_one_training_record_is_finite(name: str) -> None:
    one = part(name, SPLIT.train).select(torch.tensor([0]))
    fitted = method(name).fit(one, part(name, SPLIT.validation), context_of(name))
    found = answer(name, fitted.tensors, part(name, SPLIT.test), context_of(name))
    assert bool(torch.isfinite(found).all())


@every_method
def test_fit_of_no_training_record_is_finite(name: str) -> None:
    """A hospital of one record has no training record: int(0.8) is 0. Its result is defined, whatever it is."""
    none = part(name, SPLIT.train).select(torch.tensor([], dtype=torch.int64))
    fitted = method(name).fit(none, part(name, SPLIT.validation), context_of(name))
    found = answer(name, fitted.tensors, part(name, SPLIT.test), context_of(name))
    assert bool(torch.isfinite(found).all())


def test_units_of_a_poisoned_dataset_learn_the_same_weights(tmp_path: Path) -> None:
    """Whole: pretraining, then every method; with one epoch there is no epoch to select.

    A method that chooses something else by validation says so in `about`, and may then differ.
    """
    settings = consortium.settings(pretraining__epochs="1", tuning__epochs="1", training__epochs="1")
    found: list[dict[str, dict[str, Tensor]]] = []
    chose: list[dict[str, dict[str, Any]]] = []
    for kind, dataset in (("clean", DATASET), ("poisoned", consortium.poisoned(DATASET, 42))):
        directory = consortium.write_dataset(tmp_path / kind / "dataset", dataset)
        plan = RunPlan(tmp_path / kind / "run", directory, settings, "cpu", 1, save_scores=False, hospitals=None)
        units = [FitUnit(plan, PRETRAINING, 42, WHOLE_CONSORTIUM)] + [
            FitUnit(plan, name, 42, WHOLE_CONSORTIUM if method(name).SCOPE == "consortium" else OWN)
            for name in method_names()
        ]
        for unit in units:
            fit_unit(unit, lambda row: None)
        kept = {unit.model: checkpoint.load(unit.files.tensors) for unit in units}
        found.append({model: tensors for model, (tensors, _) in kept.items()})
        chose.append({model: about for model, (_, about) in kept.items()})
    clean, other = found
    alike = [model for model in clean if chose[0][model] == chose[1][model]]
    assert set(alike) >= {PRETRAINING, "frequency", "tempt"}
    for model in alike:
        assert_same_tensors(other[model], clean[model])


def test_hospital_frequency_of_a_poisoned_dataset_counts_the_same() -> None:
    clean, other = fit("hospital-frequency"), fit("hospital-frequency", split=POISONED)
    assert all(torch.equal(clean.tensors[name], other.tensors[name]) for name in ("rate", "hospital"))


def records_of(hospital: list[int], medications: list[list[int]]) -> RecordSet:
    some = CodeSets.of([[0]] * len(hospital))
    ids = torch.arange(len(hospital))
    return RecordSet(torch.tensor(hospital), ids, ids, some, some, CodeSets.of(medications))


def test_frequency_is_each_medications_rate_in_all_training_records() -> None:
    train = records_of([1, 1, 2, 2, 2], [[0], [0, 2], [0], [], [2]])
    context = replace(context_of("frequency"), medications=3)
    fitted = method("frequency").fit(train, train, context)
    found = answer("frequency", fitted.tensors, train, context)
    assert torch.allclose(found, torch.tensor([[3 / 5, 0, 2 / 5]] * 5))


@pytest.mark.parametrize(
    ("validated", "k", "first", "second"),
    [
        # Hospital 1 has one training record, with medication 0; hospital 2 has nine, with medication 1: p = (0.1, 0.9).
        # (1 + 0.1 k) / (1 + k) against 0.9 k / (1 + k): medication 0 leads in hospital 1 for k = 1, not from k = 3 on.
        (0, 1, (1.1 / 2, 0.9 / 2), (0.1 / 10, 9.9 / 10)),
        (1, 3, (1.3 / 4, 2.7 / 4), (0.3 / 12, 11.7 / 12)),
    ],
)
def test_hospital_frequency_is_shrunk_by_the_k_that_validation_chooses(
    validated: int, k: int, first: tuple[float, float], second: tuple[float, float]
) -> None:
    train = records_of([1] + [2] * 9, [[0]] + [[1]] * 9)
    context = replace(context_of("hospital-frequency"), medications=2)
    fitted = method("hospital-frequency").fit(train, records_of([1], [[validated]]), context)
    assert fitted.about["k"] == k
    # hospital 5 has no training record: it gets the consortium's rates
    found = answer("hospital-frequency", fitted.tensors, records_of([2, 1, 5], [[], [], []]), context)
    assert torch.allclose(found, torch.tensor([second, first, (0.1, 0.9)]))


def test_hospital_frequency_chooses_k_by_the_mean_over_hospitals_not_records() -> None:
    """One validation record of hospital 1 wants k = 1 (its own rate); two of hospital 3, trained alike, want more."""
    train = records_of([1, 3] + [2] * 18, [[0], [0]] + [[1]] * 18)
    context = replace(context_of("hospital-frequency"), medications=2)

    def k(hospitals: list[int], medications: list[list[int]]) -> object:
        return method("hospital-frequency").fit(train, records_of(hospitals, medications), context).about["k"]

    # by hospitals: (1 + 1/2) / 2 either way, and the first k stays; by records, the two of hospital 3 would win
    assert k([1, 3, 3], [[0], [1], [1]]) == 1
    assert k([1, 3, 3], [[1], [1], [0]]) == 3


def test_hospital_frequency_of_the_consortium_is_its_formula() -> None:
    fitted = fit("hospital-frequency")
    k = fitted.about["k"]
    train = SPLIT.train
    sets, hospitals = train.medications.lists(), train.hospital.tolist()
    for hospital in train.hospitals:
        own = [of for of, where in zip(sets, hospitals, strict=True) if where == hospital]
        expected = [
            (sum(m in of for of in own) + k * sum(m in of for of in sets) / len(sets)) / (len(own) + k)
            for m in range(consortium.MEDICATIONS)
        ]
        records = SPLIT.test.of_hospital(hospital)
        found = answer("hospital-frequency", fitted.tensors, records, context_of("hospital-frequency"))
        assert found[0].tolist() == pytest.approx(expected, abs=1e-6)
