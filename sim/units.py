"""One fit of a run, its files, and what it leaves: the pretraining of a seed, or a method of a seed (and a hospital).

A unit's result is two files: tensors (`.safetensors`), then what was measured (`.json`), which says that it is done.
While it runs, a long unit keeps its state in `.partial.safetensors`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from shared_model import checkpoint
from shared_model.batching import TokenRows
from shared_model.encoder import MedicalEncoder
from shared_model.errors import TemptError
from shared_model.files import read_json, replacing, write_json
from shared_model.metrics import record_metrics
from shared_model.pretraining import PretrainingNetwork, PretrainingTask
from shared_model.randomness import WHOLE_CONSORTIUM, generator
from shared_model.recommendation import Context, Fitted
from shared_model.records import Dataset, RecordSet, Split, read_dataset
from shared_model.settings import Settings
from shared_model.training import train
from shared_model.vocabulary import Vocabulary
from sim.methods import adapts, method
from sim.workers import Emit

PRETRAINING = "pretraining"


@dataclass(frozen=True)
class Plan:
    """What all units of a run have in common.

    Attributes:
        threads: of a fit on the whole consortium; a hospital's fit has one.
        hospitals: the hospitals that take part, all of the dataset's if None.
        alone: each hospital pretrains on its own records, instead of one place on all hospitals'.
        digest: of the dataset with these hospitals, which must not change while the run is at work.
    """

    run: Path
    dataset: Path
    settings: Settings
    device: str
    threads: int
    save_scores: bool
    hospitals: tuple[int, ...] | None
    alone: bool = False
    digest: str | None = None


@dataclass(frozen=True)
class FitUnit:
    """A fit of a run.

    Attributes:
        model: a method's name, or `PRETRAINING`.
        hospital: whose records, or `WHOLE_CONSORTIUM`.
        trial: only find each epoch's validation score, for a choice common to all hospitals.
        epochs: fit for so many, chosen in common.
    """

    plan: Plan
    model: str
    seed: int
    hospital: int
    trial: bool = False
    epochs: int | None = None

    def __hash__(self) -> int:
        # The plan is the same for all units of a run, and hashing every setting takes longer than a small fit's epoch
        return hash((self.model, self.seed, self.hospital, self.trial, self.epochs))

    @property
    def threads(self) -> int:
        return self.plan.threads if self.hospital == WHOLE_CONSORTIUM else 1

    @property
    def needs(self) -> FitUnit | None:
        """The pretraining that the method adapts."""
        whose = self.hospital if self.plan.alone else WHOLE_CONSORTIUM
        return FitUnit(self.plan, PRETRAINING, self.seed, whose) if adapts(self.model) else None

    @property
    def tensors_file(self) -> Path:
        return self._file(".safetensors")

    @property
    def result_file(self) -> Path:
        return self._file(".json")

    @property
    def partial_file(self) -> Path:
        return self._file(".partial.safetensors")

    def _file(self, suffix: str) -> Path:
        folder = self.plan.run / "checkpoints" / f"seed-{self.seed}"
        stem = folder / self.model if self.hospital == WHOLE_CONSORTIUM else folder / self.model / str(self.hospital)
        return stem.with_name(f"{stem.name}{'.trial' if self.trial else ''}{suffix}")

    def result(self) -> dict[str, Any] | None:
        """What the unit left, or None if it is not done.

        Raises:
            TemptError: a file of it is damaged.
        """
        if not self.result_file.exists() or not self.tensors_file.exists():
            return None
        checkpoint.load(self.tensors_file)
        return read_json(self.result_file)


def fit_unit(unit: FitUnit, emit: Emit) -> dict[str, Any]:
    """Do a unit, write its files, and return what it measured; `emit` gets each epoch's history row."""
    unit.tensors_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    dataset, split = _split(unit.plan.dataset, unit.plan.hospitals, unit.seed, unit.plan.device)
    if unit.plan.digest not in (None, dataset.digest):
        raise TemptError(f"{unit.plan.dataset}: was replaced while the run was at work; begin another run with it")
    if unit.hospital != WHOLE_CONSORTIUM:
        split = split.of_hospital(unit.hospital)
    context = context_of(dataset.vocabulary, unit, emit)
    began = time.monotonic()
    if unit.model == PRETRAINING:
        fitted, measured = _pretrain(split, context), dict[str, Any]()
    else:
        fitted, measured = _fit_and_evaluate(unit, split, context, began)
    seconds = measured.pop("seconds", {"fit": _seconds(began, fitted)})
    about = {
        "model": unit.model,
        "seed": unit.seed,
        "hospital": unit.hospital,
        "best_epoch": fitted.best_epoch,
    } | fitted.about
    checkpoint.save(unit.tensors_file, {} if unit.trial else fitted.tensors, about, durable=False)
    result = about | measured | {"seconds": seconds, "history": fitted.history}
    write_json(unit.result_file, result, durable=False)
    unit.partial_file.unlink(missing_ok=True)
    return result


def context_of(vocabulary: Vocabulary, unit: FitUnit, emit: Emit | None = None) -> Context:
    """What a method needs to fit or to answer, with the pretrained encoder if it adapts one."""
    rows = TokenRows(len(vocabulary.diagnoses), len(vocabulary.procedures))
    device = torch.device(unit.plan.device)
    encoder = None
    if unit.needs is not None:
        encoder = pretrained_encoder(unit.needs.tensors_file, unit.plan.settings, rows, device)
    return Context(
        settings=unit.plan.settings,
        rows=rows,
        medications=len(vocabulary.medications),
        seed=unit.seed,
        hospital=unit.hospital,
        device=device,
        encoder=encoder,
        resume=unit.partial_file,
        on_epoch=emit,
        epochs=unit.epochs,
    )


def pretrained_encoder(path: Path, settings: Settings, rows: TokenRows, device: torch.device) -> MedicalEncoder:
    """The encoder of a pretraining checkpoint, without the heads that only pretraining needs."""
    return _encoder(path, _stamp(path), settings, rows, device)


def _stamp(path: Path) -> tuple[int, ...]:
    """Tells a file from another one that took its name."""
    found = path.stat() if path.exists() else None
    return () if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1)
def _encoder(
    path: Path, stamp: tuple[int, ...], settings: Settings, rows: TokenRows, device: torch.device
) -> MedicalEncoder:
    tensors, _ = checkpoint.load(path, device)
    encoder = MedicalEncoder(settings.encoder, rows).to(device)
    prefix = "encoder."
    checkpoint.load_module(
        encoder, {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}, path
    )
    return encoder.eval()


def _pretrain(split: Split, context: Context) -> Fitted:
    # Algorithm 1, line 1
    draws = generator(torch.device("cpu"), context.seed, f"{PRETRAINING}/initial", context.hospital)
    settings = context.settings.pretraining
    network = PretrainingNetwork(context.settings.encoder, context.rows, draws, settings.output_bias).to(context.device)
    task = PretrainingTask(network, split.train, split.validation, settings, seed=context.seed)
    progress = train(
        task,
        settings,
        seed=context.seed,
        purpose=PRETRAINING,
        hospital=context.hospital,
        resume=context.resume,
        on_epoch=context.on_epoch,
    )
    # Algorithm 1, line 7
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    return Fitted(tensors, progress.history, progress.best_epoch)


def _fit_and_evaluate(unit: FitUnit, split: Split, context: Context, began: float) -> tuple[Fitted, dict[str, Any]]:
    functions = method(unit.model)
    training, validation, test = split.train, split.validation, split.test
    if unit.trial:
        # every epoch's score is wanted: patience never strikes
        tuning = context.settings.tuning
        settings = context.settings.model_copy(update={"tuning": tuning.model_copy(update={"patience": sys.maxsize})})
        return functions.fit(training, validation, replace(context, settings=settings)), {}
    fitted = functions.fit(training, validation, context)
    fit, tuned = _seconds(began, fitted), time.monotonic()
    hospitals = {}
    everyone = sorted({*training.hospitals, *validation.hospitals, *test.hospitals})
    for hospital in everyone if unit.hospital == WHOLE_CONSORTIUM else [unit.hospital]:
        hospitals[str(hospital)] = _evaluate(unit, fitted.tensors, hospital, test.of_hospital(hospital), context)
    evaluation = round(time.monotonic() - tuned, 3)
    measured = {"hospitals": hospitals, "seconds": {"fit": fit, "evaluation": evaluation}}
    if not len(validation) and unit.epochs is None and fitted.history:
        measured["selected"] = "last epoch, for want of a validation record"
    return fitted, measured


def _seconds(began: float, fitted: Fitted) -> float:
    """How long a fit took; the epochs from before a resumption stand in its history alone."""
    in_history = float(sum(row["seconds"] for row in fitted.history))
    return round(max(time.monotonic() - began, in_history), 3)


def _evaluate(
    unit: FitUnit, tensors: Mapping[str, Tensor], hospital: int, test: RecordSet, context: Context
) -> dict[str, float]:
    if not len(test):
        return {"records": 0, "prauc": 0.0, "jaccard": 0.0, "f1": 0.0, "medications": 0.0}
    probabilities = method(unit.model).probabilities(tensors, test, context)
    labels = test.medications.multi_hot(context.medications)
    if unit.plan.save_scores:
        path = unit.plan.run / "scores" / unit.model / f"seed-{unit.seed}" / f"{hospital}.parquet"
        _write_scores(path, test, probabilities)
    metrics = record_metrics(probabilities, labels, context.settings.evaluation.threshold)
    return {"records": len(test), **metrics.means()}


def _write_scores(path: Path, test: RecordSet, probabilities: Float[Tensor, "records medications"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    width = probabilities.shape[1]
    offsets = torch.arange(len(test) + 1, dtype=torch.int32) * width
    table = pa.table(
        {
            "patientunitstayid": pa.array(test.stay.cpu().numpy(), pa.int64()),
            "labels": pa.array(test.medications.lists(), pa.list_(pa.int32())),
            "scores": pa.ListArray.from_arrays(offsets.numpy(), probabilities.float().cpu().numpy().ravel()),
        }
    )
    with replacing(path, durable=False) as beside:
        pq.write_table(table, beside, compression="zstd")


@lru_cache(maxsize=1)
def _dataset(directory: Path, stamp: tuple[int, ...]) -> Dataset:
    return read_dataset(directory)


def _split(directory: Path, hospitals: tuple[int, ...] | None, seed: int, device: str) -> tuple[Dataset, Split]:
    return _split_of(directory, _stamp(directory / "dataset.json"), hospitals, seed, device)


@lru_cache(maxsize=1)
def _split_of(
    directory: Path, stamp: tuple[int, ...], hospitals: tuple[int, ...] | None, seed: int, device: str
) -> tuple[Dataset, Split]:
    dataset = _dataset(directory, stamp)
    if hospitals is not None:
        dataset = dataset.of_hospitals(hospitals)
    split = dataset.split(seed)
    where = torch.device(device)
    return dataset, Split(split.train.to(where), split.validation.to(where), split.test.to(where))
