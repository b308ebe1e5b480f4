"""One fit of a run as a unit of work: the pretraining of a seed, or a method of a seed (and a hospital)."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from shared_model.batching import TokenRows
from shared_model.errors import TemptError
from shared_model.fitting import (
    PRETRAINING,
    FitFiles,
    fit_and_evaluate,
    pretrained_digest,
    pretrained_encoder,
    stamp_of,
)
from shared_model.pretraining import PretrainingNetwork, PretrainingTask
from shared_model.randomness import WHOLE_CONSORTIUM, generator
from shared_model.recommendation import Context, Fitted
from shared_model.records import Dataset, Split, read_dataset
from shared_model.settings import Settings
from shared_model.training import train
from shared_model.vocabulary import Vocabulary
from sim.methods import adapts, method
from sim.workers import Emit


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
    def files(self) -> FitFiles:
        return FitFiles.of(self.plan.run, self.seed, self.model, self.hospital, trial=self.trial)


def fit_unit(unit: FitUnit, emit: Emit) -> dict[str, Any]:
    """Do a unit, write its files, and return what it measured; `emit` gets each epoch's history row."""
    unit.files.tensors.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    dataset, split = _split(unit.plan.dataset, unit.plan.hospitals, unit.seed, unit.plan.device)
    if unit.plan.digest not in (None, dataset.digest):
        raise TemptError(f"{unit.plan.dataset}: was replaced while the run was at work; begin another run with it")
    if unit.hospital != WHOLE_CONSORTIUM:
        split = split.of_hospital(unit.hospital)
    context = context_of(dataset.vocabulary, unit, emit)
    began = time.monotonic()
    if unit.model == PRETRAINING:
        fitted, measured = _pretrain(split, context), dict[str, Any]()
    elif unit.trial:
        fitted, measured = _try(unit, split, context), dict[str, Any]()
    else:
        run = unit.plan.run if unit.plan.save_scores else None
        fitted, measured = fit_and_evaluate(unit.model, method(unit.model), split, context, run=run)
    return unit.files.keep(unit.model, context, fitted, measured, began)


def context_of(vocabulary: Vocabulary, unit: FitUnit, emit: Emit | None = None) -> Context:
    """What a method needs to fit or to answer, with the pretrained encoder if it adapts one."""
    rows = TokenRows(len(vocabulary.diagnoses), len(vocabulary.procedures))
    device = torch.device(unit.plan.device)
    encoder = stands_on = None
    if unit.needs is not None:
        stands_on = pretrained_digest(unit.needs.files.tensors)
        encoder = pretrained_encoder(unit.needs.files.tensors, unit.plan.settings, rows, device)
    return Context(
        settings=unit.plan.settings,
        rows=rows,
        medications=len(vocabulary.medications),
        seed=unit.seed,
        hospital=unit.hospital,
        device=device,
        encoder=encoder,
        stands_on=stands_on,
        resume=unit.files.partial,
        on_epoch=emit,
        epochs=unit.epochs,
    )


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


def _try(unit: FitUnit, split: Split, context: Context) -> Fitted:
    """The scores of every epoch, as patience never strikes; nothing else is kept."""
    tuning = context.settings.tuning
    settings = context.settings.model_copy(update={"tuning": tuning.model_copy(update={"patience": sys.maxsize})})
    fitted = method(unit.model).fit(split.train, split.validation, replace(context, settings=settings))
    return replace(fitted, tensors={})


@lru_cache(maxsize=1)
def _dataset(directory: Path, stamp: tuple[int, ...]) -> Dataset:
    return read_dataset(directory)


def _split(directory: Path, hospitals: tuple[int, ...] | None, seed: int, device: str) -> tuple[Dataset, Split]:
    return _split_of(directory, stamp_of(directory / "dataset.json"), hospitals, seed, device)


@lru_cache(maxsize=1)
def _split_of(
    directory: Path, stamp: tuple[int, ...], hospitals: tuple[int, ...] | None, seed: int, device: str
) -> tuple[Dataset, Split]:
    dataset = _dataset(directory, stamp)
    if hospitals is not None:
        dataset = dataset.of_hospitals(hospitals)
    split = dataset.split(seed)
    return dataset, split.to(torch.device(device))
