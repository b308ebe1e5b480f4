"""`tempt hospital`: one hospital of a deployment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shared_model.errors import TemptError

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="One hospital of a federation.")


@app.callback()
def _group() -> None:
    """One hospital of a federation."""


@app.command("launch")
def launch(
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the server.")],
    hospital_id: Annotated[int, typer.Option(min=1, help="This hospital's id.")],
    state: Annotated[Path, typer.Option(help="The hospital's own folder, in a run directory's layout.")],
    root_certificates: Annotated[Path, typer.Option(help="The CA that the server's certificate is of, PEM.")],
    private_key: Annotated[Path, typer.Option(help="This hospital's key, EC in OpenSSH's format.")],
    partition: Annotated[Path | None, typer.Option(help="A dataset directory with this hospital's records.")] = None,
    raw: Annotated[Path | None, typer.Option(help="Or this hospital's own raw tables, and no other's.")] = None,
    minimum_count: Annotated[
        int, typer.Option(min=1, help="Codes that fewer stays have are never named, whatever the server asks for.")
    ] = 1,
) -> None:
    """Take part in a federation with this hospital's own records until the process is ended.

    Example: tempt hospital launch --superlink server:8443 --partition dataset --hospital-id 5 --state state --root-certificates ca.pem --private-key key
    """  # noqa: E501
    from hospital_client.launch import HospitalPlace
    from hospital_client.launch import launch as keep_running

    own = partition if partition is not None else raw
    if own is None or (partition is not None and raw is not None):
        raise TemptError("expected one of --partition (prepared records) and --raw (raw tables)")
    place = HospitalPlace(
        superlink, own, hospital_id, state, root_certificates, private_key, raw is not None, minimum_count
    )
    keep_running(place, lambda line: print(line, file=sys.stderr, flush=True))
