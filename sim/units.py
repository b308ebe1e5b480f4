"""One fit of a run as a unit of work: a pretraining of a seed, or a method of a seed (and a hospital)."""

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
    FitFiles,
    fit_and_evaluate,
    pretrained,
    pretraining_fit,
    pretraining_of,
    stamp_of,
)
from shared_model.pretrainings import pretraining
from shared_model.randomness import WHOLE_CONSORTIUM, generator
from shared_model.recommendation import Context, Fitted, own_settings_of
from shared_model.records import Dataset, Split, read_dataset
from shared_model.settings import Settings
from shared_model.training import train
from shared_model.vocabulary import Vocabulary
from sim.methods import method, needs
from sim.workers import Emit


@dataclass(frozen=True)
class RunPlan:
    """What all units of a run have in common.

    Attributes:
        threads: of a fit on the whole consortium; a hospital's fit has one.
        hospitals: the hospitals that take part, all of the dataset's if None.
        pretrains_locally: each hospital pretrains on its own records, instead of one place on all hospitals'.
        digest: of the dataset with these hospitals, which must not change while the run is at work.
    """

    run: Path
    dataset: Path
    settings: Settings
    device: str
    threads: int
    save_scores: bool
    hospitals: tuple[int, ...] | None
    pretrains_locally: bool = False
    digest: str | None = None


@dataclass(frozen=True)
class FitUnit:
    """A fit of a run.

    Attributes:
        model: a method's name, or that of a pretraining's fits.
        hospital: whose records, or `WHOLE_CONSORTIUM`.
        trial: only find each epoch's validation score, for a choice common to all hospitals.
        epochs: fit for so many, chosen in common.
    """

    plan: RunPlan
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
    def adapts(self) -> str | None:
        """The pretraining that the method adapts, by name."""
        return needs(self.model) if pretraining_of(self.model) is None else None

    @property
    def is_tuned(self) -> bool:
        """Whether a hospital adapts a pretraining to itself."""
        return self.adapts is not None and self.hospital != WHOLE_CONSORTIUM

    @property
    def needs(self) -> FitUnit | None:
        """That pretraining: one fit for all methods that adapt it, of all hospitals' records unless each is alone."""
        if self.adapts is None:
            return None
        whose = self.hospital if self.plan.pretrains_locally else WHOLE_CONSORTIUM
        return FitUnit(self.plan, pretraining_fit(self.adapts), self.seed, whose)

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
    if (name := pretraining_of(unit.model)) is not None:
        fitted, measured = _pretrain(name, split, context), dict[str, Any]()
    elif unit.trial:
        fitted, measured = _try(unit, split, context), dict[str, Any]()
    else:
        run = unit.plan.run if unit.plan.save_scores else None
        fitted, measured = fit_and_evaluate(unit.model, method(unit.model), split, context, run=run)
    return unit.files.keep(unit.model, context, fitted, measured, began)


def context_of(vocabulary: Vocabulary, unit: FitUnit, emit: Emit | None = None) -> Context:
    """What a unit needs to fit or to answer, with what its method reads of a pretraining."""
    rows = TokenRows(len(vocabulary.diagnoses), len(vocabulary.procedures))
    of, settings = pretraining_of(unit.model), unit.plan.settings
    kind = own_settings_of(method(unit.model)) if of is None else pretraining(of).settings
    context = Context(
        settings=settings,
        rows=rows,
        medications=len(vocabulary.medications),
        seed=unit.seed,
        hospital=unit.hospital,
        device=torch.device(unit.plan.device),
        own=settings.own(unit.model, kind),
        resume=unit.files.partial,
        on_epoch=emit,
        epochs=unit.epochs,
    )
    if unit.adapts is not None and unit.needs is not None:
        context = pretrained(context, unit.adapts, unit.needs.files.tensors)
    return context


def _pretrain(name: str, split: Split, context: Context) -> Fitted:
    found, purpose = pretraining(name), pretraining_fit(name)
    # Algorithm 1, line 1
    draws = generator(torch.device("cpu"), context.seed, f"{purpose}/initial", context.hospital)
    network = found.network(context, draws).to(context.device)
    progress = train(
        found.task(network, split.train, split.validation, context),
        found.optimization(context),
        seed=context.seed,
        purpose=purpose,
        hospital=context.hospital,
        resume=context.resume,
        on_epoch=context.on_epoch,
    )
    # Algorithm 1, line 7
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    return Fitted(tensors, progress.history, progress.best_epoch)


def _try(unit: FitUnit, split: Split, context: Context) -> Fitted:
    """The scores of every epoch, as patience never strikes; nothing else is kept."""
    endless = {"patience": sys.maxsize}
    stages = {name: getattr(context.settings, name).model_copy(update=endless) for name in ("tuning", "training")}
    own = context.own
    if own is not None and "patience" in type(own).model_fields:
        own = own.model_copy(update=endless)
    context = replace(context, settings=context.settings.model_copy(update=stages), own=own)
    fitted = method(unit.model).fit(split.train, split.validation, context)
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
