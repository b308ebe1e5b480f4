"""`tempt prepare`: raw eICU tables to a dataset directory, or to the same dataset in memory.

    dataset.json        format, options, Table 2, attrition, leak audit, digests of the sources, digest of the records
    vocabulary.json     the agreed codes
    hospitals/<id>/records.parquet
    README.md           what this is and who may read it

The directory gets its name only when it is whole; whatever is wrong with the raw tables is found before that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hospital_client.eicu import extract_agreed, extract_records
from hospital_client.one_agreement import Cut
from hospital_client.preparation_options import PreparationOptions
from hospital_client.preparation_report import Report, make_report
from hospital_client.raw_folder import find_tables
from shared_model.errors import TemptError
from shared_model.files import check_place, new_directory, private_directory, read_json, real, write_json, write_text
from shared_model.records import Dataset, write_records
from shared_model.vocabulary import Vocabulary, read_vocabulary, write_vocabulary

_MARK = "dataset.json"
_README = """\
# A dataset of TEMPT

Made by `tempt prepare` from raw eICU tables; `dataset.json` says from which, how, and what was counted.

    dataset.json                      options, Table 2, attrition, leak audit, digests
    vocabulary.json                   the codes: a position in a record's list is a position here
    hospitals/<id>/records.parquet    one record a row: a unit stay's diagnoses, procedures and medications

## Who may read it

These are records of patients, one by one. Only people who may read the raw tables may read this directory: for the
eICU Collaborative Research Database those who signed its data use agreement at PhysioNet, for a hospital's own tables
those whom the hospital allows. It was made readable for its owner alone (mode 0700). Don't share it, don't commit it,
don't put it where others can read it.
"""


def prepare(raw: Path, directory: Path, options: PreparationOptions, *, force: bool = False) -> Report:
    """Write the dataset directory of raw eICU tables, and return what was counted on the way.

    Args:
        force: replace an older dataset directory.

    Raises:
        TemptError: a raw table is missing or unsound, no hospital has enough records, or the directory is taken or
            can't be written to; nothing was changed then.
    """
    place = real(directory)
    check_place(place, mark=_MARK, force=force)
    if real(raw).is_relative_to(place):
        raise TemptError(f"{directory}: holds the raw tables {raw}; name another directory for the dataset")
    dataset, report = prepare_in_memory(raw, options)
    with new_directory(place, mark=_MARK, force=force) as beside:
        _write(beside, dataset, dataset.records.hospitals, report.content())
    return report


def prepare_agreed(
    raw: Path, hospital: int, vocabulary: Vocabulary, directory: Path, *, least: int, cut: Cut | None = None
) -> int:
    """Keep one hospital's records under an agreed vocabulary as a dataset directory, if they are not there already.

    Args:
        least: records below which nothing is kept, as their number would tell of few stays.
        cut: that the hospital told how many records remain under, if the vocabulary is of it.

    Returns:
        how many records they are; 0 where the hospital has no part in the agreement, and nothing is kept.

    Raises:
        TemptError: a raw table is missing, unsound or another hospital's, there are fewer records, or the directory
            can't be written to.
    """
    sources = source_digests(raw)
    limits = None if cut is None else cut.digest
    records = _kept(directory, vocabulary, sources, limits)
    if records is not None and records >= least:
        return records
    dataset = extract_agreed(raw, hospital, vocabulary, cut)
    if cut is not None and not len(dataset.records):
        return 0
    if len(dataset.records) < least:
        raise TemptError(
            f"{raw}: {len(dataset.records)} records under this vocabulary, fewer than the minimum of {least}"
        )
    options = {"split_by_patient": dataset.split_by_patient}
    about = {"format": 1, "options": options, "sources": sources, "digest": dataset.digest}
    about |= {"cut": limits, "records": len(dataset.records)}
    private_directory(directory.parent)
    with new_directory(directory, mark=_MARK, force=True) as beside:
        _write(beside, dataset, [hospital], about)
    return len(dataset.records)


def _kept(directory: Path, vocabulary: Vocabulary, sources: Mapping[str, str], cut: str | None) -> int | None:
    """How many records a directory holds that was made with this vocabulary and cut from these raw tables."""
    try:
        about, kept = read_json(directory / _MARK), read_vocabulary(directory / "vocabulary.json")
    except TemptError:
        return None
    if (about.get("sources"), about.get("cut"), kept) != (sources, cut, vocabulary):
        return None
    records = about.get("records")  # made by an earlier version, it does not say
    return records if isinstance(records, int) else None


def prepare_in_memory(raw: Path, options: PreparationOptions) -> tuple[Dataset, Report]:
    """The dataset that `prepare` would write, and its report.

    Raises:
        TemptError: a raw table is missing or unsound, or no hospital has enough records.
    """
    extraction = extract_records(raw, options)
    return extraction.dataset, make_report(extraction, options, source_digests(raw))


def source_digests(raw: Path) -> dict[str, str]:
    """The SHA-256 of each raw table, by file name.

    Raises:
        TemptError: a table is missing.
    """
    return {path.name: _sha256(path) for path in find_tables(raw).values()}


def _write(directory: Path, dataset: Dataset, hospitals: Sequence[int], about: Mapping[str, Any]) -> None:
    write_text(directory / "README.md", _README)
    write_vocabulary(directory / "vocabulary.json", dataset.vocabulary)
    (directory / "hospitals").mkdir(mode=0o700)
    for hospital in hospitals:
        folder = directory / "hospitals" / str(hospital)
        folder.mkdir(mode=0o700)
        write_records(folder / "records.parquet", dataset.records.of_hospital(hospital))
    write_json(directory / _MARK, about)
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(0o600)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
