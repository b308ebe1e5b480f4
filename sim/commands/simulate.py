"""`tempt simulate`: one machine plays every hospital."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from server import options as federation_options
from shared_model import begun, comma_lists
from shared_model.errors import TemptError
from shared_model.lines import tell
from sim.commands import options
from sim.commands.data import left_out_note

if TYPE_CHECKING:
    from hospital_client.preparation_options import PreparationOptions
    from server.federation_settings import FederationSettings
    from shared_model.records import Dataset
    from sim.display import Display

SMALL_MIN_RECORDS = 50  # the small synthetic consortium has hospitals of 60 records and more

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Simulate a consortium of hospitals on one machine."
)


@app.callback()
def _group() -> None:
    """Simulate a consortium of hospitals on one machine."""


def _fits(
    context: typer.Context,
    data: options.Data = None,
    out: options.Out = None,
    models: options.Models = "",
    preset: options.Preset = "paper",
    seeds: options.Seeds = "42",
    device: options.Device = "auto",
    set_: options.Set = None,
    hospitals: options.Hospitals = "",
    resume: options.Resume = False,
    force: options.Force = False,
    save_scores: options.SaveScores = False,
    jobs: options.Jobs = None,
    threads: options.Threads = 1,
    min_records: options.MinRecords = None,
    top_medications: options.TopMedications = 300,
    top_procedures: options.TopProcedures = 1000,
    split_by_patient: options.SplitByPatient = False,
    observation_window: options.ObservationWindow = None,
    leave_out_drug_procedures: options.LeaveOutDrugProcedures = False,
    leave_out_cancelled_orders: options.LeaveOutCancelled = False,
) -> None:
    _simulate(
        "local" if context.info_name == "local" else "centralized",
        data=data,
        out=out,
        models=models,
        preset=preset,
        seeds=seeds,
        device=device,
        set_=set_,
        hospitals=hospitals,
        resume=resume,
        force=force,
        save_scores=save_scores,
        jobs=jobs,
        threads=threads,
        min_records=min_records,
        top_medications=top_medications,
        top_procedures=top_procedures,
        split_by_patient=split_by_patient,
        observation_window=observation_window,
        leave_out_drug_procedures=leave_out_drug_procedures,
        leave_out_cancelled_orders=leave_out_cancelled_orders,
    )


def _federated(
    context: typer.Context,
    data: options.Data = None,
    out: options.Out = None,
    models: options.Models = "",
    preset: options.Preset = "paper",
    seeds: options.Seeds = "42",
    device: options.Device = "auto",
    set_: options.Set = None,
    hospitals: options.Hospitals = "",
    resume: options.Resume = False,
    force: options.Force = False,
    save_scores: options.SaveScores = False,
    jobs: options.Jobs = None,
    threads: options.Threads = 1,
    min_records: options.MinRecords = None,
    top_medications: options.TopMedications = 300,
    top_procedures: options.TopProcedures = 1000,
    split_by_patient: options.SplitByPatient = False,
    observation_window: options.ObservationWindow = None,
    leave_out_drug_procedures: options.LeaveOutDrugProcedures = False,
    leave_out_cancelled_orders: options.LeaveOutCancelled = False,
    engine: Annotated[str, typer.Option(help="inprocess, exact and fast, or ray.")] = "inprocess",
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster that sees the same files.", show_default="one on this machine")
    ] = None,
    strategy: federation_options.Strategy = "fedavg",
    strategy_option: federation_options.StrategyOption = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds at most.", show_default="as pretraining.epochs says")
    ] = None,
    local_epochs: federation_options.LocalEpochs = 1,
    local_optimizer: federation_options.LocalOptimizer = "reset",
    fraction: federation_options.Fraction = 1.0,
    quorum: federation_options.Quorum = 0.5,
    largest_update: federation_options.LargestUpdate = 10.0,
    transport: federation_options.Transport = "float32",
    changed_rows: federation_options.ChangedRows = False,
    beside: Annotated[
        str, typer.Option(help="Run directories whose rows are shown beside, with commas.", show_default="none")
    ] = "",
) -> None:
    from server.federation_settings import federation_settings
    from sim.engines import check_engine

    check_engine(engine, ray_address)
    federation = federation_settings(
        strategy=strategy,
        options=options.assignments(strategy_option or [], "--strategy-option", "proximal_mu=0.01"),
        rounds=rounds,
        local_epochs=local_epochs,
        local_optimizer=local_optimizer,
        fraction=fraction,
        quorum=quorum,
        largest_update=largest_update,
        transport=transport,
        changed_rows=changed_rows,
    )
    _simulate(
        "federated",
        data=data,
        out=out,
        models=models,
        preset=preset,
        seeds=seeds,
        device=device,
        set_=set_,
        hospitals=hospitals,
        resume=resume,
        force=force,
        save_scores=save_scores,
        jobs=jobs,
        threads=threads,
        min_records=min_records,
        top_medications=top_medications,
        top_procedures=top_procedures,
        split_by_patient=split_by_patient,
        observation_window=observation_window,
        leave_out_drug_procedures=leave_out_drug_procedures,
        leave_out_cancelled_orders=leave_out_cancelled_orders,
        federation=federation,
        engine=engine,
        ray_address=ray_address,
        beside=tuple(Path(run) for run in comma_lists.names("--beside", beside)) if beside else (),
    )


def _simulate(
    mode: Literal["centralized", "local", "federated"],
    *,
    data: Path | None,
    out: Path | None,
    models: str,
    preset: str,
    seeds: str,
    device: str,
    set_: list[str] | None,
    hospitals: str,
    resume: bool,
    force: bool,
    save_scores: bool,
    jobs: int | None,
    threads: int,
    min_records: int | None,
    top_medications: int,
    top_procedures: int,
    split_by_patient: bool,
    observation_window: float | None,
    leave_out_drug_procedures: bool,
    leave_out_cancelled_orders: bool,
    federation: FederationSettings | None = None,
    engine: str = "inprocess",
    ray_address: str | None = None,
    beside: tuple[Path, ...] = (),
) -> None:
    """Make or go on with a run directory, and print its table."""
    from hospital_client.preparation import source_digests
    from shared_model import run_directory
    from shared_model.files import real
    from shared_model.records import read_dataset
    from shared_model.settings import resolve
    from shared_model.vocabulary import write_vocabulary
    from sim import centralized as central
    from sim.devices import pick_device
    from sim.display import Display
    from sim.methods import chosen, own_settings_of
    from sim.results import check_beside, check_named, read_beside, table
    from sim.workers import usable_cores

    out = Path("runs", mode) if out is None else out
    if resume and force:
        raise TemptError("--resume and --force: one goes on with a run, the other deletes it; give one of them")
    if force and data is not None and real(data).is_relative_to(real(out)):
        raise TemptError(f"--out {out} --force: would delete {data}, which is to be read; name another --out")
    check_named(out, beside, force=force)
    if jobs is not None and threads > jobs:
        raise TemptError(
            f"--threads {threads}: more than --jobs {jobs}, the threads in all; give at least as many jobs"
        )
    names = chosen(comma_lists.names("--models", models) if models else [], mode)
    assigned = options.assignments(set_ or [])
    settings = resolve(preset, assigned, own_settings_of(names, assigned))
    picked = pick_device(device)
    ready = data is not None and options.is_dataset(data)
    preparation = options.preparation(
        min_records=min_records if min_records is not None else SMALL_MIN_RECORDS if data is None else None,
        top_medications=top_medications,
        top_procedures=top_procedures,
        split_by_patient=split_by_patient,
        observation_window_hours=observation_window,
        leave_out_drug_procedures=leave_out_drug_procedures,
        leave_out_cancelled_orders=leave_out_cancelled_orders,
    )
    if ready and preparation != options.preparation():
        raise TemptError(
            f"--data {data}: is a dataset; --min-records and other options of `tempt prepare` go with raw tables"
        )
    request = central.Request(
        mode=mode,
        run=out,
        data="" if data is None else str(data),
        preparation=None if ready else preparation.model_dump(),
        settings=settings,
        preset=preset,
        models=tuple(names),
        seeds=tuple(comma_lists.numbers("--seeds", seeds, "42,43")),
        device=picked,
        jobs=jobs if jobs is not None else max(threads, 1 if picked != "cpu" else usable_cores()),
        threads=threads,
        save_scores=save_scores,
        hospitals=tuple(sorted(comma_lists.numbers("--hospitals", hospitals, "101,102"))) if hospitals else None,
        command=tuple(["tempt", *sys.argv[1:]]),
    )
    central.check_settings(settings, mode)
    if federation is not None:
        from server.federation import check_settings

        check_settings(settings)
    others = read_beside(beside)
    own = out / run_directory.DATASET

    def fill(directory: Path) -> dict[str, Any]:
        if not ready:
            _prepare(data, directory / run_directory.DATASET, preparation, display)
        dataset = read(data if ready else directory / run_directory.DATASET)
        check_beside(others, central.split_digests(dataset, request.seeds))  # before an older run is replaced
        write_vocabulary(directory / "vocabulary.json", dataset.vocabulary)
        return config(dataset, _sources(directory / run_directory.DATASET))

    def config(dataset: Dataset, sources: Mapping[str, str]) -> dict[str, Any]:
        more = {} if federation is None else {"federation": federation.model_dump(), "engine": engine}
        return central.config_of(request, dataset, sources) | more

    def read(directory: Path | None) -> Dataset:
        assert directory is not None
        return central.restricted(read_dataset(directory), request.hospitals)

    with Display() as display:
        if not resume:
            run_directory.create(out, fill, force=force)
        with run_directory.held(out):
            begun.begin()
            source = data if data is not None and ready else own
            dataset = read(source)
            if resume:
                sources = _sources(own) if ready or data is None else source_digests(data)
                run_directory.compare(out, config(dataset, sources))
                check_beside(others, central.split_digests(dataset, request.seeds))
                write_vocabulary(out / "vocabulary.json", dataset.vocabulary)  # it may have been changed or lost
            if federation is None:
                content = central.simulate(request, source, dataset, display)
            else:
                from sim import federated

                content = federated.simulate(
                    request, federation, source, dataset, display, engine=engine, ray_address=ray_address
                )
    tell(*table(content, list(others.values())))
    if federation is not None:
        tell("", *federated.rounds_table(content))
    tell(f"Everything is in {out}: results.json, history.jsonl, checkpoints/.")


_CENTRALIZED = """Pretrain on all hospitals in one place, tune for each, and print the table of results.

Example: tempt simulate centralized --data eicu/ --seeds 42,43,44,45,46 --out runs/eicu
"""
_LOCAL = """Let each hospital pretrain on its own records alone, tune, and print the table of results.

Example: tempt simulate local --data eicu/ --models tempt --out runs/eicu-local
"""
_FEDERATED = """Pretrain in rounds in which hospitals send tensors and no record, tune, and print the table of results.

Example: tempt simulate federated --data eicu/ --beside runs/eicu,runs/eicu-local --out runs/eicu-federated
"""
app.command("centralized", help=_CENTRALIZED)(_fits)
app.command("local", help=_LOCAL)(_fits)
app.command("federated", help=_FEDERATED)(_federated)


def _prepare(data: Path | None, place: Path, preparation: PreparationOptions, display: Display) -> None:
    """Make a run's own dataset at `place`: from raw tables, or from a small synthetic consortium without any."""
    from hospital_client.preparation import prepare
    from sim.synthetic_raw import synthesize

    if data is not None:
        display.say(f"preparing {data}")
        report = prepare(data, place, preparation)
        if note := left_out_note(report, preparation):
            display.say(note)
        return
    display.say("making a small synthetic consortium (no --data given)")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        synthesize(raw, "small")
        prepare(raw, place, preparation)


def _sources(dataset: Path) -> dict[str, str]:
    """The digests of the raw tables that a run's own dataset was made from; none if it has no dataset of its own."""
    from shared_model.records import about_dataset

    return dict(about_dataset(dataset).get("sources", {})) if dataset.is_dir() else {}
