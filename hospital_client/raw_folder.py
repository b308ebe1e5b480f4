"""The four raw eICU tables of a folder, and what a folder without them holds instead."""

from __future__ import annotations

from pathlib import Path

from hospital_client.csv_header import shown
from shared_model.errors import TemptError

TABLES = ("patient", "diagnosis", "treatment", "medication")
_EXPECTED = f"the raw eICU tables {', '.join(TABLES)}"

# Files and folders, in lower case and without what follows the first dot, that say whose tables a folder holds.
_OTHER_KINDS = {
    "a dataset that `tempt prepare` made": {"dataset", "vocabulary", "hospitals"},
    "tables of OMOP": {"person", "visit_occurrence", "condition_occurrence", "drug_exposure"},
    "tables of MIMIC": {"patients", "admissions", "diagnoses_icd", "prescriptions"},
}


def find_tables(raw: Path) -> dict[str, Path]:
    """The file of each raw table; names may be in upper case.

    Raises:
        TemptError: the directory or a table is missing, or a table is there twice, such as plain and compressed.
    """
    if not raw.exists():
        raise TemptError(f"{raw}: no such directory; expected one with {_EXPECTED}")
    if not raw.is_dir():
        raise TemptError(f"{raw}: is a file; expected a directory with {_EXPECTED}")
    files = sorted(path for path in raw.iterdir() if path.is_file())
    found = {}
    for table in TABLES:
        there = [path for path in files if path.name.lower() in (f"{table}.csv", f"{table}.csv.gz")]
        if not there:
            raise _without(raw, table)
        if len(there) > 1:
            both = " and ".join(path.name for path in there[:2])
            raise TemptError(f"{raw}: has both {both}; expected one of them; move one away")
        found[table] = there[0]
    return found


def _without(raw: Path, table: str) -> TemptError:
    expected = f"expected {table}.csv or {table}.csv.gz"
    files = sorted(path for path in raw.iterdir() if path.is_file() and not path.name.startswith("."))
    if alike := [path for path in files if path.name.lower().split(".")[0] == table]:
        return TemptError(f"{raw}: has {shown(alike[0].name)}, {expected}; export the table as CSV under this name")
    if kind := _other_kind(raw):
        return TemptError(f"{raw}: holds {kind}, expected {_EXPECTED}; name a directory with those")
    for folder in sorted(path for path in raw.iterdir() if path.is_dir()):
        if any(path.name.lower() in (f"{table}.csv", f"{table}.csv.gz") for path in folder.glob("*")):
            return TemptError(f"{raw}: has no table {table}, but its folder {shown(folder.name)} has; name that folder")
    return TemptError(f"{raw}: has no table {table}; {expected}; add the file")


def _other_kind(raw: Path) -> str | None:
    """What a folder holds that has a table missing, by the names of what is there; None for nothing that is known."""
    names = {path.name.lower().split(".")[0] for path in raw.iterdir()}
    if (raw / "metadata" / "codes.parquet").exists() or (raw / "metadata" / "dataset.json").exists():
        return "a dataset in the form of MEDS"
    for kind, known in _OTHER_KINDS.items():
        if len(known & names) > 1:
            return kind
    parquet = next((path.name for pattern in ("*.parquet", "*/*.parquet") for path in sorted(raw.glob(pattern))), None)
    return f"Parquet files, such as {shown(parquet)}" if parquet else None
