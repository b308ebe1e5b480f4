"""The command on raw tables: each unsound one is one line that names file, column and row, and changes nothing."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sim.cli import run as tempt
from tests.sim.command import Capture, mistake, unchanged
from tests.sim.consortium import assigned

ROWS: dict[str, list[list[str]]] = {
    "patient": [["patientunitstayid", "hospitalid", "uniquepid"]],
    "diagnosis": [["patientunitstayid", "icd9code", "diagnosisoffset"]],
    "treatment": [["patientunitstayid", "treatmentstring", "treatmentoffset"]],
    "medication": [["patientunitstayid", "drughiclseqno", "drugname", "drugordercancelled"]],
}
for _stay in range(1, 21):
    ROWS["patient"].append([str(_stay), str(1 + _stay % 2), f"p{_stay}"])
    ROWS["diagnosis"].append([str(_stay), f"{_stay % 3}, X", "10"])
    ROWS["treatment"].append([str(_stay), f"area|treatment {_stay % 4}", "10"])
    ROWS["medication"].append([str(_stay), str(900_001 + _stay % 5), f"DRUG {_stay % 5}", "No"])


def text_of(table: str, rows: list[list[str]] | None = None) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(ROWS[table] if rows is None else rows)
    return text.getvalue()


def write_raw(raw: Path) -> Path:
    raw.mkdir()
    for table in ROWS:
        (raw / f"{table}.csv").write_text(text_of(table))
    return raw


def damage_missing(raw: Path) -> None:
    (raw / "treatment.csv").unlink()


def damage_truncated(raw: Path) -> None:
    (raw / "diagnosis.csv").unlink()
    packed = gzip.compress(text_of("diagnosis").encode())
    (raw / "diagnosis.csv.gz").write_bytes(packed[:-20])


def damage_renamed(raw: Path) -> None:
    for table in ROWS:
        (raw / f"{table}.csv").rename(raw / f"{table}.parquet")


def damage_not_gzip(raw: Path) -> None:
    (raw / "diagnosis.csv").rename(raw / "diagnosis.csv.gz")


def damage(table: str, content: str | bytes) -> Callable[[Path], None]:
    def write(raw: Path) -> None:
        (raw / f"{table}.csv").write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def changed(table: str, row: int, column: int, value: str) -> Callable[[Path], None]:
    rows = [list(of) for of in ROWS[table]]
    rows[row][column] = value
    return damage(table, text_of(table, rows))


BAD_TABLES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "missing table": (damage_missing, ["treatment"]),
    "missing column": (changed("medication", 0, 1, "hicl"), ["medication.csv", "drughiclseqno"]),
    "Parquet tables": (damage_renamed, ["patient.parquet", "expected patient.csv"]),
    "semicolons": (damage("patient", text_of("patient").replace(",", ";")), ["patient.csv", "separated by ';'"]),
    "tabs": (damage("treatment", text_of("treatment").replace(",", "\t")), ["treatment.csv", "separated by a tab"]),
    "web page": (damage("diagnosis", "<!DOCTYPE html>\n<title>Log in</title>\n"), ["diagnosis.csv", "a web page"]),
    "text after a quote": (damage("diagnosis", text_of("diagnosis") + '3,"401.9"x,1\n'), ["diagnosis.csv: line 22:"]),
    "infinity as a medication": (changed("medication", 5, 1, "inf"), ["medication.csv: line 6", "found 'inf'"]),
    "truncated gzip": (damage_truncated, ["diagnosis.csv.gz"]),
    "no gzip": (damage_not_gzip, ["diagnosis.csv.gz"]),
    "empty table": (damage("treatment", ""), ["treatment.csv"]),
    "header alone": (damage("treatment", text_of("treatment").splitlines()[0] + "\n"), ["treatment.csv"]),
    "stay that is no integer": (changed("diagnosis", 3, 0, "x7"), ["diagnosis.csv", "patientunitstayid", "x7"]),
    "hospital that is no integer": (changed("patient", 3, 1, "north"), ["patient.csv", "hospitalid", "north"]),
    "HICL that is no integer": (changed("medication", 5, 1, "9.5"), ["medication.csv", "drughiclseqno", "9.5"]),
    "not UTF-8": (damage("treatment", text_of("treatment").encode() + b"3,\xff,1\n"), ["treatment.csv"]),
    "open quote": (damage("treatment", text_of("treatment") + '3,"area,1\n'), ["treatment.csv"]),
    "stay in two hospitals": (damage("patient", text_of("patient") + "7,1,p7\n"), ["patient.csv", "7"]),
    "hospital 0": (damage("patient", text_of("patient") + "77,0,p7\n"), ["patient.csv", "hospitalid", "found 0"]),
    "no hospital with enough records": (lambda raw: None, ["--min-records"]),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_raw_tables_that_are_unsound_are_one_line_and_leave_nothing(case: str, tmp_path: Path, capsys: Capture) -> None:
    """`prepare` and `simulate` alike; with --force over an older dataset or run, that stays."""
    raw = write_raw(tmp_path / "raw")
    least = "5"
    if case == "header alone":  # made once: every older thing that --force is not to touch
        assert tempt(["prepare", str(raw), str(tmp_path / "dataset"), "--min-records", "5"]) == 0
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.json").write_text("{}")
        (tmp_path / "run" / ".tempt").write_text("config.json")
    change, words = BAD_TABLES[case]
    change(raw)
    if case == "no hospital with enough records":
        least = "11"
    with unchanged(tmp_path):
        for arguments in (
            ["prepare", str(raw), str(tmp_path / "dataset")],
            ["simulate", "centralized", "--data", str(raw), "--out", str(tmp_path / "run"), "--jobs", "1"],
        ):
            force = ["--force"] if (tmp_path / "run").exists() else []
            line = mistake(capsys, [*arguments, "--min-records", least, *force])
            assert [word for word in words if word not in line] == [], line


def test_prepare_and_simulate_go_from_raw_tables_to_the_table(tmp_path: Path, capsys: Capture) -> None:
    raw = write_raw(tmp_path / "raw")
    assert tempt(["prepare", str(raw), str(tmp_path / "dataset"), "--min-records", "5"]) == 0
    with unchanged(tmp_path):
        assert "not empty" in mistake(capsys, ["prepare", str(raw), str(tmp_path / "dataset"), "--min-records", "5"])
    cut = ["--min-records", "5"]
    options = ["--models", "hospital-frequency,single-train", "--jobs", "1", *assigned()]
    for data, preparing in (("raw", cut), ("dataset", [])):
        places = ["--data", str(tmp_path / data), "--out", str(tmp_path / f"run-{data}")]
        assert tempt(["simulate", "centralized", *places, *options, *preparing]) == 0
    ready = ["--data", str(tmp_path / "dataset"), "--out", str(tmp_path / "another")]
    with unchanged(tmp_path):
        assert "go with raw tables" in mistake(capsys, ["simulate", "centralized", *ready, *options, *cut])
    results = [json.loads((tmp_path / f"run-{data}" / "results.json").read_text()) for data in ("raw", "dataset")]
    assert results[0]["dataset"]["digest"] == results[1]["dataset"]["digest"]
    assert results[0]["dataset"]["records"] == 20
    # resumed after the raw tables changed: another dataset
    (raw / "treatment.csv").write_text(text_of("treatment") + "1,area|treatment 9,10\n")
    places = ["--data", str(raw), "--out", str(tmp_path / "run-raw")]
    with unchanged(tmp_path):
        line = mistake(capsys, ["simulate", "centralized", *places, *options, *cut, "--resume"])
    assert "treatment.csv" in line


def test_tables_in_upper_case_and_with_missing_values_give_the_same_dataset(tmp_path: Path, capsys: Capture) -> None:
    """What is missing is counted in what `prepare` prints and in dataset.json."""
    plain, upper = write_raw(tmp_path / "plain"), tmp_path / "UPPER"
    upper.mkdir()
    for table, rows in ROWS.items():
        missing = [["1", "Null", *rows[1][2:]]] * 3 if table in ("diagnosis", "medication") else []
        text = text_of(table, [[name.upper() for name in rows[0]], *rows[1:], *missing])
        (upper / f"{table.upper()}.CSV").write_text(text)
    for raw in (plain, upper):
        capsys.readouterr()
        assert tempt(["prepare", str(raw), str(tmp_path / f"dataset-{raw.name}"), "--min-records", "5"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed if "NULL" in line] == [
        ["code", "is", "not", "NULL:", "removes", "3", "0", "0", "0"]
    ] * 2
    about = [json.loads((tmp_path / f"dataset-{name}" / "dataset.json").read_text()) for name in ("plain", "UPPER")]
    assert about[0]["digest"] == about[1]["digest"]
    assert "NULL" not in str(about[0]["attrition"])
    found = [(step["table"], step["removed"]["rows"]) for step in about[1]["attrition"] if "NULL" in step["step"]]
    assert found == [("diagnosis", 3), ("medication", 3)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def test_prepare_says_how_many_hospitals_it_left_out(tmp_path: Path, capsys: Capture) -> None:
    raw = write_raw(tmp_path / "raw")
    rows = [row if row[0] != "2" else ["2", "7", "p2"] for row in ROWS["patient"]]
    (raw / "patient.csv").write_text(text_of("patient", rows))
    assert tempt(["prepare", str(raw), str(tmp_path / "all"), "--min-records", "1"]) == 0
    assert "note:" not in capsys.readouterr().err
    assert tempt(["prepare", str(raw), str(tmp_path / "some"), "--min-records", "5"]) == 0
    note = "note: 1 hospital has fewer than 5 records and was left out; a smaller --min-records keeps it\n"
    assert capsys.readouterr().err.endswith(note)
