"""`tempt simulate`: one machine plays every hospital."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server import options as federation_options
from shared_model import comma_lists
from shared_model.lines import tell
from sim.commands import options
from sim.commands.option_groups import grouped

if TYPE_CHECKING:
    from server.federation_settings import FederationSettings
    from sim.methods import Mode
    from sim.request import Request

_MOST_THREADS = 10_000  # more than machines have; each may become a process with a model of its own

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Simulate a consortium of hospitals on one machine."
)


@app.callback()
def _group() -> None:
    """Simulate a consortium of hospitals on one machine."""


@dataclass(frozen=True)
class RunOptions:
    """What a run of any mode is asked for."""

    data: Annotated[
        Path | None,
        typer.Option(help="A raw eICU directory or a dataset directory.", show_default="a small synthetic consortium"),
    ] = None
    out: Annotated[Path | None, typer.Option(help="The run directory.", show_default="runs/ and the mode")] = None
    models: Annotated[
        str,
        typer.Option(
            help="Rows of the table, in order, such as tempt,single-train; a wrong name lists all.", show_default="all"
        ),
    ] = ""
    preset: Annotated[str, typer.Option(help="Settings to start from: paper or released.")] = "paper"
    seeds: Annotated[str, typer.Option(help="Seeds of split and training; the paper has 42,43,44,45,46.")] = "42"
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto"
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="FIELD=VALUE of a setting, such as tuning.epochs=5; a wrong field lists all."),
    ] = None
    hospitals: Annotated[str, typer.Option(help="Only these hospitals, with commas.", show_default="all")] = ""
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the directory.")] = False
    force: options.Force = False
    save_scores: Annotated[bool, typer.Option("--save-scores", help="Keep every test record's labels and scores.")] = (
        False
    )
    jobs: Annotated[
        int | None, typer.Option(min=1, max=_MOST_THREADS, help="Threads in all.", show_default="the machine's cores")
    ] = None
    threads: Annotated[
        int,
        typer.Option(
            min=1,
            max=_MOST_THREADS,
            help="Threads of a fit on all hospitals together, or of a hospital in a federation.",
        ),
    ] = 1


@dataclass(frozen=True)
class FederationOptions:
    """What a run in rounds is asked for besides."""

    engine: Annotated[str, typer.Option(help="inprocess, exact and fast, or ray.")] = "inprocess"
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster that sees the same files.", show_default="one on this machine")
    ] = None
    strategy: federation_options.Strategy = "fedavg"
    strategy_option: federation_options.StrategyOption = None
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds at most.", show_default="as pretraining.epochs says")
    ] = None
    local_epochs: federation_options.LocalEpochs = 1
    local_optimizer: federation_options.LocalOptimizer = "reset"
    fraction: federation_options.Fraction = 1.0
    quorum: federation_options.Quorum = 0.5
    largest_update: federation_options.LargestUpdate = 10.0
    transport: federation_options.Transport = "float32"
    changed_rows: federation_options.ChangedRows = False
    beside: Annotated[
        str, typer.Option(help="Run directories whose rows are shown beside, with commas.", show_default="none")
    ] = ""

    def settings(self) -> FederationSettings:
        """How the rounds are run, checked.

        Raises:
            TemptError: a value is out of type or bounds, or no strategy or option has that name.
        """
        from server.federation_settings import federation_settings

        return federation_settings(
            strategy=self.strategy,
            options=options.assignments(self.strategy_option or [], "--strategy-option", "proximal_mu=0.01"),
            rounds=self.rounds,
            local_epochs=self.local_epochs,
            local_optimizer=self.local_optimizer,
            fraction=self.fraction,
            quorum=self.quorum,
            largest_update=self.largest_update,
            transport=self.transport,
            changed_rows=self.changed_rows,
        )


@app.command("centralized")
@grouped
def _centralized(run: RunOptions, preparation: options.Preparation) -> None:
    """Pretrain on all hospitals in one place, tune for each, and print the table of results.

    Example: tempt simulate centralized --data eicu/ --seeds 42,43,44,45,46 --out runs/eicu
    """
    _print_run(_request("centralized", run, preparation))


@app.command("local")
@grouped
def _local(run: RunOptions, preparation: options.Preparation) -> None:
    """Let each hospital pretrain on its own records alone, tune, and print the table of results.

    Example: tempt simulate local --data eicu/ --models tempt --out runs/eicu-local
    """
    _print_run(_request("local", run, preparation))


@app.command("federated")
@grouped
def _federated(run: RunOptions, preparation: options.Preparation, federation: FederationOptions) -> None:
    """Pretrain in rounds in which hospitals send tensors and no record, tune, and print the table of results.

    Example: tempt simulate federated --data eicu/ --beside runs/eicu,runs/eicu-local --out runs/eicu-federated
    """
    request = replace(
        _request("federated", run, preparation),
        federation=federation.settings(),
        engine=federation.engine,
        ray_address=federation.ray_address,
        beside=tuple(map(Path, comma_lists.names("--beside", federation.beside))) if federation.beside else (),
    )
    _print_run(request)


def _request(mode: Mode, run: RunOptions, preparation: options.Preparation) -> Request:
    """What the command line asks for."""
    from sim.request import Request

    return Request(
        mode,
        data=run.data,
        out=run.out,
        models=tuple(comma_lists.names("--models", run.models)) if run.models else (),
        preset=run.preset,
        settings=options.assignments(run.set_ or []),
        seeds=tuple(comma_lists.numbers("--seeds", run.seeds, "42,43")),
        device=run.device,
        hospitals=tuple(comma_lists.numbers("--hospitals", run.hospitals, "101,102")) if run.hospitals else None,
        resume=run.resume,
        force=run.force,
        save_scores=run.save_scores,
        jobs=run.jobs,
        threads=run.threads,
        preparation=preparation.chosen(),
        command=("tempt", *sys.argv[1:]),
    )


def _print_run(request: Request) -> None:
    """Do what is asked for, and print the table of results."""
    from sim.display import Display
    from sim.results import table
    from sim.runs import run

    with Display() as display:
        results = run(request, display)
    tell(*table(results.content, results.beside))
    if request.mode == "federated":
        from sim.federated import rounds_table

        tell("", *rounds_table(results.content))
    tell(f"Everything is in {results.run}: results.json, history.jsonl, checkpoints/.")
