"""A hospital's own partition: its records, and nothing of any other hospital's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shared_model.batching import TokenRows
from shared_model.errors import TemptError
from shared_model.records import RecordSet, Split, about_dataset, read_records, split_records
from shared_model.vocabulary import Vocabulary, read_vocabulary


@dataclass(frozen=True)
class Partition:
    """One hospital's records with the vocabulary that they are written in."""

    hospital: int
    vocabulary: Vocabulary
    records: RecordSet
    split_by_patient: bool

    @property
    def rows(self) -> TokenRows:
        return TokenRows(len(self.vocabulary.diagnoses), len(self.vocabulary.procedures))

    def split(self, seed: int) -> Split:
        """The same parts that the hospital has in the centralized run."""
        return split_records(self.records, seed, by_patient=self.split_by_patient)


def records_file(directory: Path, hospital: int) -> Path:
    """Where a dataset directory keeps a hospital's records."""
    return directory / "hospitals" / str(hospital) / "records.parquet"


def read_partition(directory: Path, hospital: int) -> Partition:
    """One hospital of a dataset directory; no other hospital's file is opened.

    Raises:
        TemptError: the directory has no such hospital, or a file of it is missing or damaged.
    """
    about = about_dataset(directory)
    path = records_file(directory, hospital)
    if not path.is_file():
        raise TemptError(f"{directory}: has no hospital {hospital}; name one whose folder is in {path.parent.parent}")
    vocabulary = read_vocabulary(directory / "vocabulary.json")
    by_patient = bool(about.get("options", {}).get("split_by_patient", False))
    return Partition(hospital, vocabulary, read_records(path, hospital, vocabulary), by_patient)
