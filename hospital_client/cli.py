"""`tempt hospital`: one hospital of a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared_model.errors import TemptError
from shared_model.lines import say, tell

if TYPE_CHECKING:
    from hospital_client.launch import HospitalPlace

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="One hospital of a federation.")

Superlink = Annotated[str, typer.Option(help="HOST:PORT of the server.")]
Partition = Annotated[Path | None, typer.Option(help="A dataset directory with this hospital's records.")]
Raw = Annotated[Path | None, typer.Option(help="Or this hospital's own raw tables, and no other's.")]
HospitalId = Annotated[int, typer.Option(min=1, help="This hospital's id.")]
State = Annotated[Path, typer.Option(help="The hospital's own folder, in a run directory's layout.")]
RootCertificates = Annotated[Path | None, typer.Option(help="The CA that the server's certificate is of, PEM.")]
PrivateKey = Annotated[Path | None, typer.Option(help="This hospital's key, EC in OpenSSH's format.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="No TLS and no key: for a server on the loopback alone.")]
MinimumCount = Annotated[
    int, typer.Option(min=1, help="Codes that fewer stays have are never named, whatever the server asks for.")
]


@app.callback()
def _group() -> None:
    """One hospital of a federation."""


@app.command("launch")
def launch(
    superlink: Superlink,
    hospital_id: HospitalId,
    state: State,
    partition: Partition = None,
    raw: Raw = None,
    root_certificates: RootCertificates = None,
    private_key: PrivateKey = None,
    insecure: Insecure = False,
    minimum_count: MinimumCount = 5,
) -> None:
    """Take part in a federation with this hospital's own records until the process is ended.

    Example: tempt hospital launch --superlink server:8443 --partition dataset --hospital-id 5 --state state --root-certificates ca.pem --private-key key
    """  # noqa: E501
    from hospital_client.launch import launch as keep_running

    place = _place(
        superlink, partition, raw, hospital_id, state, root_certificates, private_key, insecure, minimum_count
    )
    keep_running(place, say)


@app.command("check")
def check(
    superlink: Superlink,
    hospital_id: HospitalId,
    state: State,
    partition: Partition = None,
    raw: Raw = None,
    root_certificates: RootCertificates = None,
    private_key: PrivateKey = None,
    insecure: Insecure = False,
    minimum_count: MinimumCount = 5,
) -> None:
    """Look at everything that `tempt hospital launch` with the same options needs, and say what to mend.

    Example: tempt hospital check --superlink server:8443 --partition dataset --hospital-id 5 --state state --root-certificates ca.pem --private-key key
    """  # noqa: E501
    from hospital_client.check import look

    place = _place(
        superlink, partition, raw, hospital_id, state, root_certificates, private_key, insecure, minimum_count
    )
    troubles = 0
    for finding in look(place):
        how = "skipped" if finding.skipped else "ok" if finding.well else "WRONG"
        tell(f"{f'{how:<6} {finding.what}':<20} {finding.found}")
        if finding.mend:
            tell(f"{'':<21}-> {finding.mend}")
        troubles += not finding.well
    if troubles:
        raise typer.Exit(2)
    tell(f"Hospital {hospital_id} can be launched with these options.")


def _place(
    superlink: str,
    partition: Path | None,
    raw: Path | None,
    hospital: int,
    state: Path,
    root_certificates: Path | None,
    private_key: Path | None,
    insecure: bool,
    minimum_count: int,
) -> HospitalPlace:
    from hospital_client.launch import HospitalPlace

    own = partition if partition is not None else raw
    if own is None or (partition is not None and raw is not None):
        raise TemptError("expected one of --partition (prepared records) and --raw (raw tables)")
    if insecure and (root_certificates or private_key):
        raise TemptError("--insecure: leave out --root-certificates and --private-key, which it makes no use of")
    if not insecure and root_certificates is None and private_key is None:
        raise TemptError("expected --root-certificates and --private-key, or --insecure for a server on this machine")
    is_raw = raw is not None
    return HospitalPlace(superlink, own, hospital, state, root_certificates, private_key, is_raw, minimum_count)
