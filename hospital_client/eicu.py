"""Raw eICU tables to records: rules 0 to 5 of the preparation (Section 4.1.1 of the paper, made exact).

0. Rows of stays that `patient` lacks are dropped.
1. A code is its field without white space at both ends; a row without one is dropped.
2. (stay, code) counts once in each table.
3. The most frequent procedures and medications are kept, ties going to the smaller code; all diagnoses are kept.
4. Stays with a diagnosis, a procedure and a medication left are records; hospitals with enough of them are kept.
5. A vocabulary is the codes that occur in the records left, ascending; records are ordered by hospital, then stay.

A whole database and one hospital's own tables go the same way. The order of rows and columns does not matter.
Source: Pollard et al., The eICU Collaborative Research Database, Scientific Data 5, 180178 (2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hospital_client.attrition import AttritionStep, Stays, Trail
from hospital_client.csv_table import CsvTable, Positions, read_csv_table, shown
from hospital_client.leak_audit import EARLY_HOURS, Share, drug_words, names_a_drug
from hospital_client.preparation_options import PreparationOptions
from shared_model.errors import TemptError
from shared_model.records import CodeSets, Dataset, RecordSet
from shared_model.vocabulary import Vocabulary

TABLES = ("patient", "diagnosis", "treatment", "medication")
_STAY = "patientunitstayid"

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Extraction:
    """Records and what was counted on the way to them."""

    dataset: Dataset
    attrition: tuple[AttritionStep, ...]
    late_rows: dict[str, Share]
    late_codes: dict[str, Share]
    drug_procedures: Share
    drug_treatment_rows: Share
    drug_procedure_codes: Share


def find_tables(raw: Path) -> dict[str, Path]:
    """The file of each raw table.

    Raises:
        TemptError: the directory or a table is missing, or a table is there both plain and compressed.
    """
    if not raw.exists():
        raise TemptError(f"{raw}: no such directory; expected one with the raw eICU tables {', '.join(TABLES)}")
    if not raw.is_dir():
        raise TemptError(f"{raw}: is a file; expected a directory with the raw eICU tables {', '.join(TABLES)}")
    found = {}
    for table in TABLES:
        there = [path for path in (raw / f"{table}.csv", raw / f"{table}.csv.gz") if path.is_file()]
        if not there:
            raise TemptError(f"{raw}: has no table {table}; expected {table}.csv or {table}.csv.gz; add the file")
        if len(there) == 2:
            raise TemptError(f"{raw}: has both {table}.csv and {table}.csv.gz; expected one of them; move one away")
        found[table] = there[0]
    return found


def extract_records(raw: Path, options: PreparationOptions) -> Extraction:
    """The records of a directory of raw eICU tables.

    Raises:
        TemptError: a table is missing or unsound, or no hospital has enough records.
    """
    paths = find_tables(raw)
    stays = _read_stays(paths["patient"])
    trail = Trail(stays)
    medications, medication_names, words = _read_medications(paths["medication"], trail, options)
    diagnoses, late_diagnoses = _read_diagnoses(paths["diagnosis"], trail, options)
    procedures, late_procedures, drug_rows = _read_procedures(paths["treatment"], trail, options, words)
    entries = {"diagnosis": diagnoses, "treatment": procedures, "medication": medications}

    is_record = np.ones(len(stays.id), dtype=bool)
    for table in entries.values():
        is_record &= np.bincount(table.stay, minlength=len(stays.id)) > 0
    entries = _of_records(entries, is_record, trail, "stays with all three")
    is_record &= _enough_records(raw, stays, is_record, options.min_records)
    entries = _of_records(entries, is_record, trail, f"hospitals of {options.min_records:,} records")

    dataset = _dataset(stays, is_record, entries, medication_names, options)
    named = np.array([names_a_drug(code, words) for code in dataset.vocabulary.procedures])
    return Extraction(
        dataset=dataset,
        attrition=tuple(sorted(trail.steps, key=lambda step: TABLES.index(step.table))),
        late_rows={"diagnosis": late_diagnoses, "treatment": late_procedures},
        late_codes={
            "diagnoses": _late(entries["diagnosis"]),
            "procedures": _late(entries["treatment"]),
        },
        drug_procedures=Share(int(named.sum()), len(named)),
        drug_treatment_rows=drug_rows,
        drug_procedure_codes=Share(
            int(named[dataset.records.procedures.codes.numpy()].sum()), len(dataset.records.procedures.codes)
        ),
    )


@dataclass(frozen=True)
class _Entries:
    """Rows of a table of codes: position of the stay, position of the code, and whether it came early."""

    stay: Positions
    code: Positions
    is_early: Mask
    codes: list[int] | list[str]

    def select(self, chosen: Mask) -> _Entries:
        return _Entries(self.stay[chosen], self.code[chosen], self.is_early[chosen], self.codes)

    def distinct(self) -> _Entries:
        """Each (stay, code) once, by stay, then code; early if any of its rows is."""
        # One sort of one number a row, whose last bit says late; np.unique hashes and takes eight times as long.
        key = (self.stay * len(self.codes) + self.code) * 2 + ~self.is_early
        key.sort()
        key = key[np.diff(key // 2, prepend=-1) > 0]
        stay, code = np.divmod(key // 2, max(len(self.codes), 1))
        return _Entries(stay, code, key % 2 == 0, self.codes)

    def most_frequent(self, count: int) -> _Entries:
        """The entries of the most frequent codes; of equally frequent ones the smaller come first."""
        frequency = np.bincount(self.code, minlength=len(self.codes))
        kept = np.zeros(len(self.codes), dtype=bool)
        kept[np.argsort(-frequency, kind="stable")[:count]] = True
        return self.select(kept[self.code])


def _read_stays(path: Path) -> Stays:
    table = read_csv_table(path, [_STAY, "hospitalid", "uniquepid"])
    ids, stay = table.integers(_STAY)
    table.required(_STAY, stay, "a stay's number")
    hospital_ids, hospital = table.integers("hospitalid")
    table.required("hospitalid", hospital, "a hospital's number")
    if hospital_ids and hospital_ids[0] < 1:  # 0 stands for the whole consortium, and a folder has the number's name
        found = int((hospital == 0).argmax())
        raise table.error(
            found, "hospitalid", f"found {hospital_ids[0]}, expected a number of at least 1; correct the row"
        )
    _, patient = table.texts("uniquepid")
    table.required("uniquepid", patient, "a patient's identifier")

    order = np.argsort(stay, kind="stable")
    if len(ids) < len(stay):
        row = int(order[1:][np.diff(stay[order]) == 0].min())
        first = int((stay == stay[row]).argmax())
        here, there = hospital_ids[hospital[row]], hospital_ids[hospital[first]]
        where = f"again for hospital {here}" if here == there else f"for hospital {here} and for hospital {there}"
        problem = f"stay {ids[stay[row]]} is listed {where} (see line {table.line(first)})"
        raise table.error(row, _STAY, f"{problem}; expected each stay once; correct or remove a row")
    return Stays(ids, hospital[order], hospital_ids, patient[order])


def _known(table: CsvTable, name: str, trail: Trail) -> Positions:
    """Rule 0: each row's stay as a position in the patient table, -1 for a stay that it lacks."""
    ids, position = table.integers(_STAY)
    table.required(_STAY, position, "a stay's number")
    place = {stay: number for number, stay in enumerate(trail.stays.id)}
    new = np.array([place.get(stay, -1) for stay in ids], dtype=np.int64)
    stay: Positions = new[position]
    trail.add(name, "in the table", stay, unknown_stays=int((new < 0).sum()))
    trail.add(name, "stays in patient", stay[stay >= 0])
    return stay


def _read_medications(
    path: Path, trail: Trail, options: PreparationOptions
) -> tuple[_Entries, dict[int, str], frozenset[str]]:
    cancelled = ["drugordercancelled"] if options.leave_out_cancelled_orders else []
    table = read_csv_table(path, [_STAY, "drughiclseqno", "drugname", *cancelled])
    stay = _known(table, "medication", trail)
    codes, code = table.integers("drughiclseqno")
    names, name = table.texts("drugname")
    words = drug_words(names[number] for number in np.unique(name[(stay >= 0) & (name >= 0)]))
    left = (stay >= 0) & (code >= 0)
    trail.add("medication", "with a code", stay[left])
    for column in cancelled:
        left &= ~_is_cancelled(table, column)
        trail.add("medication", "not cancelled", stay[left])
    stay, code, name = stay[left], code[left], name[left]
    entries = _Entries(stay, code, np.ones(len(stay), dtype=bool), codes).distinct()
    trail.add("medication", "each code once a stay", entries.stay)
    entries = entries.most_frequent(options.top_medications)
    trail.add("medication", f"the {options.top_medications:,} most frequent", entries.stay)
    return entries, _most_frequent_names(codes, code, names, name), words


def _is_cancelled(table: CsvTable, column: str) -> Mask:
    texts, position = table.texts(column)
    for number, text in enumerate(texts):
        if text not in ("Yes", "No"):
            row = int((position == number).argmax())
            raise table.error(row, column, f"found {shown(text)}, expected Yes or No; correct the row")
    is_cancelled: Mask = position == (texts.index("Yes") if "Yes" in texts else len(texts))
    return is_cancelled


def _most_frequent_names(codes: list[int], code: Positions, names: list[str], name: Positions) -> dict[int, str]:
    """The most frequent drug name of each medication, ties: the smallest; none for one that never has a name."""
    there = name >= 0
    key, count = np.unique(code[there] * max(len(names), 1) + name[there], return_counts=True)
    code, name = key // max(len(names), 1), key % max(len(names), 1)
    order = np.lexsort((name, -count, code))
    first = order[np.unique(code[order], return_index=True)[1]]
    return {codes[c]: names[n] for c, n in zip(code[first], name[first], strict=True)}


def _read_diagnoses(path: Path, trail: Trail, options: PreparationOptions) -> tuple[_Entries, Share]:
    entries, late = _read_inputs(path, "diagnosis", "icd9code", "diagnosisoffset", trail, options)
    entries = entries.distinct()
    trail.add("diagnosis", "each code once a stay", entries.stay)
    return entries, late


def _read_procedures(
    path: Path, trail: Trail, options: PreparationOptions, words: frozenset[str]
) -> tuple[_Entries, Share, Share]:
    entries, late = _read_inputs(path, "treatment", "treatmentstring", "treatmentoffset", trail, options)
    named = np.array([names_a_drug(str(code), words) for code in entries.codes], dtype=bool)
    drug_rows = Share(int(named[entries.code].sum()), len(entries.code))
    if options.leave_out_drug_procedures:
        entries = entries.select(~named[entries.code])
        trail.add("treatment", "names no drug", entries.stay)
    entries = entries.distinct()
    trail.add("treatment", "each code once a stay", entries.stay)
    entries = entries.most_frequent(options.top_procedures)
    trail.add("treatment", f"the {options.top_procedures:,} most frequent", entries.stay)
    return entries, late, drug_rows


def _read_inputs(
    path: Path, name: str, code_column: str, offset_column: str, trail: Trail, options: PreparationOptions
) -> tuple[_Entries, Share]:
    """Rules 0 and 1, and the observation window, for what may be an input; and the share of rows entered late."""
    table = read_csv_table(path, [_STAY, code_column, offset_column])
    stay = _known(table, name, trail)
    codes, code = table.texts(code_column)
    minutes, offset = table.integers(offset_column)
    table.required(offset_column, offset, "minutes after the admission to the unit")
    # Ascending: how many of the distinct offsets are within a number of hours is where the later ones begin.
    early = int(np.searchsorted(minutes, EARLY_HOURS * 60, side="right"))
    late = Share(int((offset[stay >= 0] >= early).sum()), int((stay >= 0).sum()))
    left = (stay >= 0) & (code >= 0)
    trail.add(name, "with a code", stay[left])
    if options.observation_window_hours is not None:
        left &= offset < np.searchsorted(minutes, options.observation_window_hours * 60, side="right")
        trail.add(name, f"within {options.observation_window_hours:g} hours", stay[left])
    return _Entries(stay[left], code[left], offset[left] < early, codes), late


def _of_records(entries: dict[str, _Entries], is_record: Mask, trail: Trail, step: str) -> dict[str, _Entries]:
    """The entries of the stays that are left."""
    entries = {name: table.select(is_record[table.stay]) for name, table in entries.items()}
    trail.add("patient", step, np.flatnonzero(is_record))
    for name, table in entries.items():
        trail.add(name, step, table.stay)
    return entries


def _enough_records(raw: Path, stays: Stays, is_record: Mask, min_records: int) -> Mask:
    """Rule 4: which stays are of a hospital with enough records."""
    records = np.bincount(stays.hospital[is_record], minlength=len(stays.hospital_ids))
    if records.max() == 0:
        raise TemptError(
            f"{raw}: no stay has a diagnosis, a procedure and a medication with a code; expected such a record at"
            " least; check that the tables belong together"
        )
    if records.max() < min_records:
        largest = int(records.argmax())
        raise TemptError(
            f"{raw}: no hospital has {min_records} records; the largest, hospital {stays.hospital_ids[largest]}, has"
            f" {records[largest]}; lower --min-records"
        )
    enough: Mask = records >= min_records
    return enough[stays.hospital]


def _late(entries: _Entries) -> Share:
    return Share(int((~entries.is_early).sum()), len(entries.is_early))


def _dataset(
    stays: Stays,
    is_record: Mask,
    entries: dict[str, _Entries],
    medication_names: dict[int, str],
    options: PreparationOptions,
) -> Dataset:
    """Rule 5: vocabularies, and records by hospital, then stay."""
    kept = np.flatnonzero(is_record)
    kept = kept[np.argsort(stays.hospital[kept], kind="stable")]
    number = np.full(len(stays.id), -1)
    number[kept] = np.arange(len(kept))
    diagnoses, diagnosis_sets = _sets(entries["diagnosis"], number, len(kept))
    procedures, procedure_sets = _sets(entries["treatment"], number, len(kept))
    medications, medication_sets = _sets(entries["medication"], number, len(kept))
    vocabulary = Vocabulary(
        diagnoses=tuple(str(code) for code in diagnoses),
        procedures=tuple(str(code) for code in procedures),
        medications=tuple(int(code) for code in medications),
        medication_names=tuple(medication_names.get(int(code), f"HICL {code}") for code in medications),
    )
    patient = np.unique(stays.patient[kept], return_inverse=True)[1].astype(np.int64)
    records = RecordSet(
        hospital=torch.from_numpy(np.array(stays.hospital_ids, dtype=np.int64)[stays.hospital[kept]]),
        stay=torch.from_numpy(np.array(stays.id, dtype=np.int64)[kept]),
        patient=torch.from_numpy(patient),
        diagnoses=diagnosis_sets,
        procedures=procedure_sets,
        medications=medication_sets,
    )
    return Dataset(vocabulary, records, options.split_by_patient)


def _sets(entries: _Entries, number: Positions, records: int) -> tuple[list[int | str], CodeSets]:
    there, code = np.unique(entries.code, return_inverse=True)
    record = number[entries.stay]
    order = np.lexsort((code, record))
    offsets = np.concatenate([[0], np.bincount(record, minlength=records).cumsum()]).astype(np.int64)
    codes = torch.from_numpy(code[order].astype(np.int64))
    return [entries.codes[position] for position in there], CodeSets(codes, torch.from_numpy(offsets))
