"""What of the answer may already stand in the question: three leaks that the paper's preparation leaves open.

A patient's stays can fall into different parts of a split; a diagnosis or procedure can be entered long after the
medications were chosen; a procedure can name the drug that is to be recommended. None of it changes a record unless an
option of `PreparationOptions` says so: the audit only counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shared_model.records import CodeSets, Dataset, RecordSet

SEEDS = (42, 43, 44, 45, 46)  # Section 4.1.3
EARLY_HOURS = 24

DRUG_RULE = (
    "a procedure names a drug if one of the last two parts of its path has a word that leads a drug name of the"
    " medication table: its first word of five letters or more that is no form or way of giving and stands for"
    " no drug by itself"
)
_SHORTEST_DRUG_WORD = 5
_WORD = re.compile(r"[a-z]+")
# Words that lead drug names ("BAG : ...", "CALCIUM ...") or paths ("glucose metabolism") without naming a drug alone.
_NO_DRUG = frozenset(
    """
    adult ampoule bolus bottle calcium capsule cartridge catheter channel continuous cream crtrdg drops enema feeding
    flush fluid fluids fresh frozen glucose infusion inhaler injection intravenous lotion nasal nebulizer needle normal
    nutrition ointment parenteral patch pediatric piggyback plasma powder premix preservative regular solution
    solutions spray standard sterile supplement suppository suspension syringe syrup tablet tablets therapy topical
    vaccine vials water weight
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Share:
    """A count and what it is counted out of."""

    count: int
    of: int

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else 0.0


@dataclass(frozen=True)
class PatientsAcrossSplits:
    """One seed's patients whose records fall into different parts, among those with more than one record."""

    seed: int
    patients: Share
    test_records: Share  # test records whose patient has a training record


@dataclass(frozen=True)
class LeakAudit:
    """The three leaks in numbers.

    Attributes:
        late_rows: rows entered after the first 24 hours, of the rows of known stays: diagnosis and treatment.
        late_codes: the records' codes never entered within the first 24 hours, of the records' codes.
        drug_procedures: procedures of the vocabulary that name a drug (`drug_rule`).
        drug_treatment_rows: rows of the treatment table with such a procedure, of rows with a procedure.
        drug_procedure_codes: the records' procedures that name a drug, of the records' procedures.
    """

    patients_across_splits: tuple[PatientsAcrossSplits, ...]
    late_rows: dict[str, Share]
    late_codes: dict[str, Share]
    drug_rule: str
    drug_procedures: Share
    drug_treatment_rows: Share
    drug_procedure_codes: Share


def drug_words(names: Iterable[str]) -> frozenset[str]:
    """The words that name drugs, one or none a drug name.

    >>> sorted(drug_words(["WARFARIN SODIUM 5 MG PO TABS", "5 ML VIAL : DILTIAZEM HCL 25 MG/5ML IV SOLN"]))
    ['diltiazem', 'warfarin']
    """
    words = set()
    for name in names:
        for word in _WORD.findall(name.lower()):
            if len(word) >= _SHORTEST_DRUG_WORD and word not in _NO_DRUG:
                words.add(word)
                break
    return frozenset(words)


def names_a_drug(procedure: str, words: frozenset[str]) -> bool:
    """Whether a treatment path names a drug, by `DRUG_RULE`.

    >>> names_a_drug("cardiovascular|low molecular weight heparin|enoxaparin", frozenset({"enoxaparin"}))
    True
    """
    return any(not words.isdisjoint(_WORD.findall(part.lower())) for part in procedure.split("|")[-2:])


def patients_across_splits(dataset: Dataset, seeds: Sequence[int] = SEEDS) -> tuple[PatientsAcrossSplits, ...]:
    """How many patients each seed's split tears apart."""
    patients = dataset.records.patient.numpy()
    repeated = int((np.unique(patients, return_counts=True)[1] > 1).sum())
    bare = without_codes(dataset)
    found = []
    for seed in seeds:
        split = bare.split(seed)
        parts = [np.unique(_patients(part)) for part in (split.train, split.validation, split.test)]
        torn = int((np.unique(np.concatenate(parts), return_counts=True)[1] > 1).sum())
        known = int(torch.isin(split.test.patient, split.train.patient).sum())
        found.append(PatientsAcrossSplits(seed, Share(torn, repeated), Share(known, len(split.test))))
    return tuple(found)


def without_codes(dataset: Dataset) -> Dataset:
    """The same records with empty sets: a split does not look at codes, and copying them is most of its work."""
    records = dataset.records
    empty = CodeSets.of([[]] * len(records))
    bare = RecordSet(records.hospital, records.stay, records.patient, empty, empty, empty)
    return Dataset(dataset.vocabulary, bare, dataset.split_by_patient)


def _patients(records: RecordSet) -> np.ndarray:
    return records.patient.numpy()


def leak_audit_lines(audit: LeakAudit) -> list[str]:
    """The audit for the terminal, at most 80 columns wide."""
    lines = [f"{'leak audit':<50}{'count':>10}{'of':>10}{'share':>9}"]
    for found in audit.patients_across_splits:
        lines.append(_line(f"seed {found.seed}: patients torn apart, of repeated", found.patients))
        lines.append(_line(f"seed {found.seed}: test records, patient in training", found.test_records))
    for table, share in audit.late_rows.items():
        lines.append(_line(f"{table} rows entered after {EARLY_HOURS} hours", share))
    for modality, share in audit.late_codes.items():
        lines.append(_line(f"the records' {modality} entered after {EARLY_HOURS} hours", share))
    lines.append(_line("procedures that name a drug", audit.drug_procedures))
    lines.append(_line("treatment rows that name a drug", audit.drug_treatment_rows))
    lines.append(_line("the records' procedures that name a drug", audit.drug_procedure_codes))
    return lines


def _line(what: str, share: Share) -> str:
    return f"{what:<50}{share.count:>10,}{share.of:>10,}{share.share:>9.1%}"
