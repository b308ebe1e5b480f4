"""Raw eICU tables as they are read: rules 0 to 2 of the preparation (`eicu.py` has them all), before any code is cut.

Source: Pollard et al., The eICU Collaborative Research Database, Scientific Data 5, 180178 (2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hospital_client.attrition import Stays, Trail
from hospital_client.csv_blocks import Positions
from hospital_client.csv_header import shown
from hospital_client.csv_table import CsvTable, Mask, read_csv_table
from hospital_client.leak_audit import EARLY_HOURS, Share, drug_words, names_a_drug
from hospital_client.preparation_options import PreparationOptions
from hospital_client.raw_folder import find_tables
from shared_model.errors import TemptError
from shared_model.vocabulary_rules import most_frequent, most_frequent_names, names_of_most_hospitals

_STAY = "patientunitstayid"


@dataclass(frozen=True)
class Entries:
    """Rows of a table of codes: position of the stay, position of the code, and whether it came early."""

    stay: Positions
    code: Positions
    is_early: Mask
    codes: Sequence[int] | Sequence[str]

    def select(self, chosen: Mask) -> Entries:
        return Entries(self.stay[chosen], self.code[chosen], self.is_early[chosen], self.codes)

    def distinct(self) -> Entries:
        """Each (stay, code) once, by stay, then code; early if any of its rows is."""
        # One sort of one number a row, whose last bit says late; np.unique hashes and takes eight times as long.
        key = (self.stay * len(self.codes) + self.code) * 2 + ~self.is_early
        key.sort()
        key = key[np.diff(key // 2, prepend=-1) > 0]
        stay, code = np.divmod(key // 2, max(len(self.codes), 1))
        return Entries(stay, code, key % 2 == 0, self.codes)

    def frequency(self) -> Positions:
        """How many entries each code has: of distinct ones, how many stays."""
        return np.bincount(self.code, minlength=len(self.codes))

    def most_frequent(self, count: int) -> Entries:
        """The entries of the most frequent codes; of equally frequent ones the smaller come first."""
        return self.select(most_frequent(self.frequency(), count)[self.code])

    def among(self, codes: Sequence[int] | Sequence[str]) -> Entries:
        """The entries of these codes, as positions among them."""
        place = {code: number for number, code in enumerate(codes)}
        new = np.array([place.get(code, -1) for code in self.codes], dtype=np.int64)[self.code]
        left = new >= 0
        return Entries(self.stay[left], new[left], self.is_early[left], codes)

    def occurring(self) -> Entries:
        """The same entries, as positions among the codes that occur."""
        there, code = np.unique(self.code, return_inverse=True)
        return Entries(self.stay, code, self.is_early, [self.codes[place] for place in there])


@dataclass(frozen=True)
class DrugNames:
    """The drug names of each medication in each hospital: once each, by code, then name, then hospital.

    Attributes:
        code, name, hospital: positions in `codes`, in `texts` and among the hospitals.
        rows, stays: in how many of the hospital's it occurs.
    """

    codes: list[int]
    texts: list[str]
    code: Positions
    name: Positions
    hospital: Positions
    rows: Positions
    stays: Positions

    @staticmethod
    def of(
        codes: list[int], code: Positions, texts: list[str], name: Positions, stay: Positions, hospital: Positions
    ) -> DrugNames:
        """Of rows; a name of -1 is none.

        Args:
            hospital: of each stay.
        """
        there = name >= 0
        width, stays = max(len(texts), 1), max(len(hospital), 1)
        by_hospital = np.argsort(hospital, kind="stable")
        rank = np.empty_like(by_hospital)
        rank[by_hospital] = np.arange(len(hospital))
        key = (code[there] * width + name[there]) * stays + rank[stay[there]]
        key.sort()
        pair, own = key // stays, hospital[by_hospital[key % stays]]
        first = np.flatnonzero((np.diff(pair, prepend=-1) > 0) | (np.diff(own, prepend=-1) != 0))
        new_stays = np.append(0, (np.diff(key, prepend=-1) > 0).cumsum())
        code, name = np.divmod(pair[first], width)
        ends = np.append(first[1:], len(key)).astype(np.int64)
        return DrugNames(codes, texts, code, name, own[first], ends - first, new_stays[ends] - new_stays[first])

    def select(self, chosen: Mask) -> DrugNames:
        parts = (self.code, self.name, self.hospital, self.rows, self.stays)
        return DrugNames(self.codes, self.texts, *(part[chosen] for part in parts))

    def of_each_hospital(self) -> tuple[Positions, Positions]:
        """Each hospital's codes with its most frequent name, ties: the smallest."""
        of_hospital, name = most_frequent_names(self.hospital * len(self.codes) + self.code, self.name, self.rows)
        return of_hospital % max(len(self.codes), 1), name

    def of_most_hospitals(self) -> dict[int, str]:
        """The name that most hospitals have for a medication, ties: the smallest; none for one that never has any."""
        found = zip(*names_of_most_hospitals(*self.of_each_hospital()), strict=True)
        return {self.codes[code]: self.texts[name] for code, name in found}


@dataclass(frozen=True)
class Tables:
    """A directory of raw tables.

    Attributes:
        entries: of each table of codes, each code of a stay once.
        words: that name drugs.
        late_rows: of the diagnosis and the treatment table.
        drug_rows: rows of the treatment table that name a drug.
    """

    stays: Stays
    trail: Trail
    entries: dict[str, Entries]
    names: DrugNames
    words: frozenset[str]
    late_rows: dict[str, Share]
    drug_rows: Share

    def among(
        self, diagnoses: Sequence[str], procedures: Sequence[str], medications: Sequence[int]
    ) -> dict[str, Entries]:
        """The entries of these codes alone, as positions among them."""
        return {
            "diagnosis": self.entries["diagnosis"].among(diagnoses),
            "treatment": self.entries["treatment"].among(procedures),
            "medication": self.entries["medication"].among(medications),
        }

    def with_all_three(self, entries: dict[str, Entries]) -> Mask:
        """Rule 4: which stays have a diagnosis, a procedure and a medication left."""
        is_record = np.ones(len(self.stays.id), dtype=bool)
        for table in entries.values():
            is_record &= np.bincount(table.stay, minlength=len(self.stays.id)) > 0
        return is_record


def read_tables(raw: Path, options: PreparationOptions, *, hospital: int | None = None) -> Tables:
    """The tables of a directory.

    Args:
        hospital: whose own tables they must be.

    Raises:
        TemptError: a table is missing or unsound, or holds another hospital's stays.
    """
    paths = find_tables(raw)
    stays = _read_stays(paths["patient"])
    others = [number for number in stays.hospital_ids if hospital is not None and number != hospital]
    if others:
        found = ", ".join(map(str, others[:3])) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise TemptError(
            f"{paths['patient']}: holds stays of hospital {found}, expected hospital {hospital}'s own alone; export its"
            " own tables, or name another hospital"
        )
    trail = Trail(stays)
    medications, names, words = _read_medications(paths["medication"], trail, options)
    diagnoses, late_diagnoses = _read_diagnoses(paths["diagnosis"], trail, options)
    procedures, late_procedures, drug_rows = _read_procedures(paths["treatment"], trail, options, words)
    return Tables(
        stays=stays,
        trail=trail,
        entries={"diagnosis": diagnoses, "treatment": procedures, "medication": medications},
        names=names,
        words=words,
        late_rows={"diagnosis": late_diagnoses, "treatment": late_procedures},
        drug_rows=drug_rows,
    )


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


def _with_code(table: CsvTable, column: str, name: str, stay: Positions, code: Positions, trail: Trail) -> Mask:
    """Rule 1: the rows with a code; those with a word for a missing value in its place are counted word by word."""
    words = table.missing(column)
    left: Mask = (stay >= 0) & (code >= 0)
    for rows in words.values():
        left |= (stay >= 0) & rows
    trail.add(name, "with a code", stay[left])
    for word, rows in words.items():
        if (left & rows).any():
            left &= ~rows
            trail.add(name, f"code is not {word}", stay[left])
    return left


def _read_medications(
    path: Path, trail: Trail, options: PreparationOptions
) -> tuple[Entries, DrugNames, frozenset[str]]:
    cancelled = ["drugordercancelled"] if options.leave_out_cancelled_orders else []
    table = read_csv_table(path, [_STAY, "drughiclseqno", "drugname", *cancelled])
    stay = _known(table, "medication", trail)
    codes, code = table.integers("drughiclseqno")
    names, name = table.texts("drugname")
    words = drug_words(names[number] for number in np.unique(name[(stay >= 0) & (name >= 0)]))
    left = _with_code(table, "drughiclseqno", "medication", stay, code, trail)
    for column in cancelled:
        left &= ~_is_cancelled(table, column)
        trail.add("medication", "not cancelled", stay[left])
    stay, code, name = stay[left], code[left], name[left]
    entries = Entries(stay, code, np.ones(len(stay), dtype=bool), codes).distinct()
    trail.add("medication", "each code once a stay", entries.stay)
    return entries, DrugNames.of(codes, code, names, name, stay, trail.stays.hospital), words


def _is_cancelled(table: CsvTable, column: str) -> Mask:
    texts, position = table.texts(column)
    for number, text in enumerate(texts):
        if text not in ("Yes", "No"):
            row = int((position == number).argmax())
            raise table.error(row, column, f"found {shown(text)}, expected Yes or No; correct the row")
    is_cancelled: Mask = position == (texts.index("Yes") if "Yes" in texts else len(texts))
    return is_cancelled


def _read_diagnoses(path: Path, trail: Trail, options: PreparationOptions) -> tuple[Entries, Share]:
    entries, late = _read_inputs(path, "diagnosis", "icd9code", "diagnosisoffset", trail, options)
    entries = entries.distinct()
    trail.add("diagnosis", "each code once a stay", entries.stay)
    return entries, late


def _read_procedures(
    path: Path, trail: Trail, options: PreparationOptions, words: frozenset[str]
) -> tuple[Entries, Share, Share]:
    entries, late = _read_inputs(path, "treatment", "treatmentstring", "treatmentoffset", trail, options)
    named = np.array([names_a_drug(str(code), words) for code in entries.codes], dtype=bool)
    drug_rows = Share(int(named[entries.code].sum()), len(entries.code))
    if options.leave_out_drug_procedures:
        entries = entries.select(~named[entries.code])
        trail.add("treatment", "names no drug", entries.stay)
    entries = entries.distinct()
    trail.add("treatment", "each code once a stay", entries.stay)
    return entries, late, drug_rows


def _read_inputs(
    path: Path, name: str, code_column: str, offset_column: str, trail: Trail, options: PreparationOptions
) -> tuple[Entries, Share]:
    """Rules 0 and 1, and the observation window, for what may be an input; and the share of rows entered late."""
    table = read_csv_table(path, [_STAY, code_column, offset_column])
    stay = _known(table, name, trail)
    codes, code = table.texts(code_column)
    minutes, offset = table.integers(offset_column)
    table.required(offset_column, offset, "minutes after the admission to the unit")
    # Ascending: how many of the distinct offsets are within a number of hours is where the later ones begin.
    early = int(np.searchsorted(minutes, EARLY_HOURS * 60, side="right"))
    late = Share(int((offset[stay >= 0] >= early).sum()), int((stay >= 0).sum()))
    left = _with_code(table, code_column, name, stay, code, trail)
    if options.observation_window_hours is not None:
        left &= offset < np.searchsorted(minutes, options.observation_window_hours * 60, side="right")
        trail.add(name, f"within {options.observation_window_hours:g} hours", stay[left])
    return Entries(stay[left], code[left], offset[left] < early, codes), late
