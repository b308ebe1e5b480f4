"""Records of many hospitals as ragged code sets, their split by seed, and their parquet files.

A record (R_s of Section 2) is one stay: a set of diagnoses, one of procedures and one of medications, each as
ascending positions in the vocabulary. All records of a dataset lie in a few flat tensors, so that a batch is a gather.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shared_model.errors import TemptError
from shared_model.file_forms import AboutDataset, read_form
from shared_model.files import check_file, replacing
from shared_model.vocabulary import Vocabulary, read_vocabulary


@dataclass(frozen=True)
class CodeSets:
    """Sets of codes laid end to end: set i is `codes[offsets[i]:offsets[i + 1]]`.

    >>> sets = CodeSets.of([[3, 5], [], [1]])
    >>> sets.select(torch.tensor([2, 0])).lists()
    [[1], [3, 5]]
    """

    codes: Int[Tensor, " codes"]
    offsets: Int[Tensor, " records_plus_1"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Int[Tensor, " records"]:
        return self.offsets.diff()

    @staticmethod
    def of(sets: Sequence[Sequence[int]]) -> CodeSets:
        lengths = torch.tensor([len(codes) for codes in sets], dtype=torch.int64)
        flat = torch.tensor([code for codes in sets for code in codes], dtype=torch.int64)
        return CodeSets(flat, _offsets(lengths))

    def lists(self) -> list[list[int]]:
        bounds = self.offsets.tolist()
        return [self.codes[a:b].tolist() for a, b in pairwise(bounds)]

    def select(self, index: Int[Tensor, " selected"]) -> CodeSets:
        """The sets at `index`, in that order."""
        lengths = self.lengths[index]
        offsets = _offsets(lengths)
        total = int(offsets[-1])
        owner = torch.repeat_interleave(lengths, output_size=total)
        place = torch.arange(total, device=self.codes.device) - offsets[:-1][owner] + self.offsets[:-1][index][owner]
        return CodeSets(self.codes[place], offsets)

    def truncated(self, longest: int) -> CodeSets:
        """The sets cut to their `longest` codes that stand lowest in the vocabulary."""
        if len(self) == 0 or int(self.lengths.max()) <= longest:
            return self
        owner = torch.repeat_interleave(self.lengths)
        rank = torch.arange(len(self.codes), device=self.codes.device) - self.offsets[:-1][owner]
        return CodeSets(self.codes[rank < longest], _offsets(self.lengths.clamp(max=longest)))

    def multi_hot(self, width: int) -> Float[Tensor, "records width"]:
        """One row a set, 1 at its codes: the labels y of Equations 6 and 13."""
        labels = torch.zeros(len(self), width, device=self.codes.device)
        labels[torch.repeat_interleave(self.lengths, output_size=len(self.codes)), self.codes] = 1
        return labels

    def to(self, device: torch.device) -> CodeSets:
        return CodeSets(self.codes.to(device), self.offsets.to(device))


@dataclass(frozen=True)
class RecordSet:
    """Records in the order hospital, then stay."""

    hospital: Int[Tensor, " records"]
    stay: Int[Tensor, " records"]
    patient: Int[Tensor, " records"]
    diagnoses: CodeSets
    procedures: CodeSets
    medications: CodeSets

    def __len__(self) -> int:
        return len(self.hospital)

    @cached_property
    def hospitals(self) -> list[int]:
        """Every hospital's id, ascending."""
        return [int(h) for h in torch.unique(self.hospital)]

    def select(self, index: Int[Tensor, " selected"]) -> RecordSet:
        return RecordSet(
            self.hospital[index],
            self.stay[index],
            self.patient[index],
            self.diagnoses.select(index),
            self.procedures.select(index),
            self.medications.select(index),
        )

    def of_hospital(self, hospital: int) -> RecordSet:
        return self.select((self.hospital == hospital).nonzero()[:, 0])

    def to(self, device: torch.device) -> RecordSet:
        return RecordSet(
            self.hospital.to(device),
            self.stay.to(device),
            self.patient.to(device),
            self.diagnoses.to(device),
            self.procedures.to(device),
            self.medications.to(device),
        )


@dataclass(frozen=True)
class Split:
    """A dataset divided 8:1:1 in each hospital (Section 4.1.1)."""

    train: RecordSet
    validation: RecordSet
    test: RecordSet

    def of_hospital(self, hospital: int) -> Split:
        return Split(*(part.of_hospital(hospital) for part in (self.train, self.validation, self.test)))

    def to(self, device: torch.device) -> Split:
        return Split(*(part.to(device) for part in (self.train, self.validation, self.test)))


def split_records(records: RecordSet, seed: int, *, by_patient: bool = False) -> Split:
    """Divide each hospital's records by the SHA-256 of `seed:hospital:stay`: 80% train, 10% validate, the rest test.

    A hospital alone, the federation and the centralized run therefore split alike.

    Args:
        by_patient: beyond the paper, keep all of a patient's stays in a hospital in one part; the patient goes by the
            smallest of them, so that a hospital alone splits as the consortium does.
    """
    train, validation, test = (
        torch.tensor(part, dtype=torch.int64) for part in _split_indices(records, seed, by_patient)
    )
    return Split(records.select(train), records.select(validation), records.select(test))


def _split_indices(records: RecordSet, seed: int, by_patient: bool) -> tuple[list[int], list[int], list[int]]:
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    stays, patients = records.stay.tolist(), records.patient.tolist()
    for hospital in records.hospitals:
        index = (records.hospital == hospital).nonzero()[:, 0].tolist()
        first = {stays[i]: stays[i] for i in index}  # the stay that each stay goes by
        if by_patient:
            smallest: dict[int, int] = {}
            for i in index:
                smallest[patients[i]] = min(stays[i], smallest.get(patients[i], stays[i]))
            first = {stays[i]: smallest[patients[i]] for i in index}
        digests = {stay: _sha256(f"{seed}:{hospital}:{stay}") for stay in set(first.values())}
        index.sort(key=lambda i: (digests[first[stays[i]]], stays[i]))
        cuts = [int(0.8 * len(index)), int(0.8 * len(index)) + int(0.1 * len(index))]
        if by_patient:
            cuts = [_whole_patient(cut, [patients[i] for i in index]) for cut in cuts]
        for part, chosen in zip(parts, (index[: cuts[0]], index[cuts[0] : cuts[1]], index[cuts[1] :]), strict=True):
            part.extend(sorted(chosen))
    return parts


def _whole_patient(cut: int, patients: list[int]) -> int:
    """Move a cut forward to where the next patient begins."""
    while 0 < cut < len(patients) and patients[cut] == patients[cut - 1]:
        cut += 1
    return cut


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class Dataset:
    """A dataset directory in memory."""

    vocabulary: Vocabulary
    records: RecordSet
    split_by_patient: bool

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the vocabulary, every record and the way of splitting; file layout and options don't count."""
        return records_digest(self.vocabulary, self.records, split_by_patient=self.split_by_patient)

    def split(self, seed: int) -> Split:
        return split_records(self.records, seed, by_patient=self.split_by_patient)

    def of_hospitals(self, hospitals: Sequence[int]) -> Dataset:
        """The same vocabulary with the records of some hospitals only."""
        chosen = torch.isin(self.records.hospital, torch.tensor(hospitals, dtype=torch.int64))
        return Dataset(self.vocabulary, self.records.select(chosen.nonzero()[:, 0]), self.split_by_patient)


def records_digest(vocabulary: Vocabulary, records: RecordSet, *, split_by_patient: bool) -> str:
    """SHA-256 over the vocabulary, every record and the way of splitting."""
    digest = hashlib.sha256(vocabulary.digest.encode())
    digest.update(b"patient" if split_by_patient else b"stay")
    for sets in (records.diagnoses, records.procedures, records.medications):
        digest.update(sets.codes.to(torch.int64).numpy().tobytes())
        digest.update(sets.offsets.to(torch.int64).numpy().tobytes())
    for ids in (records.hospital, records.stay, records.patient):
        digest.update(ids.to(torch.int64).numpy().tobytes())
    return digest.hexdigest()


_LIST = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    [("patientunitstayid", pa.int64()), ("patient", pa.int32())]
    + [(modality, _LIST) for modality in ("diagnoses", "procedures", "medications")]
)


def write_records(path: Path, records: RecordSet) -> None:
    """Write one hospital's records to a parquet file, replacing an older one in one step."""
    columns = [
        pa.array(records.stay.numpy(), pa.int64()),
        pa.array(records.patient.numpy(), pa.int32()),
        *(
            pa.ListArray.from_arrays(sets.offsets.numpy().astype(np.int32), sets.codes.numpy().astype(np.int32))
            for sets in (records.diagnoses, records.procedures, records.medications)
        ),
    ]
    with replacing(path, durable=False) as beside:
        pq.write_table(pa.table(columns, schema=_SCHEMA), beside, compression="zstd")


def read_records(path: Path, hospital: int, vocabulary: Vocabulary) -> RecordSet:
    """One hospital's records from its parquet file.

    Raises:
        TemptError: the file is missing or damaged, or holds a position that the vocabulary lacks.
    """
    check_file(path)
    try:
        table = pq.read_table(path, schema=_SCHEMA)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TemptError(f"{path}: not a records file ({reason}); run `tempt prepare` again") from None
    sets = []
    for modality, size in (
        ("diagnoses", len(vocabulary.diagnoses)),
        ("procedures", len(vocabulary.procedures)),
        ("medications", len(vocabulary.medications)),
    ):
        column = table[modality].combine_chunks()
        if column.null_count or column.flatten().null_count:
            raise TemptError(f"{path}: {modality} lacks a value; run `tempt prepare` again")
        codes = column.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        lengths = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        if codes.size and (codes.min() < 0 or codes.max() >= size):
            wrong = codes[(codes < 0) | (codes >= size)][0]
            raise TemptError(
                f"{path}: {modality} holds position {wrong}, the vocabulary has {size}; run `tempt prepare` again"
            )
        sets.append(CodeSets(torch.from_numpy(codes), _offsets(torch.from_numpy(lengths))))
    if table["patientunitstayid"].null_count or table["patient"].null_count:
        raise TemptError(f"{path}: patientunitstayid or patient lacks a value; run `tempt prepare` again")
    stay = torch.from_numpy(table["patientunitstayid"].to_numpy().astype(np.int64))
    patient = torch.from_numpy(table["patient"].to_numpy().astype(np.int64))
    return RecordSet(torch.full_like(stay, hospital), stay, patient, *sets)


def about_dataset(directory: Path) -> dict[str, Any]:
    """What a dataset directory says of itself.

    Raises:
        TemptError: it says nothing, or in another form.
    """
    check_file(directory / "dataset.json", "expected a dataset directory, name one that `tempt prepare` made")
    return read_form(directory / "dataset.json", AboutDataset, "run `tempt prepare` again")


def read_dataset(directory: Path) -> Dataset:
    """A dataset directory, as `tempt prepare` writes it.

    Raises:
        TemptError: it is not a dataset directory, or a file in it is missing or damaged.
    """
    about = about_dataset(directory)
    vocabulary = read_vocabulary(directory / "vocabulary.json")
    files = [path for path in (directory / "hospitals").glob("*/records.parquet") if path.parent.name.isdecimal()]
    folders = sorted(files, key=lambda path: int(path.parent.name))
    if not folders:
        raise TemptError(f"{directory}: has no hospitals/<id>/records.parquet; run `tempt prepare` again")
    records = concatenate([read_records(path, int(path.parent.name), vocabulary) for path in folders])
    dataset = Dataset(vocabulary, records, bool(about.get("options", {}).get("split_by_patient", False)))
    if about.get("digest") != dataset.digest:
        raise TemptError(f"{directory}: its records are not those that dataset.json names; run `tempt prepare` again")
    return dataset


def concatenate(parts: Sequence[RecordSet]) -> RecordSet:
    """Record sets laid end to end."""
    return RecordSet(
        torch.cat([part.hospital for part in parts]),
        torch.cat([part.stay for part in parts]),
        torch.cat([part.patient for part in parts]),
        _concatenate_sets([part.diagnoses for part in parts]),
        _concatenate_sets([part.procedures for part in parts]),
        _concatenate_sets([part.medications for part in parts]),
    )


def _concatenate_sets(parts: Sequence[CodeSets]) -> CodeSets:
    return CodeSets(torch.cat([part.codes for part in parts]), _offsets(torch.cat([part.lengths for part in parts])))


def _offsets(lengths: Int[Tensor, " records"]) -> Int[Tensor, " records_plus_1"]:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
