"""The two ways to play every hospital, in process or on Ray: each gives the server's phases a Flower Grid."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Literal

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from hospital_client.app import HospitalConfig, make_app
from shared_model.errors import TemptError, unknown
from sim.inprocess_grid import InProcessGrid, deliver
from sim.workers import Pool

Engine = Literal["inprocess", "ray"]
ENGINES = ("inprocess", "ray")
Work = Callable[[Grid], None]


def check_engine(engine: str, ray_address: str | None) -> None:
    """Refuse an engine that there is not, or that is not installed.

    Raises:
        TemptError: there is no such engine, or it takes no address.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if ray_address is not None and engine != "ray":
        raise TemptError(f"--ray-address {ray_address}: goes with --engine ray")
    if engine == "ray":
        if ray_address is None:
            _ask_for_a_token()
        try:
            import ray  # noqa: F401
        except ImportError:
            raise TemptError("--engine ray: Ray is not installed; pip install 'tempt[ray]'") from None
    if ray_address is not None:
        _check_address(ray_address)


def _ask_for_a_token() -> None:
    """Let the cluster that Ray starts for this command be this command's alone.

    It listens on the network, too, and who joins it runs code. Ray reads this when it is imported.
    """
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _check_address(address: str) -> None:
    """Refuse a cluster where nobody answers: Ray itself tries for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # "auto", or a name that Ray knows
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise TemptError(
            f"--ray-address {address}: nobody answers there ({error}); start a cluster with `ray start --head`"
        ) from None


def play(engine: str, places: Sequence[HospitalConfig], work: Work, jobs: int, ray_address: str | None) -> None:
    """Do the server's work on a Grid of these hospitals.

    Args:
        jobs: threads in all; as many hospitals work at once as they are enough for.
    """
    # It tells every round what we tell ourselves, and that what Flower 1.41 has is on its way out
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if engine == "ray":
        _on_ray(places, work, jobs, ray_address)
        return
    at_once = jobs // _threads(places)
    with ExitStack() as stack:
        pool = stack.enter_context(Pool(deliver, at_once)) if at_once > 1 else None
        work(InProcessGrid({place.hospital: place for place in places}, pool))


def _threads(places: Sequence[HospitalConfig]) -> int:
    """Of a hospital at work."""
    return max(place.threads for place in places)


def _on_ray(places: Sequence[HospitalConfig], work: Work, jobs: int, ray_address: str | None) -> None:
    for name in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    from flwr.simulation import run_simulation

    server = ServerApp()
    failed: list[BaseException] = []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            work(grid)
        except BaseException as error:  # Flower would tell it as its own
            failed.append(error)

    def place_of(context: Context) -> HospitalConfig:
        return places[int(context.node_config["partition-id"])]

    init: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    init |= {"address": ray_address} if ray_address is not None else {"num_cpus": jobs, "include_dashboard": False}
    try:
        run_simulation(
            server_app=server,
            client_app=make_app(place_of),
            num_supernodes=len(places),
            backend_config={"init_args": init, "client_resources": {"num_cpus": _threads(places), "num_gpus": 0.0}},
        )
    except RuntimeError as error:
        if not failed:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise TemptError(f"--engine ray: Ray could not do the work: {reason}") from error
    if failed:
        raise failed[0]
