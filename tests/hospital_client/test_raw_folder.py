"""Which files are the raw tables, and what is said of a folder that holds something else."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from hospital_client.raw_folder import TABLES, find_tables
from shared_model.errors import TemptError

EXPECTED = "expected the raw eICU tables patient, diagnosis, treatment, medication; name a directory with those"


def fill(raw: Path, *names: str) -> Path:
    """A folder with empty files of these names."""
    for name in names:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).touch()
    return raw


@pytest.mark.parametrize("form", ["{}.csv", "{}.csv.gz", "{}.CSV", "{}.CSV.GZ"])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.capitalize])
def test_tables_are_found_whatever_the_case_of_their_names(tmp_path: Path, form: str, case: type[str]) -> None:
    names = [form.format(case(table)) for table in TABLES]
    raw = fill(tmp_path, *names, "hospital.csv", "README.md")
    assert find_tables(raw) == dict(zip(TABLES, (raw / name for name in names), strict=True))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no table patient; expected patient.csv or patient.csv.gz; add the file"),
        (["patient.csv"], "has no table diagnosis; expected diagnosis.csv or diagnosis.csv.gz; add the file"),
        (
            ["patient.csv", "patient.csv.gz"],
            "has both patient.csv and patient.csv.gz; expected one of them; move one away",
        ),
        (["PATIENT.csv", "patient.csv"], "has both PATIENT.csv and patient.csv; expected one of them; move one away"),
        (
            [f"{table}.parquet" for table in TABLES],
            "has 'patient.parquet', expected patient.csv or patient.csv.gz; export the table as CSV under this name",
        ),
        (
            ["patient.csv", "diagnosis.csv.zip"],
            "has 'diagnosis.csv.zip', expected diagnosis.csv or diagnosis.csv.gz; export the table as CSV under this"
            " name",
        ),
        (["part-0.parquet"], f"holds Parquet files, such as 'part-0.parquet', {EXPECTED}"),
        (["patient.parquet/part-0.parquet"], f"holds Parquet files, such as 'patient.parquet', {EXPECTED}"),
        (["person.csv", "condition_occurrence.csv", "drug_exposure.csv"], f"holds tables of OMOP, {EXPECTED}"),
        (["PERSON.parquet", "VISIT_OCCURRENCE.parquet"], f"holds tables of OMOP, {EXPECTED}"),
        (["data/train/0.parquet", "metadata/codes.parquet"], f"holds a dataset in the form of MEDS, {EXPECTED}"),
        (["data/0.parquet", "metadata/dataset.json"], f"holds a dataset in the form of MEDS, {EXPECTED}"),
        (["PATIENTS.csv.gz", "ADMISSIONS.csv.gz"], f"holds tables of MIMIC, {EXPECTED}"),
        (
            ["dataset.json", "vocabulary.json", "hospitals/7/records.parquet"],
            f"holds a dataset that `tempt prepare` made, {EXPECTED}",
        ),
        (
            [f"eicu-2.0/{table}.csv.gz" for table in TABLES],
            "has no table patient, but its folder 'eicu-2.0' has; name that folder",
        ),
    ],
)
def test_a_folder_without_the_tables_is_told_what_it_holds(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(TemptError) as error:
        find_tables(fill(tmp_path, *names))
    assert str(error.value) == f"{tmp_path}: {message}"


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TemptError, match="no such directory; expected one with the raw eICU tables patient"):
        find_tables(tmp_path / "nothing")
    with pytest.raises(TemptError, match="is a file; expected a directory with the raw eICU tables patient"):
        find_tables(fill(tmp_path, "patient.csv") / "patient.csv")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


PUT = "expected a file; put the table in its place"
NO_FILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder": (Path.mkdir, f"is a folder; {PUT}"),
    "link to a folder": (lambda path: path.symlink_to("."), f"is a folder; {PUT}"),
    "pipe": (os.mkfifo, f"is a named pipe; {PUT}"),
    "socket": (a_socket, f"is a socket; {PUT}"),
    "device": (lambda path: path.symlink_to("/dev/zero"), f"is a device; {PUT}"),
    "dangling link": (
        lambda path: path.symlink_to("../gone/patient.csv"),
        f"is a link to '../gone/patient.csv', which is not there; {PUT}",
    ),
    "link of git-annex": (
        lambda path: path.symlink_to("../.git/annex/objects/Wq/MD5E-s12--4d7a.csv"),
        "is a git-annex link to what is not there; expected a file; fetch the table with `git annex get`",
    ),
    "loop": (lambda path: path.symlink_to(path.name), f"is a link that leads back to itself; {PUT}"),
}


@pytest.mark.parametrize("name", ["patient.csv", "Patient.csv.gz"])
@pytest.mark.parametrize(("make", "message"), NO_FILE.values(), ids=list(NO_FILE))
def test_what_has_a_tables_name_and_is_no_file_was_told_as_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path], object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    raw = fill(Path("raw"), "diagnosis.csv", "treatment.csv", "medication.csv")
    make(raw / name)
    with pytest.raises(TemptError) as error:
        find_tables(raw)
    assert str(error.value) == f"{raw / name}: {message}"
    fill(raw, "patient.csv.gz" if name == "patient.csv" else "patient.csv")  # the table itself is beside it
    assert find_tables(raw)["patient"].is_file()


@pytest.mark.parametrize(("make", "message"), [of for name, of in NO_FILE.items() if "folder" not in name])
def test_what_has_the_folders_name_and_is_none_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("raw"))
    with pytest.raises(TemptError) as error:
        find_tables(Path("raw"))
    found = message.partition("; expected")[0]
    assert str(error.value) == f"raw: {found}; expected a directory with the raw eICU tables {', '.join(TABLES)}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_table_that_may_not_be_read_is_told_with_what_to_do(tmp_path: Path) -> None:
    raw = fill(tmp_path, *(f"{table}.csv" for table in TABLES))
    (raw / "treatment.csv").chmod(0)
    with pytest.raises(TemptError) as error:
        find_tables(raw)
    assert str(error.value) == (
        f"{raw / 'treatment.csv'}: this user may not read it; expected a readable table; change its mode or its owner"
    )
    raw.chmod(0o600)  # names may be listed, and nothing behind them looked at
    with pytest.raises(
        TemptError, match=r"patient\.csv: can't be looked at \(Permission denied\); expected a file; put"
    ):
        find_tables(raw)
    raw.chmod(0o300)
    with pytest.raises(TemptError, match="this user may not read it; expected a readable folder; change its mode"):
        find_tables(raw)
    raw.chmod(0o700)
