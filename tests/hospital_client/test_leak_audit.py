"""The three leaks, counted by hand."""

from __future__ import annotations

import torch

from hospital_client.leak_audit import Share, drug_words, names_a_drug, patients_across_splits
from shared_model.records import CodeSets, Dataset, RecordSet
from shared_model.vocabulary import Vocabulary


def dataset_of(patients: list[int], hospitals: list[int], *, split_by_patient: bool) -> Dataset:
    sets = CodeSets.of([[0]] * len(patients))
    records = RecordSet(
        torch.tensor(hospitals), torch.arange(len(patients)) + 100, torch.tensor(patients), sets, sets, sets
    )
    return Dataset(Vocabulary(("d",), ("p",), (1,), ("m",)), records, split_by_patient)


def test_drug_words_are_the_leading_words_that_are_no_form() -> None:
    names = [
        "BAG : SODIUM CHLORIDE 0.9 % IV SOLN",
        "5 ML SYRINGE : HEPARIN SODIUM (PORCINE) 100 UNIT/ML IV SOLN",
        "1000 ML FLEX CONT : DEXTROSE 5 % IV SOLN",
        "KCL 20 MEQ",
        "TABLET",
        "",
    ]
    assert drug_words(names) == {"sodium", "heparin", "dextrose"}


def test_names_a_drug_looks_at_whole_words_of_the_last_two_parts() -> None:
    words = frozenset({"heparin", "insulin"})
    assert names_a_drug("cardiovascular|VTE prophylaxis|conventional Heparin therapy", words)
    assert names_a_drug("endocrine|insulin|continuous infusion", words)
    assert not names_a_drug("insulin|glucose metabolism|diet", words)
    assert not names_a_drug("hematology|heparinoids", words)
    assert not names_a_drug("heparin-free dialysis|renal|dialysis", words)


def test_patients_across_splits_counts_patients_with_records_in_two_parts() -> None:
    # 10 records of one hospital: 8, 1 and 1. The first patient has nine of them, so two parts at least.
    found = patients_across_splits(dataset_of([0] * 9 + [1], [7] * 10, split_by_patient=False), [42, 43])
    assert [torn.seed for torn in found] == [42, 43]
    for torn in found:
        assert torn.patients == Share(1, 1)
        assert torn.test_records.of == 1
    # Whose record is the one test record follows from the split itself.
    split = dataset_of([0] * 9 + [1], [7] * 10, split_by_patient=False).split(42)
    assert found[0].test_records.count == int(split.test.patient[0] == 0)


def test_patients_across_splits_by_patient_finds_none_within_a_hospital() -> None:
    patients = [number // 3 for number in range(60)]
    for torn in patients_across_splits(dataset_of(patients, [7] * 60, split_by_patient=True)):
        assert torn.patients == Share(0, 20)
        assert torn.test_records.count == 0


def test_patients_across_splits_finds_the_same_patient_in_two_hospitals() -> None:
    # Two records in each of ten hospitals: one trains, none validates, one tests.
    found = patients_across_splits(dataset_of([0] * 20, [n // 2 for n in range(20)], split_by_patient=False), [42])
    assert found[0].patients == Share(1, 1)
    assert found[0].test_records == Share(10, 10)


def test_share_of_nothing_is_zero() -> None:
    assert Share(0, 0).share == 0
    assert Share(1, 4).share == 0.25
