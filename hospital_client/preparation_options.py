"""The options of `tempt prepare`; those that go beyond the paper are off by default."""

from __future__ import annotations

from pydantic import Field

from shared_model.vocabulary_rules import VocabularyRules


class PreparationOptions(VocabularyRules, frozen=True, extra="forbid"):
    """How raw tables become records; the defaults are the paper's (Section 4.1.1)."""

    split_by_patient: bool = Field(False, description="keep all records of a patient in one part; beyond the paper")
    observation_window_hours: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="diagnoses and procedures entered later are no input; beyond the paper",
    )
    leave_out_drug_procedures: bool = Field(
        False, description="leave out procedures that name a drug, which leak the label; beyond the paper"
    )
    leave_out_cancelled_orders: bool = Field(
        False, description="leave out medication orders that were cancelled; beyond the paper"
    )
