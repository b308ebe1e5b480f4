"""The trail of a preparation: what each step leaves of each raw table, in rows, stays, patients and hospitals."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hospital_client.csv_blocks import Positions


@dataclass(frozen=True)
class AttritionStep:
    """What a step of the preparation leaves of a table: its rows and the stays, patients and hospitals they cover."""

    table: str
    step: str
    rows: int
    stays: int
    patients: int
    hospitals: int


@dataclass(frozen=True)
class Stays:
    """The patient table: every stay, ascending, with its hospital and patient."""

    id: list[int]
    hospital: Positions  # in hospital_ids
    hospital_ids: list[int]
    patient: Positions  # in the patients' identifiers, ascending


@dataclass
class Trail:
    """What each step left, as the tables go by."""

    stays: Stays
    steps: list[AttritionStep] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.add("patient", "in the table", np.arange(len(self.stays.id)))

    def add(self, table: str, step: str, stay: Positions, unknown_stays: int = 0) -> None:
        """Note a step that leaves these rows, given as positions of their stays (-1: a stay that `patient` lacks)."""
        there = np.flatnonzero(np.bincount(stay[stay >= 0], minlength=len(self.stays.id)))
        self.steps.append(
            AttritionStep(
                table=table,
                step=step,
                rows=len(stay),
                stays=len(there) + unknown_stays,
                patients=len(np.unique(self.stays.patient[there])),
                hospitals=len(np.unique(self.stays.hospital[there])),
            )
        )
