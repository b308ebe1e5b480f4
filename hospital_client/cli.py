"""`tempt hospital`: one hospital of a deployment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="One hospital of a federation.")


@app.callback()
def _group() -> None:
    """One hospital of a federation."""


@app.command("launch")
def launch(
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the server.")],
    partition: Annotated[Path, typer.Option(help="A dataset directory with this hospital's records.")],
    hospital_id: Annotated[int, typer.Option(min=1, help="This hospital's id.")],
    state: Annotated[Path, typer.Option(help="The hospital's own folder, in a run directory's layout.")],
    root_certificates: Annotated[Path, typer.Option(help="The CA that the server's certificate is of, PEM.")],
    private_key: Annotated[Path, typer.Option(help="This hospital's key, EC in OpenSSH's format.")],
) -> None:
    """Take part in a federation with this hospital's own records until the process is ended.

    Example: tempt hospital launch --superlink server:8443 --partition dataset --hospital-id 5 --state state --root-certificates ca.pem --private-key key
    """  # noqa: E501
    from hospital_client.launch import HospitalPlace
    from hospital_client.launch import launch as keep_running

    place = HospitalPlace(superlink, partition, hospital_id, state, root_certificates, private_key)
    keep_running(place, lambda line: print(line, file=sys.stderr, flush=True))
