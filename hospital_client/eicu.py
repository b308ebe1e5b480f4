"""Raw eICU tables to records: rules 0 to 5 of the preparation (Section 4.1.1 of the paper, made exact).

0. Rows of stays that `patient` lacks are dropped.
1. A code is its field without white space at both ends; a row without one is dropped, and so is one whose code is NA,
   NULL, None or nan in any case: these are missing values, and counted.
2. (stay, code) counts once in each table.
3. The most frequent procedures and medications are kept, ties going to the smaller code; all diagnoses are kept.
4. Stays with a diagnosis, a procedure and a medication left are records; hospitals with enough of them are kept.
5. A vocabulary is the codes that occur in the records left, ascending; records are ordered by hospital, then stay.
   A medication is called what most of the hospitals left call it, each by its most frequent name; ties: the smallest.

A whole database and one hospital's own tables go the same way. The order of rows and columns does not matter.
Where hospitals have agreed on a vocabulary, it stands in the place of rules 3 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hospital_client.attrition import AttritionStep, Stays, Trail
from hospital_client.csv_blocks import Positions
from hospital_client.csv_table import Mask
from hospital_client.eicu_tables import Entries, Tables, read_tables
from hospital_client.leak_audit import Share, names_a_drug
from hospital_client.one_agreement import Cut
from hospital_client.preparation_options import PreparationOptions
from hospital_client.raw_folder import TABLES
from hospital_client.vocabulary_counts import MODALITY_TABLES, agreed
from shared_model.errors import TemptError
from shared_model.records import CodeSets, Dataset, RecordSet
from shared_model.vocabulary import Vocabulary
from shared_model.vocabulary_rules import nameless


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


def extract_records(raw: Path, options: PreparationOptions) -> Extraction:
    """The records of a directory of raw eICU tables.

    Raises:
        TemptError: a table is missing or unsound, or no hospital has enough records.
    """
    tables = read_tables(raw, options)
    stays, trail, entries = tables.stays, tables.trail, dict(tables.entries)
    for table, count in (("treatment", options.top_procedures), ("medication", options.top_medications)):
        entries[table] = entries[table].most_frequent(count)
        trail.add(table, f"the {count:,} most frequent", entries[table].stay)

    is_record = tables.with_all_three(entries)
    entries = _of_records(entries, is_record, trail, "stays with all three")
    is_record &= _enough_records(raw, stays, is_record, options.min_records)
    entries = _of_records(entries, is_record, trail, f"hospitals of {options.min_records:,} records")

    entries = {name: table.occurring() for name, table in entries.items()}
    dataset = Dataset(
        _vocabulary(tables, entries, is_record), _records(stays, is_record, entries), options.split_by_patient
    )
    named = np.array([names_a_drug(code, tables.words) for code in dataset.vocabulary.procedures])
    return Extraction(
        dataset=dataset,
        attrition=tuple(sorted(trail.steps, key=lambda step: TABLES.index(step.table))),
        late_rows=tables.late_rows,
        late_codes={
            "diagnoses": _late(entries["diagnosis"]),
            "procedures": _late(entries["treatment"]),
        },
        drug_procedures=Share(int(named.sum()), len(named)),
        drug_treatment_rows=tables.drug_rows,
        drug_procedure_codes=Share(
            int(named[dataset.records.procedures.codes.numpy()].sum()), len(dataset.records.procedures.codes)
        ),
    )


def extract_agreed(raw: Path, hospital: int, vocabulary: Vocabulary, cut: Cut | None = None) -> Dataset:
    """The records that one hospital's own raw tables hold under an agreed vocabulary; there may be none.

    Args:
        cut: that the vocabulary was made of with this hospital, if it was. Then its records are those that it told:
            none, if they are too few or the vocabulary lacks a code that enough of them have.

    Raises:
        TemptError: a table is missing or unsound, or holds another hospital's stays.
    """
    tables = read_tables(raw, PreparationOptions(), hospital=hospital)
    entries = tables.among(vocabulary.diagnoses, vocabulary.procedures, vocabulary.medications)
    is_record = tables.with_all_three(entries)
    if cut is not None:
        left = agreed(tables, cut)
        holds_all = all(
            {code for code, is_common in zip(getattr(cut, kind), left.common[table], strict=True) if is_common}
            <= set(getattr(vocabulary, kind))
            for kind, table in MODALITY_TABLES.items()
        )
        is_record &= left.is_record & (left.has_part and holds_all)
    entries = {name: table.select(is_record[table.stay]) for name, table in entries.items()}
    return Dataset(vocabulary, _records(tables.stays, is_record, entries), split_by_patient=False)


def _of_records(entries: dict[str, Entries], is_record: Mask, trail: Trail, step: str) -> dict[str, Entries]:
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


def _late(entries: Entries) -> Share:
    return Share(int((~entries.is_early).sum()), len(entries.is_early))


def _vocabulary(tables: Tables, entries: dict[str, Entries], is_record: Mask) -> Vocabulary:
    """Rule 5: the codes that are left, and what most of the hospitals that are left call the medications."""
    left = np.unique(tables.stays.hospital[is_record])
    names = tables.names.select(np.isin(tables.names.hospital, left)).of_most_hospitals()
    medications = [int(code) for code in entries["medication"].codes]
    return Vocabulary(
        diagnoses=tuple(str(code) for code in entries["diagnosis"].codes),
        procedures=tuple(str(code) for code in entries["treatment"].codes),
        medications=tuple(medications),
        medication_names=tuple(names.get(code, nameless(code)) for code in medications),
    )


def _records(stays: Stays, is_record: Mask, entries: dict[str, Entries]) -> RecordSet:
    """Rule 5: records by hospital, then stay; a code's position in its entries is the one in the vocabulary."""
    kept = np.flatnonzero(is_record)
    kept = kept[np.argsort(stays.hospital[kept], kind="stable")]
    number = np.full(len(stays.id), -1)
    number[kept] = np.arange(len(kept))
    patient = np.unique(stays.patient[kept], return_inverse=True)[1].astype(np.int64)
    return RecordSet(
        hospital=torch.from_numpy(np.array(stays.hospital_ids, dtype=np.int64)[stays.hospital[kept]]),
        stay=torch.from_numpy(np.array(stays.id, dtype=np.int64)[kept]),
        patient=torch.from_numpy(patient),
        diagnoses=_sets(entries["diagnosis"], number, len(kept)),
        procedures=_sets(entries["treatment"], number, len(kept)),
        medications=_sets(entries["medication"], number, len(kept)),
    )


def _sets(entries: Entries, number: Positions, records: int) -> CodeSets:
    record = number[entries.stay]
    order = np.lexsort((entries.code, record))
    offsets = np.concatenate([[0], np.bincount(record, minlength=records).cumsum()]).astype(np.int64)
    return CodeSets(torch.from_numpy(entries.code[order].astype(np.int64)), torch.from_numpy(offsets))
