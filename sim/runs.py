"""A run from its request to its results, the same for the command line, for experiments and for notebooks.

    results = run(Request("centralized", data=Path("dataset"), models=("tempt",)))
    results.content["models"]["tempt"]["summary"]["prauc"]["mean"]

With more than one job other processes work, so a script that asks for a run does it under `__name__ == "__main__"`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hospital_client.preparation import prepare, source_digests
from hospital_client.preparation_options import PreparationOptions
from hospital_client.preparation_report import left_out_note
from shared_model import begun, run_directory
from shared_model.errors import TemptError, printable
from shared_model.records import Dataset, about_dataset, read_dataset
from shared_model.vocabulary import write_vocabulary
from sim import centralized
from sim.listener import Listener
from sim.request import Request, Resolved, resolved
from sim.results import check_beside, read_beside
from sim.synthetic_raw import synthesize


@dataclass(frozen=True)
class Results:
    """What a run found.

    Attributes:
        run: its directory, where everything is.
        content: of its `results.json`.
        beside: of the `results.json` of the runs that were to be read beside, in their order.
    """

    run: Path
    content: Mapping[str, Any]
    beside: tuple[Mapping[str, Any], ...]


def run(request: Request, listener: Listener | None = None) -> Results:
    """Begin a run or go on with it, do what is not done yet, and return what it found.

    Raises:
        TemptError: the request can't be met, or the run ended with a mistake; `TooFewHospitals` if it was below a
            federation's quorum. Before the run has begun nothing is changed on disk.
    """
    listener = listener or Listener()
    asked = resolved(request)
    _check_settings(asked)
    others = read_beside(request.beside)
    if not request.resume:
        run_directory.create(asked.run, lambda place: _fill(place, asked, others, listener), force=request.force)
    with run_directory.held(asked.run):
        begun.begin()
        if request.resume:
            _check_source(asked)
        dataset = _read(asked.dataset, asked)
        if request.resume:
            _check_resumed(asked, dataset, others)
        content = _fit_all(asked, dataset, listener)
    return Results(asked.run, content, tuple(others.values()))


def _check_settings(asked: Resolved) -> None:
    """Refuse settings that the mode does not follow."""
    centralized.check_settings(asked.settings, asked.request.mode)
    if asked.federation is not None:
        from server.federation import check_settings

        check_settings(asked.settings)


def _fill(place: Path, asked: Resolved, others: Mapping[Path, Mapping[str, Any]], listener: Listener) -> dict[str, Any]:
    """Put what a run needs into its new directory, and return its config."""
    own = place / run_directory.DATASET
    if asked.preparation is not None:
        _prepare(asked.request.data, own, asked.preparation, listener)
    dataset = _read(own if asked.preparation is not None else asked.dataset, asked)
    check_beside(others, _splits(asked, dataset))  # before an older run is replaced
    write_vocabulary(place / run_directory.VOCABULARY, dataset.vocabulary)
    return _config(asked, dataset, _sources(own))


def _check_source(asked: Resolved) -> None:
    """Refuse to go on without what the records came from, where the run has none of its own."""
    kept = run_directory.config_of(asked.run).get("data")
    if kept and asked.request.data is None and not (asked.dataset / "dataset.json").is_file():
        raise TemptError(
            f"{asked.run}: the run was begun with --data {printable(kept)}, this command has none; "
            "resume with the same options"
        )


def _check_resumed(asked: Resolved, dataset: Dataset, others: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuse to go on with a run that was begun otherwise, and write its vocabulary anew."""
    raw = asked.request.data if asked.preparation is not None else None
    sources = _sources(asked.run / run_directory.DATASET) if raw is None else source_digests(raw)
    run_directory.compare(asked.run, _config(asked, dataset, sources))
    check_beside(others, _splits(asked, dataset))
    write_vocabulary(asked.run / run_directory.VOCABULARY, dataset.vocabulary)  # it may have been changed or lost


def _fit_all(asked: Resolved, dataset: Dataset, listener: Listener) -> dict[str, Any]:
    """Do every fit that is not done yet, and return the content of `results.json`."""
    if asked.federation is None:
        return centralized.simulate(asked, dataset, listener)
    from sim import federated  # only a federation needs Flower

    return federated.simulate(asked, asked.federation, dataset, listener)


def _config(asked: Resolved, dataset: Dataset, sources: Mapping[str, str]) -> dict[str, Any]:
    config = centralized.config_of(asked, dataset, sources)
    if asked.federation is not None:
        config |= {"federation": asked.federation.model_dump(), "engine": asked.request.engine}
    return config


def _read(directory: Path, asked: Resolved) -> Dataset:
    """The records of the hospitals that take part."""
    return centralized.restricted(read_dataset(directory), asked.hospitals)


def _splits(asked: Resolved, dataset: Dataset) -> dict[str, str]:
    return centralized.split_digests(dataset, asked.request.seeds)


def _prepare(data: Path | None, place: Path, preparation: PreparationOptions, listener: Listener) -> None:
    """Make a run's own dataset at `place`: from raw tables, or from a small synthetic consortium without any."""
    if data is not None:
        listener.say(f"preparing {data}")
        if note := left_out_note(prepare(data, place, preparation)):
            listener.say(note)
        return
    listener.say("making a small synthetic consortium (no --data given)")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        synthesize(raw, "small")
        prepare(raw, place, preparation)


def _sources(dataset: Path) -> dict[str, str]:
    """The digests of the raw tables that a run's own dataset was made from; none if it has no dataset of its own."""
    return dict(about_dataset(dataset).get("sources", {})) if dataset.is_dir() else {}
