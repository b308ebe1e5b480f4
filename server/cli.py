"""`tempt server`: what coordinates a federation's hospitals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server import options
from shared_model import begun, comma_lists
from shared_model.errors import TemptError
from shared_model.lines import say, tell

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The server of a federation.")


@app.callback()
def _group() -> None:
    """The server of a federation."""


@app.command("keys")
def keys(
    directory: Annotated[Path, typer.Argument(help="Where they are written.")],
    hospitals: Annotated[str, typer.Option(help="The hospitals' ids, with commas.")],
    hosts: Annotated[str, typer.Option(help="Names and addresses by which they reach the server.")] = "localhost",
    force: Annotated[bool, typer.Option("--force", help="Replace the folder, whole, that this command made.")] = False,
) -> None:
    """Make a test network's CA, the server's certificate, and a key for each hospital.

    Example: tempt server keys keys --hospitals 5,7 --hosts tempt.example.org
    """
    from server.keys import make_keys

    ids = comma_lists.numbers("--hospitals", hospitals, "5,7", least=1)
    make_keys(directory, comma_lists.names("--hosts", hosts), ids, force=force)
    begun.begin()
    whose = "1 hospital" if len(ids) == 1 else f"{len(ids)} hospitals"
    tell(f"Wrote keys for {whose} to {directory}; its README.txt says who gets what.")


@app.command("launch")
def launch(
    out: Annotated[Path, typer.Option(help="The run directory; an unfinished run there goes on.")],
    hospitals: Annotated[int, typer.Option(min=1, max=10_000, help="Hospitals to wait for at the start.")],
    keys: Annotated[Path | None, typer.Option(help="What `tempt server keys` made.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS and no keys, on the loopback alone.")] = False,
    vocabulary: Annotated[
        Path | None, typer.Option(help="A directory with vocabulary.json; without: hospitals with raw tables agree.")
    ] = None,
    minimum_count: Annotated[
        int | None,
        typer.Option(min=1, help="A code that fewer of a hospital's stays have is not named.", show_default="5"),
    ] = None,
    min_records: Annotated[int | None, typer.Option(min=1, help="As in `tempt prepare`.", show_default="400")] = None,
    top_medications: Annotated[
        int | None, typer.Option(min=1, help="As in `tempt prepare`.", show_default="300")
    ] = None,
    top_procedures: Annotated[
        int | None, typer.Option(min=1, help="As in `tempt prepare`.", show_default="1000")
    ] = None,
    host: Annotated[str, typer.Option(help="The address that hospitals reach.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = 8443,
    models: Annotated[
        str, typer.Option(help="What hospitals tune, such as finetune,tempt; a wrong name lists all.")
    ] = "tempt",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between them.")] = "42",
    set_: Annotated[list[str] | None, typer.Option("--set", help="FIELD=VALUE of a setting.")] = None,
    strategy: options.Strategy = "fedavg",
    strategy_option: options.StrategyOption = None,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds at most; 0: as pretraining.epochs says.")] = 0,
    local_epochs: options.LocalEpochs = 1,
    local_optimizer: options.LocalOptimizer = "reset",
    fraction: options.Fraction = 1.0,
    quorum: options.Quorum = 0.5,
    largest_update: options.LargestUpdate = 10.0,
    most_records: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Training records that one hospital counts with at most, whatever it says.",
            show_default="49% of all",
        ),
    ] = None,
    transport: options.Transport = "float32",
    changed_rows: options.ChangedRows = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a round waits for replies.")] = 3600.0,
    front: Annotated[bool, typer.Option(help="Run the front here; without: by `tempt server front`.")] = True,
) -> None:
    """Start the server's processes, run one federation to its end, and print its metrics.

    Example: tempt server launch --keys keys --vocabulary dataset --out run --hospitals 2
    """
    from server.launch import ServerPlace
    from server.launch import launch as run_to_the_end
    from shared_model.results import hospitals_measured

    comma_lists.names("--models", models)
    comma_lists.numbers("--seeds", seeds, "42,43")
    rules = {
        "minimum-count": minimum_count,
        "min-records": min_records,
        "top-medications": top_medications,
        "top-procedures": top_procedures,
    }
    rules = {name: value for name, value in rules.items() if value is not None}
    if vocabulary is not None and rules:
        raise TemptError(f"--{next(iter(rules))}: is of an agreement; leave it out, or --vocabulary")
    config = rules | {
        "vocabulary": "" if vocabulary is None else str(vocabulary.absolute()),
        "hospitals": hospitals,
        "models": models,
        "seeds": seeds,
        "set": " ".join(set_ or []),
        "strategy": strategy,
        "strategy-options": " ".join(strategy_option or []),
        "rounds": rounds,
        "local-epochs": local_epochs,
        "local-optimizer": local_optimizer,
        "fraction": fraction,
        "quorum": quorum,
        "largest-update": largest_update,
        "most-records": most_records or 0,
        "transport": transport,
        "changed-rows": changed_rows,
        "timeout": timeout,
    }
    if insecure == (keys is not None):
        raise TemptError("expected --keys DIR, or --insecure without keys on this machine's loopback")
    place = ServerPlace(keys, out, host, port, front and not insecure)
    content = run_to_the_end(place, config, say)
    for name, model in content["models"].items():
        measured, of = hospitals_measured(model), content["dataset"]["hospitals"]
        found = {metric: of_seeds["mean"] for metric, of_seeds in model["summary"].items()}
        means = ", ".join(f"{metric} {mean:.4f}" for metric, mean in found.items() if mean is not None)
        tell(f"{name}: {means or 'no metrics'} (of {measured} of {of} hospitals)")
    tell(f"Everything is in {out}: results.json, history.jsonl, checkpoints/.")


@app.command("front")
def front(
    keys: Annotated[Path, typer.Option(help="Has ca.pem, server.pem and server.key.")],
    link: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink: of `tempt server launch --no-front`.")],
    state: Annotated[Path, typer.Option(help="A folder of its own.")],
    facts: Annotated[Path | None, typer.Option(help="The server's OUT.server/told/facts.json.")] = None,
    host: Annotated[str, typer.Option(help="The address that hospitals reach.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = 8443,
) -> None:
    """Run the front by itself, on another machine or in another container than the server.

    Example: tempt server front --keys keys --link server:9091 --state front --host 0.0.0.0
    """
    from server.front import FrontPlace, launch_front

    place = FrontPlace(keys, state, facts if facts is not None else state / "facts.json", host, port, link)
    launch_front(place, say)


@app.command("register")
def register(
    run: Annotated[Path, typer.Argument(help="The server's --out.")],
    public_key: Annotated[Path, typer.Argument(help="The hospital's key.pub.")],
    hospital_id: Annotated[int, typer.Option(min=1, help="The hospital's id.")],
    replace: Annotated[bool, typer.Option("--replace", help="Take the hospital's older key out.")] = False,
) -> None:
    """Let another hospital take part in a network whose server runs.

    Example: tempt server register run hospital-9/key.pub --hospital-id 9
    """
    from server.network import Network

    network = Network.of_run(run)
    if network.register(public_key, hospital_id, replace=replace):
        network.republish()
        tell(f"Registered hospital {hospital_id}; it takes part from the next seed or run on.")
    else:
        tell(f"Hospital {hospital_id} is registered with this key already.")


@app.command("status")
def status(
    run: Annotated[Path, typer.Argument(help="The server's --out.")],
) -> None:
    """Print each hospital's state, last round, records, and what was missed and rejected.

    Example: tempt server status run
    """
    from server.network import Network, status_table

    running, rows, lines, ended = Network.of_run(run).status()
    if ended is not None:
        how = "well" if ended["status"] == 0 else f"with status {ended['status']}: {ended['error']}"
        tell(f"The run has ended {how}{f'; its table is in {run}/results.json' if ended['status'] == 0 else ''}.")
    else:
        tell("The server runs." if running else "The server does not run; this is what it last told.")
    tell(*status_table(rows))
    tell(*lines[-3:])
