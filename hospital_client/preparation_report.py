"""What `tempt prepare` counted, as numbers for dataset.json and as lines for the terminal.

Three tables: Table 2 of the paper with its figures beside ours, the attrition (what each step removes and leaves), and
the leak audit of `leak_audit.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from hospital_client.attrition import AttritionStep
from hospital_client.eicu import Extraction
from hospital_client.leak_audit import (
    DRUG_RULE,
    SEEDS,
    LeakAudit,
    Share,
    leak_audit_lines,
    patients_across_splits,
    without_codes,
)
from hospital_client.preparation_options import PreparationOptions
from shared_model.records import Dataset

Table2 = dict[str, dict[str, float]]

PAPER_TABLE_2: Table2 = {
    "consortium": {"records": 102_363, "hospitals": 80},
    "records_per_hospital": {"mean": 1_279.45, "max": 4_402, "min": 421},
    "vocabulary": {"diagnoses": 1_161, "procedures": 1_000, "medications": 300},
    "diagnoses_per_record": {"mean": 3.44, "max": 74},
    "procedures_per_record": {"mean": 7.21, "max": 133},
    "medications_per_record": {"mean": 22.31, "max": 103},
    "split": {"train": 81_884, "validation": 10_235, "test": 10_237},
}
_COUNTED = ("rows", "stays", "patients", "hospitals")


@dataclass(frozen=True)
class Report:
    """Everything that dataset.json says about a dataset.

    Attributes:
        table_2: Table 2's rows, keyed as `PAPER_TABLE_2`.
        attrition: table by table, what each step leaves.
        sources: SHA-256 of each raw file.
        digest: of the vocabulary and records, as `shared_model.records.records_digest` has it.
    """

    options: PreparationOptions
    table_2: Table2
    attrition: tuple[AttritionStep, ...]
    leak_audit: LeakAudit
    sources: dict[str, str]
    digest: str

    def content(self) -> dict[str, Any]:
        """The content of dataset.json."""
        return {
            "format": 1,
            "options": self.options.model_dump(),
            "table_2": self.table_2,
            "attrition": [
                {"table": step.table, "step": step.step, "left": _counts(step), "removed": removed}
                for step, removed in _with_removed(self.attrition)
            ],
            "leak_audit": _audit_content(self.leak_audit),
            "sources": self.sources,
            "digest": self.digest,
        }


def hospitals_left_out(report: Report) -> int:
    """How many hospitals had records, but too few."""
    before, after = report.attrition[-2:]
    return before.hospitals - after.hospitals


def left_out_note(report: Report) -> str | None:
    """What to say where hospitals have too few records; None where all are kept."""
    left_out = hospitals_left_out(report)
    if not left_out:
        return None
    have, it = ("hospitals have", "them") if left_out > 1 else ("hospital has", "it")
    were = "were" if left_out > 1 else "was"
    return (
        f"note: {left_out} {have} fewer than {report.options.min_records} records and {were} left out; "
        f"a smaller --min-records keeps {it}"
    )


def make_report(extraction: Extraction, options: PreparationOptions, sources: dict[str, str]) -> Report:
    """The report on records that were just extracted."""
    dataset = extraction.dataset
    audit = LeakAudit(
        patients_across_splits=patients_across_splits(dataset),
        late_rows=extraction.late_rows,
        late_codes=extraction.late_codes,
        drug_rule=DRUG_RULE,
        drug_procedures=extraction.drug_procedures,
        drug_treatment_rows=extraction.drug_treatment_rows,
        drug_procedure_codes=extraction.drug_procedure_codes,
    )
    return Report(options, _table_2(dataset), extraction.attrition, audit, sources, dataset.digest)


def report_lines(report: Report) -> list[str]:
    """The whole report for the terminal, at most 80 columns wide."""
    return [*table_2_lines(report), "", *attrition_lines(report), "", *leak_audit_lines(report.leak_audit)]


def table_2_lines(report: Report) -> list[str]:
    """Table 2's rows with the paper's figures beside ours, at most 80 columns wide."""
    lines = [f"{'Table 2':<30}{'here':>25}{'paper':>25}"]
    for key, name, parts in (
        ("consortium", "records / hospitals", "records hospitals"),
        ("records_per_hospital", "per hospital: mean / max / min", "mean max min"),
        ("vocabulary", "vocabulary: diag./proc./med.", "diagnoses procedures medications"),
        ("diagnoses_per_record", "diagnoses a record: mean/max", "mean max"),
        ("procedures_per_record", "procedures a record: mean/max", "mean max"),
        ("medications_per_record", "medications a record: mean/max", "mean max"),
        ("split", "train / validation / test", "train validation test"),
    ):
        here, paper = (
            " / ".join(f"{table[key][part]:,.{2 if part == 'mean' else 0}f}" for part in parts.split())
            for table in (report.table_2, PAPER_TABLE_2)
        )
        lines.append(f"{name:<30}{here:>25}{paper:>25}")
    return lines


def attrition_lines(report: Report) -> list[str]:
    """What each step removes and leaves of each table, at most 80 columns wide."""
    lines: list[str] = []
    before = ""
    for step, removed in _with_removed(report.attrition):
        if step.table != before:
            lines.append(_attrition_line(f"{step.table} table", _COUNTED))
            lines.append(_attrition_line(f"  {step.step}", [f"{count:,}" for count in _counts(step).values()]))
        elif any(removed.values()):
            lines.append(_attrition_line(f"  {step.step}: removes", [f"{count:,}" for count in removed.values()]))
            lines.append(_attrition_line("    leaves", [f"{count:,}" for count in _counts(step).values()]))
        else:
            lines.append(f"  {step.step}: removes none")
        before = step.table
    return lines


def _attrition_line(label: str, cells: Iterable[str]) -> str:
    return f"{label:<40}" + "".join(f"{cell:>10}" for cell in cells)


def _table_2(dataset: Dataset) -> Table2:
    records, vocabulary = dataset.records, dataset.vocabulary
    per_hospital = records.hospital.unique(return_counts=True)[1]
    split = without_codes(dataset).split(SEEDS[0])
    return {
        "consortium": {"records": len(records), "hospitals": len(records.hospitals)},
        "records_per_hospital": {**_mean_and_max(per_hospital), "min": int(per_hospital.min())},
        "vocabulary": {
            "diagnoses": len(vocabulary.diagnoses),
            "procedures": len(vocabulary.procedures),
            "medications": len(vocabulary.medications),
        },
        "diagnoses_per_record": _mean_and_max(records.diagnoses.lengths),
        "procedures_per_record": _mean_and_max(records.procedures.lengths),
        "medications_per_record": _mean_and_max(records.medications.lengths),
        "split": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
    }


def _mean_and_max(counts: Tensor) -> dict[str, float]:
    return {"mean": float(counts.double().mean()), "max": int(counts.max())}


def _counts(step: AttritionStep) -> dict[str, int]:
    return {counted: getattr(step, counted) for counted in _COUNTED}


def _with_removed(steps: tuple[AttritionStep, ...]) -> list[tuple[AttritionStep, dict[str, int]]]:
    """Each step with what it removed from the step before of the same table."""
    found = []
    before: dict[str, dict[str, int]] = {}
    for step in steps:
        left = _counts(step)
        old = before.get(step.table, left)
        found.append((step, {counted: old[counted] - left[counted] for counted in _COUNTED}))
        before[step.table] = left
    return found


def _audit_content(audit: LeakAudit) -> dict[str, Any]:
    def with_share(value: Any) -> Any:
        if isinstance(value, Mapping):
            if set(value) == {"count", "of"}:
                return {**value, "share": Share(**value).share}
            return {key: with_share(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [with_share(inner) for inner in value]
        return value

    shared: dict[str, Any] = with_share(asdict(audit))
    return shared
