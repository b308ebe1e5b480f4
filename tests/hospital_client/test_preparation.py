"""`prepare` writes a whole dataset directory or changes nothing."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hospital_client import preparation
from hospital_client.preparation import prepare, prepare_in_memory
from hospital_client.preparation_options import PreparationOptions
from shared_model.errors import TemptError
from shared_model.records import read_dataset
from tests.hospital_client.raw_tables import CONSORTIUM, write_tables

OPTIONS = PreparationOptions(min_records=1)


def everything_below(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("split_by_patient", [False, True])
def test_prepare_writes_what_read_dataset_reads(tmp_path: Path, split_by_patient: bool) -> None:
    options = PreparationOptions(min_records=1, split_by_patient=split_by_patient)
    raw = write_tables(tmp_path / "raw", compressed=True)
    report = prepare(raw, tmp_path / "new" / "dataset", options)
    dataset, in_memory = prepare_in_memory(raw, options)
    found = read_dataset(tmp_path / "new" / "dataset")
    assert found.digest == dataset.digest == report.digest
    assert found.vocabulary == dataset.vocabulary
    assert found.split_by_patient is split_by_patient
    assert report == in_memory

    about = json.loads((tmp_path / "new" / "dataset" / "dataset.json").read_text(encoding="utf-8"))
    assert set(about) == {"format", "options", "table_2", "attrition", "leak_audit", "sources", "digest"}
    assert about["format"] == 1
    assert PreparationOptions(**about["options"]) == options
    assert about["sources"] == {
        f"{table}.csv.gz": hashlib.sha256((raw / f"{table}.csv.gz").read_bytes()).hexdigest() for table in CONSORTIUM
    }


def test_prepare_keeps_others_out(tmp_path: Path) -> None:
    directory = tmp_path / "dataset"
    prepare(write_tables(tmp_path / "raw"), directory, OPTIONS)
    assert {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()} == {
        ".tempt",
        "README.md",
        "dataset.json",
        "vocabulary.json",
        "hospitals/11/records.parquet",
        "hospitals/12/records.parquet",
    }
    for path in (directory, *directory.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert "Who may read it" in (directory / "README.md").read_text(encoding="utf-8")


def test_prepare_again_is_refused_without_force_and_replaces_with_it(tmp_path: Path) -> None:
    raw, directory = write_tables(tmp_path / "raw"), tmp_path / "dataset"
    prepare(raw, directory, OPTIONS)
    before = everything_below(tmp_path)
    with pytest.raises(
        TemptError, match=r"dataset: is not empty; name another directory, or use --force to replace it$"
    ):
        prepare(raw, directory, OPTIONS)
    assert everything_below(tmp_path) == before
    prepare(raw, directory, PreparationOptions(min_records=3), force=True)
    assert read_dataset(directory).records.hospitals == [11]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dataset", "raw"]


def test_prepare_force_deletes_only_a_dataset_directory(tmp_path: Path) -> None:
    raw, directory = write_tables(tmp_path / "raw"), tmp_path / "mine"
    directory.mkdir()
    (directory / "thesis.txt").write_text("ten years", encoding="utf-8")
    before = everything_below(tmp_path)
    with pytest.raises(TemptError, match=r"has no \.tempt of this kind, so this command did not make it"):
        prepare(raw, directory, OPTIONS, force=True)
    with pytest.raises(TemptError, match=r"is not empty"):
        prepare(raw, directory, OPTIONS)
    assert everything_below(tmp_path) == before


def test_prepare_into_the_directory_that_holds_the_raw_tables_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "dataset"
    prepare(write_tables(tmp_path / "raw"), directory, OPTIONS)
    raw = write_tables(directory / "raw")
    before = everything_below(tmp_path)
    with pytest.raises(TemptError, match=r"holds the raw tables .*; name another directory for the dataset$"):
        prepare(raw, directory, OPTIONS, force=True)
    assert everything_below(tmp_path) == before


def test_prepare_into_the_working_directory_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, directory = write_tables(tmp_path / "raw"), tmp_path / "dataset"
    directory.mkdir()
    monkeypatch.chdir(directory)
    prepare(raw, Path("."), OPTIONS)
    assert read_dataset(directory).records.hospitals == [11, 12]


def test_prepare_that_fails_while_writing_leaves_the_old_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, directory = write_tables(tmp_path / "raw"), tmp_path / "dataset"
    prepare(raw, directory, OPTIONS)
    before = everything_below(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparation, "write_records", full)
    with pytest.raises(TemptError, match=r"No space left on device; nothing was changed there"):
        prepare(raw, directory, PreparationOptions(min_records=3), force=True)
    assert everything_below(tmp_path) == before

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "write_records", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(raw, directory, OPTIONS, force=True)
    assert everything_below(tmp_path) == before


def replace_table(table: str, content: bytes, suffix: str = ".csv") -> Callable[[Path], None]:
    def spoil(raw: Path) -> None:
        (raw / f"{table}.csv").unlink()
        (raw / f"{table}{suffix}").write_bytes(content)

    return spoil


def change(table: str, old: str, new: str) -> Callable[[Path], None]:
    def spoil(raw: Path) -> None:
        path = raw / f"{table}.csv"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_bytes(text.replace(old, new, 1).encode("utf-8", errors="surrogateescape"))

    return spoil


def both_forms(raw: Path) -> None:
    (raw / "patient.csv.gz").write_bytes(gzip.compress((raw / "patient.csv").read_bytes()))


NUMBER = "expected a whole number of at most 64 bits; correct the row"
BAD_INPUT: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing table": (
        lambda raw: (raw / "treatment.csv").unlink(),
        "raw: has no table treatment; expected treatment.csv or treatment.csv.gz; add the file",
    ),
    "both forms": (
        both_forms,
        "raw: has both patient.csv and patient.csv.gz; expected one of them; move one away",
    ),
    "missing column": (
        change("medication", "drughiclseqno", "hicl"),
        "medication.csv: line 1: has no column drughiclseqno (it has 'patientunitstayid, hicl, drugname, d...);"
        " expected patientunitstayid, drughiclseqno, drugname; add the column",
    ),
    "duplicated column": (
        change("diagnosis", "diagnosisoffset", "icd9code"),
        "diagnosis.csv: line 1: has column icd9code 2 times; expected it once; remove the others",
    ),
    "truncated gzip": (
        replace_table("treatment", gzip.compress(b"patientunitstayid" * 99)[:-9], ".csv.gz"),
        "treatment.csv.gz: the gzip data are damaged or cut short (Compressed file ended before the end-of-stream"
        " marker was reached); fetch the file again",
    ),
    "no gzip": (
        replace_table("treatment", b"patientunitstayid,treatmentstring", ".csv.gz"),
        "treatment.csv.gz: is not gzip, as its name says; expected a gzip file; rename it or fetch it again",
    ),
    "empty table": (
        replace_table("medication", b""),
        "medication.csv: is empty; expected a header and rows; export it again",
    ),
    "header alone": (
        replace_table("medication", b"patientunitstayid,drughiclseqno,drugname\n"),
        "medication.csv: has a header but no row; expected a table with rows; export it again",
    ),
    "stay": (
        change("diagnosis", "\n2,", "\n12.5,"),
        f"diagnosis.csv: line 4, column patientunitstayid: found '12.5', {NUMBER}",
    ),
    "patient's stay": (
        change("patient", "\n2,", "\nabc,"),
        f"patient.csv: line 3, column patientunitstayid: found 'abc', {NUMBER}",
    ),
    "no stay": (
        change("treatment", "\n2,", "\n,"),
        "treatment.csv: line 3, column patientunitstayid: is empty; expected a stay's number; correct the row",
    ),
    "hospital": (
        change("patient", "\n2,11", "\n2,11th"),
        f"patient.csv: line 3, column hospitalid: found '11th', {NUMBER}",
    ),
    "no hospital": (
        change("patient", "\n2,11", "\n2, "),
        "patient.csv: line 3, column hospitalid: is empty; expected a hospital's number; correct the row",
    ),
    "no patient": (
        change("patient", "2,11,A", "2,11,"),
        "patient.csv: line 3, column uniquepid: is empty; expected a patient's identifier; correct the row",
    ),
    "HICL": (
        change("medication", "30.0", "30.5"),
        f"medication.csv: line 3, column drughiclseqno: found '30.5', {NUMBER}",
    ),
    "HICL too big": (
        change("medication", "30.0", "9223372036854775808.0"),
        f"medication.csv: line 3, column drughiclseqno: found '9223372036854775808.0', {NUMBER}",
    ),
    "offset": (
        change("treatment", "metoprolol,10", "metoprolol,soon"),
        f"treatment.csv: line 3, column treatmentoffset: found 'soon', {NUMBER}",
    ),
    "no UTF-8": (
        change("diagnosis", " 038.9 ", "038\udce9"),
        "diagnosis.csv: line 4, column icd9code: holds bytes that are not UTF-8; expected UTF-8 text;"
        " save the file as UTF-8",
    ),
    "NUL": (
        change("diagnosis", " 038.9 ", "038\0"),
        "diagnosis.csv: line 4, column icd9code: holds a NUL byte; expected text; export the file again",
    ),
    "open quote": (
        change("diagnosis", '"401.9, I10",5', '"401.9, I10,5'),
        "diagnosis.csv: line 2, column icd9code: a quote is opened and never closed; close it, or export it again",
    ),
    "too many fields": (
        change("treatment", "metoprolol,10", "metoprolol,10,"),
        "treatment.csv: line 3: has 4 fields, expected 3 as in the header; correct the row",
    ),
    "stay in two hospitals": (
        change("patient", "\n4,12", "\n2,12"),
        "patient.csv: line 5, column patientunitstayid: stay 2 is listed for hospital 12 and for hospital 11 (see line"
        " 3); expected each stay once; correct or remove a row",
    ),
    "stay twice": (
        change("patient", "\n4,12", "\n2.0,11"),
        "patient.csv: line 5, column patientunitstayid: stay 2 is listed again for hospital 11 (see line 3); expected"
        " each stay once; correct or remove a row",
    ),
    "tables of two databases": (
        change("patient", "1,11,B\n2,11,A\n3,11,B\n4,12", "91,11,B\n92,11,A\n93,11,B\n94,12"),
        "raw: no stay has a diagnosis, a procedure and a medication with a code; expected such a record at least;"
        " check that the tables belong together",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_prepare_bad_input_is_one_line_and_changes_nothing(tmp_path: Path, case: str) -> None:
    spoil, message = BAD_INPUT[case]
    raw = write_tables(tmp_path / "raw")
    spoil(raw)
    before = everything_below(tmp_path)
    with pytest.raises(TemptError) as error:
        prepare(raw, tmp_path / "new" / "dataset", OPTIONS)
    place = tmp_path if message.startswith("raw:") else raw
    assert str(error.value) == f"{place}/{message}"
    assert everything_below(tmp_path) == before


def test_prepare_without_a_raw_directory_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(
        TemptError, match=r"no such directory; expected one with the raw eICU tables patient, diagnosis"
    ):
        prepare(tmp_path / "raw", tmp_path / "dataset", OPTIONS)
    (tmp_path / "raw").write_text("not a directory", encoding="utf-8")
    with pytest.raises(TemptError, match=r"raw: is a file; expected a directory with the raw eICU tables patient"):
        prepare(tmp_path / "raw", tmp_path / "dataset", OPTIONS)
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_prepare_no_hospital_with_enough_records_names_the_largest(tmp_path: Path) -> None:
    raw = write_tables(tmp_path / "raw")
    with pytest.raises(
        TemptError, match=r"raw: no hospital has 400 records; the largest, hospital 11, has 3; lower --min-records$"
    ):
        prepare(raw, tmp_path / "dataset", PreparationOptions())
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_prepare_cancelled_orders_that_are_neither_yes_nor_no_are_refused(tmp_path: Path) -> None:
    raw = write_tables(tmp_path / "raw")
    change("medication", "LOPRESSOR,Yes", "LOPRESSOR,1")(raw)
    options = PreparationOptions(min_records=1, leave_out_cancelled_orders=True)
    with pytest.raises(
        TemptError, match=r"line 4, column drugordercancelled: found '1', expected Yes or No; correct the row$"
    ):
        prepare(raw, tmp_path / "dataset", options)
    prepare(raw, tmp_path / "dataset", OPTIONS)
