"""Ragged sets against lists, the split by hand, and parquet files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared_model.errors import TemptError
from shared_model.records import (
    CodeSets,
    Dataset,
    RecordSet,
    concatenate,
    read_dataset,
    read_records,
    records_digest,
    split_records,
    write_records,
)
from shared_model.vocabulary import Vocabulary, write_vocabulary

VOCABULARY = Vocabulary(
    diagnoses=tuple(f"d{i}" for i in range(11)),
    procedures=tuple(f"p{i}" for i in range(7)),
    medications=tuple(range(5)),
    medication_names=tuple(f"m{i}" for i in range(5)),
)

ragged = st.lists(st.lists(st.integers(0, 10), max_size=7, unique=True).map(sorted), max_size=9)


def records_of(hospitals: Sequence[int], patients: Sequence[int] | None = None) -> RecordSet:
    """Records whose codes tell their stay: stay s has diagnoses s % 11, and so on."""
    count = len(hospitals)
    stays = [1000 + 7 * i for i in range(count)]
    return RecordSet(
        hospital=torch.tensor(hospitals, dtype=torch.int64),
        stay=torch.tensor(stays, dtype=torch.int64),
        patient=torch.tensor(patients if patients is not None else range(count), dtype=torch.int64),
        diagnoses=CodeSets.of([sorted({s % 11, (s + 3) % 11}) for s in stays]),
        procedures=CodeSets.of([[s % 7] for s in stays]),
        medications=CodeSets.of([list(range(s % 6)) for s in stays]),
    )


def assert_same(found: RecordSet, expected: RecordSet) -> None:
    assert found.hospital.tolist() == expected.hospital.tolist()
    assert found.stay.tolist() == expected.stay.tolist()
    assert found.patient.tolist() == expected.patient.tolist()
    for name in ("diagnoses", "procedures", "medications"):
        assert getattr(found, name).lists() == getattr(expected, name).lists(), name


# ------------------------------------------------------------------------------------------------------- code sets


@given(sets=ragged)
def test_code_sets_of_lists_give_the_lists_back(sets: list[list[int]]) -> None:
    found = CodeSets.of(sets)
    assert found.lists() == sets
    assert len(found) == len(sets)
    assert found.lengths.tolist() == [len(codes) for codes in sets]


@settings(deadline=None)
@given(sets=ragged, data=st.data())
def test_select_of_any_index_equals_list_indexing(sets: list[list[int]], data: st.DataObject) -> None:
    """Repeats, any order, and nothing at all."""
    index = data.draw(st.lists(st.integers(0, len(sets) - 1), max_size=12)) if sets else []
    found = CodeSets.of(sets).select(torch.tensor(index, dtype=torch.int64))
    assert found.lists() == [sets[i] for i in index]


@given(sets=ragged, longest=st.integers(1, 8))
def test_truncated_sets_equal_sliced_lists(sets: list[list[int]], longest: int) -> None:
    """The codes that stand lowest in the vocabulary stay."""
    assert CodeSets.of(sets).truncated(longest).lists() == [codes[:longest] for codes in sets]


@given(sets=ragged)
def test_multi_hot_of_sets_is_1_at_their_codes(sets: list[list[int]]) -> None:
    """y of Eq. 6 and Eq. 13 where nothing is masked."""
    assert CodeSets.of(sets).multi_hot(11).tolist() == [[float(code in codes) for code in range(11)] for codes in sets]


# --------------------------------------------------------------------------------------------------------- records


def test_select_of_records_keeps_every_column_together() -> None:
    found = records_of([5, 5, 9]).select(torch.tensor([2, 0]))
    assert (found.hospital.tolist(), found.stay.tolist(), found.patient.tolist()) == ([9, 5], [1014, 1000], [2, 0])
    assert found.diagnoses.lists() == [[2, 5], [2, 10]]  # 1014 % 11 = 2, 1017 % 11 = 5; 1000 % 11 = 10, 1003 % 11 = 2
    assert found.procedures.lists() == [[6], [6]]
    assert found.medications.lists() == [[], [0, 1, 2, 3]]


def test_of_hospital_gives_its_records_alone() -> None:
    records = records_of([5, 5, 9, 9, 9, 12])
    assert records.hospitals == [5, 9, 12]
    assert records.of_hospital(9).stay.tolist() == [1014, 1021, 1028]
    assert len(records.of_hospital(7)) == 0


def test_concatenate_of_parts_lays_them_end_to_end() -> None:
    records = records_of([5, 5, 9, 9, 9])
    parts = [records.select(torch.tensor(index, dtype=torch.int64)) for index in ([0], [], [1, 2, 3, 4])]
    assert_same(concatenate(parts), records)


def test_digest_of_records_changes_with_every_part_and_with_nothing_else() -> None:
    records = records_of([5, 5, 9])
    base = records_digest(VOCABULARY, records, split_by_patient=False)
    assert records_digest(VOCABULARY, records_of([5, 5, 9]), split_by_patient=False) == base
    renamed = replace(VOCABULARY, medication_names=("a", "b", "c", "d", "e"))
    assert records_digest(renamed, records, split_by_patient=False) == base, "names are for readers"
    changed = [
        records_digest(VOCABULARY, records, split_by_patient=True),
        records_digest(replace(VOCABULARY, diagnoses=("x",)), records, split_by_patient=False),
        *(
            records_digest(VOCABULARY, replace(records, **{name: value}), split_by_patient=False)
            for name, value in {
                "hospital": records.hospital + 1,
                "stay": records.stay + 1,
                "patient": records.patient + 1,
                "diagnoses": CodeSets.of([[1], [2, 3], [4]]),
                "procedures": CodeSets.of([[1], [2, 3], [4]]),
                "medications": CodeSets.of([[1], [2, 3], [4]]),
            }.items()
        ),
        # the same codes cut into sets elsewhere
        records_digest(
            VOCABULARY, replace(records, medications=CodeSets.of([[1, 2], [3], [4]])), split_by_patient=False
        ),
    ]
    assert len({base, *changed}) == len(changed) + 1


# ----------------------------------------------------------------------------------------------------------- split


def test_split_of_a_tiny_case_is_by_the_order_of_sha_256() -> None:
    """Ten records of hospital 73 and seed 42: sorted by SHA-256 of "42:73:<stay>", 8 train, 1 validates, 1 tests."""
    records = records_of([73] * 10)
    by_hash = sorted(records.stay.tolist(), key=lambda stay: hashlib.sha256(f"42:73:{stay}".encode()).hexdigest())

    split = split_records(records, 42)

    assert split.train.stay.tolist() == sorted(by_hash[:8])
    assert split.validation.stay.tolist() == by_hash[8:9]
    assert split.test.stay.tolist() == by_hash[9:]
    assert split_records(records, 43).train.stay.tolist() != split.train.stay.tolist()


@pytest.mark.parametrize(
    "n, sizes", [(1, (0, 0, 1)), (2, (1, 0, 1)), (9, (7, 0, 2)), (10, (8, 1, 1)), (19, (15, 1, 3)), (23, (18, 2, 3))]
)
def test_split_of_n_records_has_the_papers_sizes(n: int, sizes: tuple[int, int, int]) -> None:
    """int(0.8 n), int(0.1 n), the rest."""
    split = split_records(records_of([73] * n), 42)
    assert (len(split.train), len(split.validation), len(split.test)) == sizes


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 25), min_size=1, max_size=4), seed=st.integers(0, 99), by_patient=st.booleans())
def test_split_of_any_records_is_disjoint_and_complete_in_each_hospital(
    sizes: list[int], seed: int, by_patient: bool
) -> None:
    hospitals = [10 * (i + 1) for i, size in enumerate(sizes) for _ in range(size)]
    records = records_of(hospitals, [i // 3 for i in range(len(hospitals))])

    split = split_records(records, seed, by_patient=by_patient)

    stays = [part.stay.tolist() for part in (split.train, split.validation, split.test)]
    assert sorted(stays[0] + stays[1] + stays[2]) == records.stay.tolist()
    for i, size in enumerate(sizes):
        own = [len(part.of_hospital(10 * (i + 1))) for part in (split.train, split.validation, split.test)]
        assert sum(own) == size
        if not by_patient:
            assert own == [int(0.8 * size), int(0.1 * size), size - int(0.8 * size) - int(0.1 * size)]
    for part in (split.train, split.validation, split.test):
        assert part.hospital.tolist() == sorted(part.hospital.tolist()), "hospital, then stay"
        expected = [i for i, stay in enumerate(records.stay.tolist()) if stay in set(part.stay.tolist())]
        assert_same(part, records.select(torch.tensor(expected, dtype=torch.int64)))


@pytest.mark.parametrize("by_patient", [False, True])
def test_split_of_a_hospital_alone_is_as_in_the_consortium(by_patient: bool) -> None:
    records = records_of([5] * 17 + [9] * 23, [i // 2 for i in range(40)])
    together = split_records(records, 42, by_patient=by_patient)
    for hospital in (5, 9):
        own = records.of_hospital(hospital)
        own = replace(own, patient=own.patient.max() - own.patient)  # numbered otherwise
        alone = split_records(own, 42, by_patient=by_patient)
        for part, whole in zip(vars(alone).values(), vars(together).values(), strict=True):
            assert part.stay.tolist() == whole.of_hospital(hospital).stay.tolist()


def test_split_does_not_depend_on_the_order_of_records() -> None:
    records = records_of([5] * 17)
    backwards = split_records(records.select(torch.arange(16, -1, -1)), 42)
    assert set(backwards.train.stay.tolist()) == set(split_records(records, 42).train.stay.tolist())


@settings(max_examples=40, deadline=None)
@given(stays=st.lists(st.integers(1, 6), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_split_by_patient_keeps_all_stays_of_a_patient_in_one_part(stays: list[int], seed: int) -> None:
    patients = [patient for patient, count in enumerate(stays) for _ in range(count)]
    records = records_of([73] * len(patients), patients)

    split = split_records(records, seed, by_patient=True)

    parts = [set(part.patient.tolist()) for part in (split.train, split.validation, split.test)]
    assert parts[0] | parts[1] | parts[2] == set(patients)
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert int(0.8 * len(patients)) <= len(split.train) < int(0.8 * len(patients)) + max(stays)


# --------------------------------------------------------------------------------------------------------- parquet


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(
        st.tuples(
            st.integers(0, 2**62),
            st.integers(0, 2**31 - 1),
            *(st.lists(st.integers(0, size - 1), unique=True, max_size=size).map(sorted) for size in (11, 7, 5)),
        ),
        max_size=8,
    )
)
def test_records_written_and_read_are_equal(
    records: list[tuple[int, int, list[int], list[int], list[int]]], tmp_path: Path
) -> None:
    stays, patients, *sets = (
        (list(column) for column in zip(*records, strict=True)) if records else ([], [], [], [], [])
    )
    expected = RecordSet(
        torch.full((len(stays),), 73),
        torch.tensor(stays, dtype=torch.int64),
        torch.tensor(patients, dtype=torch.int64),
        *(CodeSets.of(column) for column in sets),
    )
    write_records(tmp_path / "records.parquet", expected)
    assert_same(read_records(tmp_path / "records.parquet", 73, VOCABULARY), expected)


def test_written_records_have_the_columns_of_the_design(tmp_path: Path) -> None:
    write_records(tmp_path / "records.parquet", records_of([5, 5]))
    schema = pq.read_schema(tmp_path / "records.parquet")
    assert schema.names == ["patientunitstayid", "patient", "diagnoses", "procedures", "medications"]
    assert [str(schema.field(name).type) for name in schema.names[:2]] == ["int64", "int32"]
    assert all(schema.field(name).type.value_type == pa.int32() for name in schema.names[2:])
    assert [path.name for path in tmp_path.iterdir()] == ["records.parquet"]


def the_line(error: pytest.ExceptionInfo[TemptError], path: Path) -> str:
    message = str(error.value)
    assert message.startswith(f"{path}: "), message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "flipped"])
def test_read_records_of_a_damaged_file_is_one_line_that_names_it(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    write_records(path, records_of([5] * 50))
    content = path.read_bytes()
    middle = len(content) // 4
    path.write_bytes(
        {
            "truncated": content[:-7],
            "text": b"stay,patient\n1,2\n",
            "empty": b"",
            "flipped": content[:middle]
            + bytes(255 - byte for byte in content[middle : middle + 60])
            + content[middle + 60 :],
        }[damage]
    )
    with pytest.raises(TemptError) as error:
        read_records(path, 5, VOCABULARY)
    assert "tempt prepare" in the_line(error, path)


def test_read_records_of_a_missing_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(TemptError) as error:
        read_records(tmp_path / "records.parquet", 5, VOCABULARY)
    assert the_line(error, tmp_path / "records.parquet").endswith("no such file; correct its name, or make it first")


@pytest.mark.parametrize("code", [7, -1])
def test_read_records_with_a_position_beyond_the_vocabulary_names_column_and_position(
    code: int, tmp_path: Path
) -> None:
    path = tmp_path / "records.parquet"
    write_records(path, replace(records_of([5, 5]), procedures=CodeSets.of([[2], [code]])))
    with pytest.raises(TemptError) as error:
        read_records(path, 5, VOCABULARY)
    message = the_line(error, path)
    assert f"procedures holds position {code}" in message and "vocabulary has 7" in message


@pytest.mark.parametrize("column", ["patientunitstayid", "patient", "diagnoses", "medications"])
def test_read_records_without_a_column_is_one_line_that_names_it(column: str, tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    write_records(path, records_of([5, 5]))
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(TemptError) as error:
        read_records(path, 5, VOCABULARY)
    assert column in the_line(error, path)


# --------------------------------------------------------------------------------------------------------- dataset


def write_dataset(directory: Path, records: RecordSet, **options: object) -> Dataset:
    dataset = Dataset(VOCABULARY, records, bool(options.get("split_by_patient")))
    for hospital in records.hospitals:
        (directory / "hospitals" / str(hospital)).mkdir(parents=True)
        write_records(directory / "hospitals" / str(hospital) / "records.parquet", records.of_hospital(hospital))
    write_vocabulary(directory / "vocabulary.json", VOCABULARY)
    (directory / "dataset.json").write_text(json.dumps({"options": options, "digest": dataset.digest}))
    return dataset


def test_read_dataset_gives_hospitals_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    records = records_of([5, 5, 9, 9, 9, 120])
    expected = write_dataset(tmp_path, records, split_by_patient=True)
    found = read_dataset(tmp_path)
    assert_same(found.records, records)
    assert (found.vocabulary, found.split_by_patient, found.digest) == (VOCABULARY, True, expected.digest)


def test_read_dataset_whose_records_were_exchanged_says_so(tmp_path: Path) -> None:
    write_dataset(tmp_path, records_of([5, 5, 9]))
    write_records(tmp_path / "hospitals" / "9" / "records.parquet", records_of([9, 9]))
    with pytest.raises(TemptError, match="not those that dataset") as error:
        read_dataset(tmp_path)
    the_line(error, tmp_path)


def test_read_dataset_without_hospitals_or_files_says_so(tmp_path: Path) -> None:
    with pytest.raises(TemptError, match=r"dataset\.json: no such file"):
        read_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    write_vocabulary(tmp_path / "vocabulary.json", VOCABULARY)
    with pytest.raises(TemptError, match=r"has no hospitals/<id>/records\.parquet"):
        read_dataset(tmp_path)


def test_dataset_of_hospitals_keeps_vocabulary_and_splits_as_before() -> None:
    dataset = Dataset(VOCABULARY, records_of([5] * 12 + [9] * 13), False)
    part = dataset.of_hospitals([9])
    assert part.records.hospitals == [9]
    assert part.vocabulary is VOCABULARY
    assert_same(part.split(42).test, dataset.split(42).test.of_hospital(9))
