"""A tiny consortium, in memory and as a dataset directory, settings with which a fit takes a blink, and its command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared_model.files import write_json
from shared_model.records import CodeSets, Dataset, RecordSet, write_records
from shared_model.settings import Settings, resolve
from shared_model.vocabulary import Vocabulary, write_vocabulary

ROOT = Path(__file__).resolve().parents[2]
# Of 5 records 4 are for training and none for validation.
SIZES = {3: 43, 8: 29, 21: 17, 34: 5}
WITHOUT_VALIDATION = 34
DIAGNOSES, PROCEDURES, MEDICATIONS = 23, 19, 13
VOCABULARY = Vocabulary(
    diagnoses=tuple(f"{100 + i}.9, X{10 + i}" for i in range(DIAGNOSES)),
    procedures=tuple(f"area|group|treatment {i:02}" for i in range(PROCEDURES)),
    medications=tuple(900_001 + i for i in range(MEDICATIONS)),
    medication_names=tuple(f"DRUG {i} 5 MG" for i in range(MEDICATIONS)),
)
ASSIGNMENTS = {
    "encoder.c": "6",
    "encoder.layers": "2",
    "pretraining.epochs": "2",
    "pretraining.least_steps": "0",
    "pretraining.batch_size": "16",
    "tuning.epochs": "4",
    "tuning.least_steps": "0",
    "tuning.batch_size": "8",
    "training.epochs": "3",
    "training.least_steps": "0",
    "training.batch_size": "16",
}


def settings(**more: str) -> Settings:
    """The tiny settings, with `tuning__epochs="5"` for tuning.epochs=5."""
    return resolve("paper", ASSIGNMENTS | {name.replace("__", "."): value for name, value in more.items()})


def assigned(more: Mapping[str, str] | None = None) -> list[str]:
    """The same as `--set` arguments."""
    return [part for name, value in (ASSIGNMENTS | dict(more or {})).items() for part in ("--set", f"{name}={value}")]


def make_records(sizes: Mapping[int, int] = SIZES, seed: int = 7) -> RecordSet:
    """Records in which what a stay is treated for can be told from its codes, each hospital in its own way."""
    draw = np.random.default_rng(seed)
    hospital, sets = [], ([], [], [])  # type: ignore[var-annotated]
    for number, count in sizes.items():
        for _ in range(count):
            kind = int(draw.integers(3))
            hospital.append(number)
            for of, width in zip(sets, (DIAGNOSES, PROCEDURES, MEDICATIONS), strict=True):
                own = (kind * 5 + (number if of is sets[2] else 0) + draw.integers(0, 5, draw.integers(1, 5))) % width
                of.append(sorted(set(own.tolist())))
    return RecordSet(
        hospital=torch.tensor(hospital),
        stay=torch.arange(len(hospital)) * 3 + 1000,
        patient=torch.arange(len(hospital)) // 2,
        diagnoses=CodeSets.of(sets[0]),
        procedures=CodeSets.of(sets[1]),
        medications=CodeSets.of(sets[2]),
    )


def make_dataset(records: RecordSet | None = None) -> Dataset:
    return Dataset(VOCABULARY, make_records() if records is None else records, split_by_patient=False)


def write_dataset(directory: Path, dataset: Dataset) -> Path:
    """A dataset directory, as far as a simulation reads it."""
    for hospital in dataset.records.hospitals:
        folder = directory / "hospitals" / str(hospital)
        folder.mkdir(parents=True)
        write_records(folder / "records.parquet", dataset.records.of_hospital(hospital))
    write_vocabulary(directory / "vocabulary.json", dataset.vocabulary)
    about = {"format": 1, "options": {"split_by_patient": dataset.split_by_patient}, "sources": {}}
    write_json(directory / "dataset.json", about | {"digest": dataset.digest})
    return directory


def poisoned(dataset: Dataset, seed: int) -> Dataset:
    """The same dataset, but validation and test records have other codes and other medications."""
    train = set(dataset.split(seed).train.stay.tolist())
    records = dataset.records

    def other(sets: CodeSets, width: int) -> CodeSets:
        changed = [
            of if stay in train else sorted(set(range(width)) - set(of))
            for stay, of in zip(records.stay.tolist(), sets.lists(), strict=True)
        ]
        return CodeSets.of(changed)

    return Dataset(
        dataset.vocabulary,
        RecordSet(
            records.hospital,
            records.stay,
            records.patient,
            other(records.diagnoses, DIAGNOSES),
            other(records.procedures, PROCEDURES),
            other(records.medications, MEDICATIONS),
        ),
        dataset.split_by_patient,
    )


def fingerprint(run: Path) -> dict[str, Any]:
    """What "the same bits" covers: tensors, scores, results and history but for seconds, command and versions."""
    content: dict[str, Any] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock"):
        name = str(path.relative_to(run))
        if path.suffix in (".safetensors", ".parquet"):
            content[name] = path.read_bytes()
        elif path.suffix == ".json":
            content[name] = _timeless(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            content[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        else:
            content[name] = None
    return content


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Two fingerprints are equal; what differs is named, not printed."""
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []


def tree(directory: Path) -> dict[str, bytes | None]:
    """Everything below a directory but locks, to tell whether something changed."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
        if path.name != ".lock"
    }


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "sim.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), timeout=300)


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {k: _timeless(v) for k, v in content.items() if k not in ("seconds", "command", "versions")}
    return [_timeless(of) for of in content] if isinstance(content, list) else content
