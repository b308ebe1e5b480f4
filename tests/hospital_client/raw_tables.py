"""Small raw eICU tables for tests, written in whichever form a test wants."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

COLUMNS = {
    "patient": ("patientunitstayid", "hospitalid", "uniquepid"),
    "diagnosis": ("patientunitstayid", "icd9code", "diagnosisoffset"),
    "treatment": ("patientunitstayid", "treatmentstring", "treatmentoffset"),
    "medication": ("patientunitstayid", "drughiclseqno", "drugname", "drugordercancelled"),
}
Rows = Sequence[Sequence[object]]
Tables = Mapping[str, Rows]

# Two hospitals: 11 has the stays 1, 2 and 3 (1 and 3 are one patient's), 12 has the stays 4 and 5; 5 has no procedure.
# Stay 9 is in no hospital. Medications 30 and 40; 40 never has a name.
CONSORTIUM: dict[str, list[tuple[object, ...]]] = {
    "patient": [(1, 11, "B"), (2, 11, "A"), (3, 11, "B"), (4, 12, "C"), (5, 12, "D")],
    "diagnosis": [
        (1, "401.9, I10", 5),
        (1, "401.9, I10", 2000),
        (2, " 038.9 ", 1441),
        (3, "401.9, I10", 1440),
        (3, "", 7),
        (4, "038.9", -3),
        (5, "250.0", 0),
        (9, "999.9", 0),
    ],
    "treatment": [
        (1, "pulmonary|ventilation|mechanical", 0),
        (2, "cardiovascular|beta blocker|metoprolol", 10),
        (3, "cardiovascular|beta blocker|metoprolol (Lopressor)", 9000),
        (4, "pulmonary|ventilation|mechanical", 3),
    ],
    "medication": [
        (1, "30", "METOPROLOL 25 MG PO TABS", "No"),
        (1, "30.0", "METOPROLOL 25 MG PO TABS", "No"),
        (2, " 30", "LOPRESSOR", "Yes"),
        (3, "40", "", "No"),
        (4, "30", "LOPRESSOR", "No"),
        (4, "", "ASPIRIN", "No"),
        (5, "40", " ", "No"),
    ],
}


def write_tables(
    raw: Path,
    tables: Tables = CONSORTIUM,
    *,
    compressed: bool = False,
    turned: bool = False,
    extra: bool = False,
    line_end: str = "\n",
    byte_order_mark: bool = False,
) -> Path:
    """Write a directory of raw tables.

    Args:
        turned: the columns in the opposite order.
        extra: more columns than are needed, two of them of one name.
    """
    raw.mkdir(parents=True, exist_ok=True)
    for table, rows in tables.items():
        lines: Iterable[list[object]] = [list(COLUMNS[table]), *(list(row) for row in rows)]
        if extra:
            lines = [
                [*line, "note" if number == 0 else 'a "note", \n of two lines', "note"]
                for number, line in enumerate(lines)
            ]
        if turned:
            lines = [line[::-1] for line in lines]
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator=line_end).writerows(lines)
        content = ("\ufeff" if byte_order_mark else "").encode() + text.getvalue().encode()
        if compressed:
            (raw / f"{table}.csv.gz").write_bytes(gzip.compress(content))
        else:
            (raw / f"{table}.csv").write_bytes(content)
    return raw
