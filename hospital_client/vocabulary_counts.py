"""A hospital's part of the vocabulary agreement: what it tells of the codes that its raw tables hold.

Two answers, of names and sums alone. First which codes it has and in how many stays; then, once the counts of all
hospitals are cut, how many records remain under the cut, which of its codes these records hold, and what its
medications are called. A code or a drug name that fewer stays than the minimum have, or that is no text of one line, is
named in neither; fewer records than the minimum are told as none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hospital_client.eicu_tables import Entries, Tables
from shared_model.vocabulary_rules import is_code


@dataclass(frozen=True)
class Told:
    """What an answer holds, beside whose it is.

    Attributes:
        texts: codes and drug names.
    """

    numbers: dict[str, int]
    arrays: dict[str, NDArray[np.generic]]
    texts: dict[str, list[str]]


def counts(tables: Tables, minimum: int) -> Told:
    """Which codes the hospital has; of procedures and medications, which are cut by frequency, in how many stays."""
    procedures, procedure_counts = _counted(tables.entries["treatment"], minimum)
    medications, medication_counts = _counted(tables.entries["medication"], minimum)
    return Told(
        {},
        {
            "procedure-counts": procedure_counts,
            "medications": np.array(medications, dtype=np.int64),
            "medication-counts": medication_counts,
        },
        {
            "diagnoses": [str(code) for code in _counted(tables.entries["diagnosis"], minimum)[0]],
            "procedures": [str(code) for code in procedures],
        },
    )


def remaining(
    tables: Tables,
    diagnoses: Sequence[str],
    procedures: Sequence[str],
    medications: Sequence[int],
    *,
    minimum: int,
    min_records: int,
) -> Told:
    """What remains of the hospital under a cut: records, which of the cut's codes they hold, names of medications.

    Args:
        diagnoses, procedures, medications: the cut.
        min_records: a hospital with fewer is left out, so its codes and names are not told.
    """
    entries = tables.among(diagnoses, procedures, medications)
    is_record = tables.with_all_three(entries)
    records = int(is_record.sum())
    has_enough = records >= max(minimum, min_records)
    arrays: dict[str, NDArray[np.generic]] = {}
    for modality, table in (("diagnoses", "diagnosis"), ("procedures", "treatment"), ("medications", "medication")):
        left = entries[table].select(is_record[entries[table].stay])
        arrays[modality] = (left.frequency() >= minimum) & has_enough
    names = tables.names
    place = {code: number for number, code in enumerate(medications)}
    position = np.array([place.get(code, -1) for code in names.codes], dtype=np.int64)
    may_be_told = np.array([is_code(text) for text in names.texts], dtype=bool)
    told = (position[names.code] >= 0) & (names.stays >= minimum) & may_be_told[names.name] & has_enough
    code, name = names.select(told).of_each_hospital()
    arrays["named"] = position[code]
    return Told({"records": records if records >= minimum else 0}, arrays, {"names": [names.texts[n] for n in name]})


def _counted(entries: Entries, minimum: int) -> tuple[list[int | str], NDArray[np.int64]]:
    """The codes that enough stays have and that may be told, ascending, and how many have them."""
    frequency = entries.frequency()
    may_be_told = np.array([isinstance(code, int) or is_code(code) for code in entries.codes], dtype=bool)
    named = np.flatnonzero((frequency >= minimum) & may_be_told)
    return [entries.codes[int(code)] for code in named], frequency[named]
