"""Which files are the raw tables, and what is said of a folder that holds something else."""

from __future__ import annotations

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
