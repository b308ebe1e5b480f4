"""Rules 0 to 5: the real demo figure for figure, a slow oracle on made-up tables, and what must not matter."""

from __future__ import annotations

import csv
import gzip
import random
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from hospital_client.attrition import AttritionStep
from hospital_client.eicu import Extraction, extract_records
from hospital_client.leak_audit import Share
from hospital_client.preparation_options import PreparationOptions
from shared_model.errors import TemptError
from tests.hospital_client.raw_tables import CONSORTIUM, write_tables


def records_of(extraction: Extraction) -> list[tuple[int, int, int, list[str], list[str], list[int]]]:
    """Every record as hospital, stay, patient, and its codes themselves."""
    records, vocabulary = extraction.dataset.records, extraction.dataset.vocabulary
    return [
        (
            hospital,
            stay,
            patient,
            [vocabulary.diagnoses[code] for code in diagnoses],
            [vocabulary.procedures[code] for code in procedures],
            [vocabulary.medications[code] for code in medications],
        )
        for hospital, stay, patient, diagnoses, procedures, medications in zip(
            records.hospital.tolist(),
            records.stay.tolist(),
            records.patient.tolist(),
            records.diagnoses.lists(),
            records.procedures.lists(),
            records.medications.lists(),
            strict=True,
        )
    ]


def steps_of(extraction: Extraction, table: str) -> list[tuple[str, int, int, int, int]]:
    return [(s.step, s.rows, s.stays, s.patients, s.hospitals) for s in extraction.attrition if s.table == table]


@pytest.mark.parametrize(
    ("min_records", "records", "hospitals", "vocabularies", "means", "maxima"),
    [
        (10, 886, 73, (373, 825, 298), (3.3183, 7.6422, 21.0079), (29, 75, 69)),
        (2, 1245, 127, (419, 899, 299), None, None),
    ],
)
def test_extract_real_demo_has_the_figures_of_the_design(
    eicu_demo: Path,
    min_records: int,
    records: int,
    hospitals: int,
    vocabularies: tuple[int, ...],
    means: tuple[float, ...] | None,
    maxima: tuple[int, ...] | None,
) -> None:
    dataset = extract_records(eicu_demo, PreparationOptions(min_records=min_records)).dataset
    found, vocabulary = dataset.records, dataset.vocabulary
    assert len(found) == records
    assert len(found.hospitals) == hospitals
    assert (len(vocabulary.diagnoses), len(vocabulary.procedures), len(vocabulary.medications)) == vocabularies
    lengths = [sets.lengths for sets in (found.diagnoses, found.procedures, found.medications)]
    if means is not None:
        assert tuple(round(float(length.double().mean()), 4) for length in lengths) == means
        assert tuple(int(length.max()) for length in lengths) == maxima
        per_hospital = found.hospital.unique(return_counts=True)[1]
        assert (int(per_hospital.min()), int(per_hospital.max())) == (10, 19)
        assert round(float(per_hospital.double().mean()), 2) == 12.14


def test_extract_small_consortium_by_hand(tmp_path: Path) -> None:
    extraction = extract_records(write_tables(tmp_path), PreparationOptions(min_records=1))
    # Patients A, B, C in the order of their identifiers: 0, 1, 2. Stay 5 has no procedure; 250.0 goes with it.
    mechanical, metoprolol = "pulmonary|ventilation|mechanical", "cardiovascular|beta blocker|metoprolol"
    assert records_of(extraction) == [
        (11, 1, 1, ["401.9, I10"], [mechanical], [30]),
        (11, 2, 0, ["038.9"], [metoprolol], [30]),
        (11, 3, 1, ["401.9, I10"], [metoprolol + " (Lopressor)"], [40]),
        (12, 4, 2, ["038.9"], [mechanical], [30]),
    ]
    vocabulary = extraction.dataset.vocabulary
    assert vocabulary.diagnoses == ("038.9", "401.9, I10")
    assert vocabulary.procedures == (metoprolol, metoprolol + " (Lopressor)", mechanical)
    assert vocabulary.medications == (30, 40)
    # 30 has METOPROLOL and LOPRESSOR twice each: the smaller; 40 never has a name
    assert vocabulary.medication_names == ("LOPRESSOR", "HICL 40")
    assert steps_of(extraction, "diagnosis") == [
        ("in the table", 8, 6, 4, 2),
        ("stays in patient", 7, 5, 4, 2),
        ("with a code", 6, 5, 4, 2),
        ("each code once a stay", 5, 5, 4, 2),
        ("stays with all three", 4, 4, 3, 2),
        ("hospitals of 1 records", 4, 4, 3, 2),
    ]
    assert steps_of(extraction, "medication") == [
        ("in the table", 7, 5, 4, 2),
        ("stays in patient", 7, 5, 4, 2),
        ("with a code", 6, 5, 4, 2),
        ("each code once a stay", 5, 5, 4, 2),
        ("the 300 most frequent", 5, 5, 4, 2),
        ("stays with all three", 4, 4, 3, 2),
        ("hospitals of 1 records", 4, 4, 3, 2),
    ]
    assert steps_of(extraction, "patient") == [
        ("in the table", 5, 5, 4, 2),
        ("stays with all three", 4, 4, 3, 2),
        ("hospitals of 1 records", 4, 4, 3, 2),
    ]
    # Of seven rows, 2000 and 1441 minutes are late; stay 1 has its code early too, stay 2 has not.
    assert extraction.late_rows == {"diagnosis": Share(2, 7), "treatment": Share(1, 4)}
    assert extraction.late_codes == {"diagnoses": Share(1, 4), "procedures": Share(1, 4)}
    assert extraction.drug_procedures == Share(2, 3)
    assert extraction.drug_treatment_rows == Share(2, 4)
    assert extraction.drug_procedure_codes == Share(2, 4)


def test_missing_values_were_codes_of_every_stay_and_are_counted_word_by_word(tmp_path: Path) -> None:
    more: dict[str, list[tuple[object, ...]]] = {
        "diagnosis": [(1, "NA", 0), (2, " na ", 0), (2, "Null", 0), (4, "NONE", 0), (5, "nan", 0), (9, "NA", 0)],
        "treatment": [(stay, "null", 0) for stay in range(1, 6)],
        "medication": [
            (1, "NaN", "ASPIRIN", "No"),
            (4, "None", "", "No"),
            (4, "30", " Null ", "No"),
            (9, "x", "", "No"),
        ],
    }
    more["medication"].pop()  # a word that is none of them is no whole number, also of a stay that nobody knows
    raw = write_tables(tmp_path, CONSORTIUM | {table: CONSORTIUM[table] + rows for table, rows in more.items()})
    extraction = extract_records(raw, PreparationOptions(min_records=1))
    plain = extract_records(write_tables(tmp_path / "plain"), PreparationOptions(min_records=1))
    assert records_of(extraction) == records_of(plain)
    assert extraction.dataset.vocabulary == plain.dataset.vocabulary
    assert steps_of(extraction, "diagnosis")[:7] == [
        ("in the table", 14, 6, 4, 2),
        ("stays in patient", 12, 5, 4, 2),
        ("with a code", 11, 5, 4, 2),
        ("code is not NA", 9, 5, 4, 2),
        ("code is not NULL", 8, 5, 4, 2),
        ("code is not None", 7, 5, 4, 2),
        ("code is not nan", 6, 5, 4, 2),
    ]
    assert steps_of(extraction, "treatment")[1:4] == [
        ("stays in patient", 9, 5, 4, 2),
        ("with a code", 9, 5, 4, 2),
        ("code is not NULL", 4, 4, 3, 2),
    ]
    assert steps_of(extraction, "medication")[1:5] == [
        ("stays in patient", 10, 5, 4, 2),
        ("with a code", 9, 5, 4, 2),
        ("code is not None", 8, 5, 4, 2),
        ("code is not nan", 7, 5, 4, 2),
    ]
    assert extraction.drug_treatment_rows == plain.drug_treatment_rows


@pytest.mark.parametrize("code", ["N/A", "nana", "None of these", "0", "-"])
def test_a_text_that_only_looks_like_a_missing_value_is_a_code(tmp_path: Path, code: str) -> None:
    raw = write_tables(tmp_path, CONSORTIUM | {"diagnosis": [*CONSORTIUM["diagnosis"], (1, code, 0)]})
    assert code in extract_records(raw, PreparationOptions(min_records=1)).dataset.vocabulary.diagnoses


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("patient", (6, 11, "NULL"), r"patient.csv: line 7, column uniquepid: found 'NULL', expected a patient's"),
        ("patient", (6, "na", "E"), r"patient.csv: line 7, column hospitalid: found 'na', expected a hospital"),
        (
            "diagnosis",
            ("None", "401.9", 0),
            r"diagnosis.csv: line 10, column patientunitstayid: found 'None', expected",
        ),
        (
            "treatment",
            (1, "a|b", "nan"),
            r"treatment.csv: line 6, column treatmentoffset: found 'nan', expected minutes",
        ),
    ],
)
def test_a_missing_value_where_none_may_be_is_refused(
    tmp_path: Path, table: str, row: tuple[object, ...], message: str
) -> None:
    raw = write_tables(tmp_path, CONSORTIUM | {table: [*CONSORTIUM[table], row]})
    with pytest.raises(TemptError, match=message):
        extract_records(raw, PreparationOptions(min_records=1))


@pytest.mark.parametrize(
    "code", ["inf", "-Infinity", "1e400", "2812.5", "9223372036854775808", "9" * 400, "0x1f", "1_0"]
)
def test_a_medication_that_is_no_whole_number_is_refused_with_its_line(tmp_path: Path, code: str) -> None:
    raw = write_tables(tmp_path, CONSORTIUM | {"medication": [*CONSORTIUM["medication"], (1, code, "", "No")]})
    with pytest.raises(TemptError, match=r"medication\.csv: line 9, column drughiclseqno: found '.*, expected a whole"):
        extract_records(raw, PreparationOptions(min_records=1))


def test_medications_of_every_whole_number_are_kept_as_they_are(tmp_path: Path) -> None:
    codes = ["-0", "+5", "00030.00", "9223372036854775807.0", "-9223372036854775808"]
    rows = [(1, code, "", "No") for code in codes]
    raw = write_tables(tmp_path, CONSORTIUM | {"medication": [*CONSORTIUM["medication"], *rows]})
    found = extract_records(raw, PreparationOptions(min_records=1)).dataset.vocabulary.medications
    assert found == (-(2**63), 0, 5, 30, 40, 2**63 - 1)


def test_extract_min_records_leaves_out_the_small_hospital_and_its_codes(tmp_path: Path) -> None:
    extraction = extract_records(write_tables(tmp_path), PreparationOptions(min_records=3))
    assert [record[:3] for record in records_of(extraction)] == [(11, 1, 1), (11, 2, 0), (11, 3, 1)]
    assert extraction.attrition[2] == AttritionStep("patient", "hospitals of 3 records", 3, 3, 2, 1)


def test_extract_one_hospital_alone_gives_its_records(tmp_path: Path) -> None:
    whole = extract_records(write_tables(tmp_path / "all"), PreparationOptions(min_records=1))
    stays = {row[0] for row in CONSORTIUM["patient"] if row[1] == 11}
    own = {table: [row for row in rows if row[0] in stays] for table, rows in CONSORTIUM.items()}
    alone = extract_records(write_tables(tmp_path / "own", own), PreparationOptions(min_records=1))
    assert records_of(alone) == [record for record in records_of(whole) if record[0] == 11]


@pytest.mark.parametrize(
    ("option", "stays", "step"),
    [
        ({"observation_window_hours": 24}, [1, 4], ("diagnosis", "within 24 hours", 4)),
        ({"observation_window_hours": 24.02}, [1, 2, 4], ("diagnosis", "within 24.02 hours", 5)),
        ({"leave_out_drug_procedures": True}, [1, 4], ("treatment", "names no drug", 2)),
        ({"leave_out_cancelled_orders": True}, [1, 3, 4], ("medication", "not cancelled", 5)),
    ],
)
def test_extract_option_beyond_the_paper_leaves_rows_out(
    tmp_path: Path, option: dict[str, Any], stays: list[int], step: tuple[str, str, int]
) -> None:
    extraction = extract_records(write_tables(tmp_path), PreparationOptions(min_records=1, **option))
    assert [record[1] for record in records_of(extraction)] == stays
    assert step in [(s.table, s.step, s.rows) for s in extraction.attrition]


def test_extract_cancelled_orders_do_not_name_a_medication(tmp_path: Path) -> None:
    medication = [(1, "30", "METOPROLOL", "No"), (2, "30", "LOPRESSOR", "Yes"), (3, "40", "", "No")]
    raw = write_tables(tmp_path, CONSORTIUM | {"medication": medication})
    for leave_out, name in ((False, "LOPRESSOR"), (True, "METOPROLOL")):
        options = PreparationOptions(min_records=1, leave_out_cancelled_orders=leave_out)
        assert extract_records(raw, options).dataset.vocabulary.medication_names == (name, "HICL 40")


def test_a_hospital_with_many_rows_named_every_hospitals_medication(tmp_path: Path) -> None:
    """One vote a hospital, and none for a hospital that is left out."""
    patient = [(stay, 11 + (stay > 2) + (stay > 4) + (stay > 6), f"P{stay}") for stay in range(1, 8)]
    name = {11: "BRAND", 12: "GENERIC", 13: "GENERIC", 14: "BRAND"}
    tables = {
        "patient": patient,
        "diagnosis": [(stay, "I10", 0) for stay, _, _ in patient],
        "treatment": [(stay, "a|b", 0) for stay, _, _ in patient],
        "medication": [(s, "30", name[h], "No") for s, h, _ in patient for _ in range(9 if h == 11 else 1)],
    }
    raw = write_tables(tmp_path, tables)
    for min_records, expected in ((1, "BRAND"), (2, "GENERIC")):  # 14 has one record: with it, two against two
        options = PreparationOptions(min_records=min_records)
        assert extract_records(raw, options).dataset.vocabulary.medication_names == (expected,)


def test_extract_real_demo_in_another_form_gives_the_same_records(eicu_demo: Path, tmp_path: Path) -> None:
    for name in ("patient", "diagnosis", "treatment", "medication"):
        with gzip.open(eicu_demo / f"{name}.csv.gz", "rt", newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        random.Random(5).shuffle(rows)
        with open(tmp_path / f"{name}.csv", "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file, lineterminator="\r\n").writerows(row[::-1] for row in (header, *rows))
    options = PreparationOptions(min_records=10)
    assert extract_records(tmp_path, options).dataset.digest == extract_records(eicu_demo, options).dataset.digest


_SPACES = st.sampled_from(["", " ", "\t", "  "])
_STAYS = st.integers(1, 7)
_OFFSETS = st.sampled_from([0, 1440, 1441])


def _padded(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(lambda before, text, after: before + text + after, _SPACES, texts, _SPACES)


_HICL = _padded(
    st.sampled_from(["", "2", "2.0", "10", "10.00", "9", "-3", "9007199254740993", "9007199254740992.0", "nan"])
)
_TABLES = st.fixed_dictionaries(
    {
        "patient": st.lists(
            st.tuples(st.integers(1, 2), _padded(st.sampled_from(["p", "q", "P", "é"]))), min_size=2, max_size=6
        ).map(lambda rows: [(stay, *row) for stay, row in enumerate(rows, start=1)]),
        "diagnosis": st.lists(
            st.tuples(_STAYS, _padded(st.sampled_from(["", "I10", "401.9, I10", "i10", "NA", "None"])), _OFFSETS),
            min_size=8,
        ),
        "treatment": st.lists(
            st.tuples(_STAYS, _padded(st.sampled_from(["", "a|b", "a|é", "a", "B", "null"])), _OFFSETS), min_size=8
        ),
        "medication": st.lists(
            st.tuples(_STAYS, _HICL, _padded(st.sampled_from(["", "aspirin", "ASPIRIN", "x\ny"])), st.just("No")),
            min_size=8,
        ),
    }
)


@given(
    tables=_TABLES,
    seed=st.randoms(use_true_random=False),
    min_records=st.sampled_from([1, 1, 2, 3]),
    top_medications=st.integers(1, 5),
    top_procedures=st.integers(1, 4),
    form=st.fixed_dictionaries(
        {
            "compressed": st.booleans(),
            "turned": st.booleans(),
            "extra": st.booleans(),
            "line_end": st.sampled_from(["\n", "\r\n"]),
            "byte_order_mark": st.booleans(),
        }
    ),
)
@example(tables=CONSORTIUM, seed=None, min_records=1, top_medications=300, top_procedures=1000, form={})
@settings(max_examples=100)
def test_extract_small_tables_in_any_form_agrees_with_the_slow_oracle(
    tables: dict[str, list[tuple[Any, ...]]],
    seed: Any,
    min_records: int,
    top_medications: int,
    top_procedures: int,
    form: dict[str, Any],
) -> None:
    options = PreparationOptions(
        min_records=min_records, top_medications=top_medications, top_procedures=top_procedures
    )
    with tempfile.TemporaryDirectory() as folder:
        plain = write_tables(Path(folder) / "plain", tables)
        shuffled = {table: list(rows) for table, rows in tables.items()}
        for rows in shuffled.values() if seed else ():
            seed.shuffle(rows)
        other = write_tables(Path(folder) / "other", shuffled, **form)
        expected, names = oracle(plain, min_records, top_medications, top_procedures)
        event("records" if expected else "no record")
        if not expected:
            for raw in (plain, other):
                with pytest.raises(TemptError, match=r"no hospital has|no stay has"):
                    extract_records(raw, options)
            return
        found, again = extract_records(plain, options), extract_records(other, options)
    assert records_of(found) == expected
    vocabulary = found.dataset.vocabulary
    assert list(vocabulary.diagnoses) == sorted({code for record in expected for code in record[3]})
    assert list(vocabulary.procedures) == sorted({code for record in expected for code in record[4]})
    assert list(vocabulary.medications) == sorted({code for record in expected for code in record[5]})
    assert dict(zip(vocabulary.medications, vocabulary.medication_names, strict=True)) == {
        code: names.get(code, f"HICL {code}") for code in vocabulary.medications
    }
    assert found.dataset.digest == again.dataset.digest
    assert vocabulary == again.dataset.vocabulary
    assert found.attrition == again.attrition
    assert (found.late_rows, found.late_codes) == (again.late_rows, again.late_codes)


def oracle(
    raw: Path, min_records: int, top_medications: int, top_procedures: int
) -> tuple[list[tuple[int, int, int, list[str], list[str], list[int]]], dict[int, str]]:
    """Rules 0 to 5 read literally, one row at a time: the records, and the names of the medications."""

    def rows(table: str) -> list[dict[str, str]]:
        with open(raw / f"{table}.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    missing = ("", "na", "null", "none", "nan")
    hospital = {int(row["patientunitstayid"]): int(row["hospitalid"]) for row in rows("patient")}
    patient = {int(row["patientunitstayid"]): row["uniquepid"].strip() for row in rows("patient")}

    def codes(table: str, column: str) -> set[tuple[int, str]]:
        found = set()
        for row in rows(table):
            stay, code = int(row["patientunitstayid"]), row[column].strip()
            if stay in hospital and code.lower() not in missing:  # rules 0 and 1
                found.add((stay, code))  # rule 2
        return found

    def most_frequent(pairs: set[tuple[int, Any]], count: int) -> set[tuple[int, Any]]:
        frequency = Counter(code for _, code in pairs)
        kept = sorted(frequency, key=lambda code: (-frequency[code], code))[:count]  # rule 3
        return {(stay, code) for stay, code in pairs if code in kept}

    diagnoses = codes("diagnosis", "icd9code")
    procedures = most_frequent(codes("treatment", "treatmentstring"), top_procedures)
    with_texts = codes("medication", "drughiclseqno")
    medications = most_frequent({(stay, int(code.split(".")[0])) for stay, code in with_texts}, top_medications)

    complete = {stay for stay, _ in diagnoses} & {stay for stay, _ in procedures} & {stay for stay, _ in medications}
    size = Counter(hospital[stay] for stay in complete)
    kept = sorted((s for s in complete if size[hospital[s]] >= min_records), key=lambda s: (hospital[s], s))  # 4, 5
    patients = sorted({patient[stay] for stay in kept})
    left = {hospital[stay] for stay in kept}

    def most(counts: Counter[str]) -> str:
        return min(counts, key=lambda name: (-counts[name], name))

    names: dict[tuple[int, int], Counter[str]] = defaultdict(Counter)
    for row in rows("medication"):
        code, name = row["drughiclseqno"].strip(), row["drugname"].strip()
        there = hospital.get(int(row["patientunitstayid"]), -1)
        if there in left and code not in missing and name:
            names[int(code.split(".")[0]), there][name] += 1
    votes: dict[int, Counter[str]] = defaultdict(Counter)
    for (medication, _), counts in names.items():
        votes[medication][most(counts)] += 1
    best = {medication: most(counts) for medication, counts in votes.items()}

    def of(stay: int, pairs: set[tuple[int, Any]]) -> list[Any]:
        return sorted(code for other, code in pairs if other == stay)

    return [
        (
            hospital[stay],
            stay,
            patients.index(patient[stay]),
            of(stay, diagnoses),
            of(stay, procedures),
            of(stay, medications),
        )
        for stay in kept
    ], best
