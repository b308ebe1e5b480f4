"""A hospital's part of the vocabulary agreement: what it tells of the codes that its raw tables hold.

Two answers, of names and sums alone. First which codes it has and in how many stays; then, once the counts of all
hospitals are cut, how many records remain under the cut, which of its codes these records hold, and what its
medications are called. A code or a drug name that fewer stays than the minimum have, or that is no text of one line, is
named in neither; fewer records than the minimum are told as none.

Records are stays with a code of each kind that enough records have: so their number does not depend on a code that is
rare here, whichever of the cut's codes a vocabulary holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hospital_client.csv_table import Mask
from hospital_client.eicu_tables import Entries, Tables
from hospital_client.one_agreement import Cut
from shared_model.vocabulary_rules import is_code

MODALITY_TABLES = {"diagnoses": "diagnosis", "procedures": "treatment", "medications": "medication"}


@dataclass(frozen=True)
class Sums:
    """What an answer holds, beside whose it is.

    Attributes:
        texts: codes and drug names.
    """

    numbers: dict[str, int]
    arrays: dict[str, NDArray[np.generic]]
    texts: dict[str, list[str]]


def counts(tables: Tables, minimum: int) -> Sums:
    """Which codes the hospital has; of procedures and medications, which are cut by frequency, in how many stays."""
    procedures, procedure_counts = _counted(tables.entries["treatment"], minimum)
    medications, medication_counts = _counted(tables.entries["medication"], minimum)
    return Sums(
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


class Agreed(NamedTuple):
    """What an agreement leaves of a hospital.

    Attributes:
        common: of each table, which of the cut's codes enough records have.
        is_record: which stays have such a code in each table.
        has_part: they are enough; else nothing of them is told.
    """

    common: dict[str, Mask]
    is_record: Mask
    has_part: bool


def agreed(tables: Tables, cut: Cut) -> Agreed:
    """What a cut leaves of the hospital."""
    entries = tables.among(cut.diagnoses, cut.procedures, cut.medications)
    is_whole = tables.with_all_three(entries)
    common = {name: of.select(is_whole[of.stay]).frequency() >= cut.minimum for name, of in entries.items()}
    is_record = tables.with_all_three({name: of.select(common[name][of.code]) for name, of in entries.items()})
    return Agreed(common, is_record, int(is_record.sum()) >= max(cut.minimum, cut.min_records))


def remaining(tables: Tables, cut: Cut) -> Sums:
    """What remains of the hospital under a cut: records, which of the cut's codes they hold, names of medications."""
    common, is_record, has_part = agreed(tables, cut)
    arrays: dict[str, NDArray[np.generic]] = {}
    for modality, table in MODALITY_TABLES.items():
        arrays[modality] = common[table] & has_part
    names = tables.names
    place = {code: number for number, code in enumerate(cut.medications)}
    position = np.array([place.get(code, -1) for code in names.codes], dtype=np.int64)
    may_be_told = np.array([is_code(text) for text in names.texts], dtype=bool)
    told = (position[names.code] >= 0) & (names.stays >= cut.minimum) & may_be_told[names.name] & has_part
    code, name = names.select(told).of_each_hospital()
    arrays["named"] = position[code]
    records = int(is_record.sum()) if has_part else 0
    return Sums({"records": records}, arrays, {"names": [names.texts[n] for n in name]})


def _counted(entries: Entries, minimum: int) -> tuple[list[int | str], NDArray[np.int64]]:
    """The codes that enough stays have and that may be told, ascending, and how many have them."""
    frequency = entries.frequency()
    may_be_told = np.array([isinstance(code, int) or is_code(code) for code in entries.codes], dtype=bool)
    named = np.flatnonzero((frequency >= minimum) & may_be_told)
    return [entries.codes[int(code)] for code in named], frequency[named]
