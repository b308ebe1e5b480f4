"""The report's numbers and lines for a consortium that can be counted by hand."""

from __future__ import annotations

from pathlib import Path

from hospital_client.preparation import prepare_in_memory
from hospital_client.preparation_options import PreparationOptions
from hospital_client.preparation_report import attrition_lines, report_lines, table_2_lines
from tests.hospital_client.raw_tables import write_tables


def test_table_2_stands_beside_the_paper(tmp_path: Path) -> None:
    _, report = prepare_in_memory(write_tables(tmp_path), PreparationOptions(min_records=1))
    assert table_2_lines(report) == [
        "Table 2                                            here                    paper",
        "records / hospitals                               4 / 2             102,363 / 80",
        "per hospital: mean / max / min             2.00 / 3 / 1   1,279.45 / 4,402 / 421",
        "vocabulary: diag./proc./med.                  2 / 3 / 2      1,161 / 1,000 / 300",
        "diagnoses a record: mean/max                   1.00 / 1                3.44 / 74",
        "procedures a record: mean/max                  1.00 / 1               7.21 / 133",
        "medications a record: mean/max                 1.00 / 1              22.31 / 103",
        # int(0.8 * 3) = 2 train, int(0.1 * 3) = 0 validate, 1 tests; of one record none trains
        "train / validation / test                     2 / 0 / 2 81,884 / 10,235 / 10,237",
    ]


def test_attrition_says_what_each_step_removes_and_leaves(tmp_path: Path) -> None:
    _, report = prepare_in_memory(write_tables(tmp_path), PreparationOptions(min_records=3))
    assert attrition_lines(report)[:14] == [
        "patient table                                 rows     stays  patients hospitals",
        "  in the table                                   5         5         4         2",
        "  stays with all three: removes                  1         1         1         0",
        "    leaves                                       4         4         3         2",
        "  hospitals of 3 records: removes                1         1         1         1",
        "    leaves                                       3         3         2         1",
        "diagnosis table                               rows     stays  patients hospitals",
        "  in the table                                   8         6         4         2",
        "  stays in patient: removes                      1         1         0         0",
        "    leaves                                       7         5         4         2",
        "  with a code: removes                           1         0         0         0",
        "    leaves                                       6         5         4         2",
        "  each code once a stay: removes                 1         0         0         0",
        "    leaves                                       5         5         4         2",
    ]
    content = report.content()["attrition"]
    assert content[2] == {
        "table": "patient",
        "step": "hospitals of 3 records",
        "left": {"rows": 3, "stays": 3, "patients": 2, "hospitals": 1},
        "removed": {"rows": 1, "stays": 1, "patients": 1, "hospitals": 1},
    }


def test_leak_audit_of_the_demo_is_near_the_known_figures(eicu_demo: Path) -> None:
    _, report = prepare_in_memory(eicu_demo, PreparationOptions(min_records=10))
    audit = report.leak_audit
    assert round(audit.late_rows["diagnosis"].share, 3) == 0.486
    assert round(audit.late_rows["treatment"].share, 3) == 0.482
    assert 0.34 < audit.drug_treatment_rows.share < 0.40  # about 37% by any reasonable rule
    assert [torn.seed for torn in audit.patients_across_splits] == [42, 43, 44, 45, 46]
    assert all(torn.patients.of == 137 and torn.patients.count > 0 for torn in audit.patients_across_splits)
    assert max(len(line) for line in report_lines(report)) <= 80
    content = report.content()["leak_audit"]
    treatment = content["late_rows"]["treatment"]
    assert treatment == {"count": 18438, "of": 38290, "share": 18438 / 38290}
