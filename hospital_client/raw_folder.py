"""The four raw eICU tables of a folder, and what is there instead where they are not."""

from __future__ import annotations

import errno
import os
import stat
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
        TemptError: the directory or a table is missing, something else, or may not be read, or a table is there twice,
            such as plain and compressed.
    """
    if not os.path.lexists(raw):
        raise TemptError(f"{raw}: no such directory; expected one with {_EXPECTED}")
    if not os.path.isdir(raw):
        raise TemptError(f"{raw}: {_what(raw)}; expected a directory with {_EXPECTED}")
    _check_access(raw, "folder")
    names = sorted(raw.iterdir())
    found = {}
    for table in TABLES:
        named = [path for path in names if path.name.lower() in (f"{table}.csv", f"{table}.csv.gz")]
        there = [path for path in named if os.path.isfile(path)]
        if len(there) > 1:
            both = " and ".join(path.name for path in there[:2])
            raise TemptError(f"{raw}: has both {both}; expected one of them; move one away")
        if named and not there:
            raise _no_file(named[0])
        if not there:
            raise _without(raw, table)
        _check_access(there[0], "table")
        found[table] = there[0]
    return found


def _check_access(path: Path, kind: str) -> None:
    if not os.access(path, os.R_OK):
        raise TemptError(f"{path}: this user may not read it; expected a readable {kind}; change its mode or its owner")


def _no_file(path: Path) -> TemptError:
    """The error for what has a table's name and is no file."""
    what = _what(path)
    do = "fetch the table with `git annex get`" if "git-annex" in what else "put the table in its place"
    return TemptError(f"{path}: {what}; expected a file; {do}")


def _what(path: Path) -> str:
    """What is there in the place of something else."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        target = os.readlink(path) if os.path.islink(path) else ""
        if error.errno == errno.ELOOP:
            return "is a link that leads back to itself"
        if not target or error.errno != errno.ENOENT:
            return f"can't be looked at ({error.strerror})"
        if ".git/annex/" in target:
            return "is a git-annex link to what is not there"
        return f"is a link to {shown(target)}, which is not there"
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
    return f"is a {kinds.get(stat.S_IFMT(mode), 'device')}"


def _without(raw: Path, table: str) -> TemptError:
    expected = f"expected {table}.csv or {table}.csv.gz"
    files = sorted(path for path in raw.iterdir() if os.path.isfile(path) and not path.name.startswith("."))
    if alike := [path for path in files if path.name.lower().split(".")[0] == table]:
        return TemptError(f"{raw}: has {shown(alike[0].name)}, {expected}; export the table as CSV under this name")
    if kind := _other_kind(raw):
        return TemptError(f"{raw}: holds {kind}, expected {_EXPECTED}; name a directory with those")
    for folder in sorted(path for path in raw.iterdir() if os.path.isdir(path)):
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
