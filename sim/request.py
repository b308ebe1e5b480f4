"""What a run is asked for, and what is decided of it before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from hospital_client.preparation_options import PreparationOptions
from server.federation_settings import FederationSettings
from shared_model import run_directory
from shared_model.algorithms import chosen as strategy
from shared_model.errors import TemptError, unknown
from shared_model.files import real
from shared_model.settings import Settings, resolve
from sim.devices import pick_device
from sim.methods import Mode, chosen, own_settings_of
from sim.results import check_named
from sim.workers import usable_cores

SMALL_MIN_RECORDS = 50  # the small synthetic consortium has hospitals of 60 records and more


@dataclass(frozen=True)
class Request:
    """What a run is asked for.

    Attributes:
        data: a directory of raw eICU tables or of a dataset; a small synthetic consortium is made up without.
        out: the run directory; `runs/` and the mode without.
        models: rows of the table, in order; all that the mode has without.
        settings: what differs from the preset, such as {"tuning.epochs": "5"}.
        device: "auto", "cpu", "cuda" or "cuda:N".
        hospitals: the hospitals that take part, all of the dataset's if None.
        resume: go on with the run that is in the directory.
        force: replace the run that is in the directory.
        save_scores: keep every test record's labels and scores.
        jobs: threads in all, on which no result depends; if None the machine's cores, or 1 on a GPU.
        threads: of a fit on the whole consortium, or of a hospital in a federation; the results' last bits depend on
            it.
        preparation: how raw tables become the run's dataset; of the small consortium a hospital needs 50 records,
            unless `min_records` is given.
        federation: how its rounds are run, in the mode "federated"; the defaults if None.
        engine: "inprocess" or "ray".
        ray_address: of a cluster that sees the same files; one on this machine without.
        beside: directories of other runs on the same splits, whose results are read, too.
        command: the words of a command line that asked, which are kept with the results.

    Raises:
        TemptError: there is no such mode, the mode has no federation, or a number is none that there can be.
    """

    mode: Mode
    data: Path | None = None
    out: Path | None = None
    models: tuple[str, ...] = ()
    preset: str = "paper"
    settings: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = (42,)
    device: str = "auto"
    hospitals: tuple[int, ...] | None = None
    resume: bool = False
    force: bool = False
    save_scores: bool = False
    jobs: int | None = None
    threads: int = 1
    preparation: PreparationOptions = field(default_factory=PreparationOptions)
    federation: FederationSettings | None = None
    engine: str = "inprocess"
    ray_address: str | None = None
    beside: tuple[Path, ...] = ()
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("data", "out"):
            if isinstance(place := getattr(self, name), str):
                object.__setattr__(self, name, Path(place))
        if self.mode not in get_args(Mode):
            raise unknown("mode", self.mode, get_args(Mode))
        if self.mode != "federated" and (self.federation, self.engine, self.ray_address) != (None, "inprocess", None):
            raise TemptError(f"mode={self.mode}: has no federation, engine or ray_address; use mode=federated")
        _check_numbers("seeds", self.seeds, least=0)
        if self.hospitals is not None:
            _check_numbers("hospitals", self.hospitals, least=1)
        for name, value in (("jobs", self.jobs), ("threads", self.threads)):
            if value is not None and (type(value) is not int or value < 1):
                raise TemptError(f"{name}={value}: expected a whole number of at least 1")


def _check_numbers(name: str, values: Sequence[int], *, least: int) -> None:
    """Refuse what is no list of different whole numbers."""
    if not values or len(set(values)) < len(values) or any(type(of) is not int or of < least for of in values):
        raise TemptError(f"{name}={values}: expected one or more different whole numbers of at least {least}")


@dataclass(frozen=True)
class Resolved:
    """A request, and what was decided where it leaves a choice.

    Attributes:
        run: the run directory.
        dataset: the directory of the dataset, which is the run's own or was named.
        preparation: what makes the run's own dataset; None if a dataset was named.
        device: "cpu", "cuda" or "cuda:N".
        hospitals: in order; None for all of the dataset's.
        federation: None if the mode has none.
    """

    request: Request
    run: Path
    dataset: Path
    preparation: PreparationOptions | None
    settings: Settings
    models: tuple[str, ...]
    device: str
    hospitals: tuple[int, ...] | None
    jobs: int
    federation: FederationSettings | None


def resolved(request: Request) -> Resolved:
    """Decide what a request leaves open; nothing is written.

    Raises:
        TemptError: something that it asks for is not there, or contradicts something else.
    """
    if request.mode == "federated":
        from sim.engines import check_engine  # only a federation needs Flower

        check_engine(request.engine, request.ray_address)
    run = Path("runs", request.mode) if request.out is None else request.out
    _check_places(request, run)
    if request.jobs is not None and request.threads > request.jobs:
        raise TemptError(
            f"--threads {request.threads}: more than --jobs {request.jobs}, the threads in all; "
            "give at least as many jobs"
        )
    models = chosen(request.models, request.mode)
    if request.federation is not None:
        strategy(request.federation.strategy, request.federation.options)
    settings = resolve(request.preset, request.settings, own_settings_of(models, request.settings))
    device = pick_device(request.device)
    preparation = _preparation(request)
    own = run / run_directory.DATASET
    return Resolved(
        request=request,
        run=run,
        dataset=own if preparation is not None or request.data is None else request.data,
        preparation=preparation,
        settings=settings,
        models=tuple(models),
        device=device,
        hospitals=None if request.hospitals is None else tuple(sorted(request.hospitals)),
        jobs=request.jobs if request.jobs is not None else max(request.threads, _at_once(device)),
        federation=(request.federation or FederationSettings()) if request.mode == "federated" else None,
    )


def _check_places(request: Request, run: Path) -> None:
    """Refuse a run directory that can't be both what is asked for and left alone."""
    if request.resume and request.force:
        raise TemptError("--resume and --force: one goes on with a run, the other deletes it; give one of them")
    if request.force and request.data is not None and real(request.data).is_relative_to(real(run)):
        raise TemptError(f"--out {run} --force: would delete {request.data}, which is to be read; name another --out")
    check_named(run, request.beside, force=request.force)
    if request.data is not None and not os.path.lexists(request.data):
        raise TemptError(
            f"--data {request.data}: no such directory; expected raw eICU tables, or a dataset of `tempt prepare`"
        )


def _preparation(request: Request) -> PreparationOptions | None:
    """How the run's own dataset is made; None if it has none, as a dataset was named."""
    preparation = request.preparation
    if request.data is None and "min_records" not in preparation.model_fields_set:
        return preparation.model_copy(update={"min_records": SMALL_MIN_RECORDS})
    if request.data is None or not (request.data / "dataset.json").is_file():
        return preparation
    if preparation != PreparationOptions():
        raise TemptError(
            f"--data {request.data}: is a dataset; --min-records and other options of `tempt prepare` go with raw "
            "tables"
        )
    return None


def _at_once(device: str) -> int:
    """Fits that a machine does at once by itself."""
    return usable_cores() if device == "cpu" else 1
