"""How many hospitals work at once: `--jobs` is threads in all, whichever engine plays them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flwr.simulation
import pytest
import torch

from hospital_client.app import HospitalConfig
from sim import engines
from sim.commands import simulate
from sim.request import Resolved
from sim.workers import usable_cores
from tests.sim import consortium


def places(threads: int) -> list[HospitalConfig]:
    return [HospitalConfig(Path("data"), hospital, Path("run"), "cpu", threads) for hospital in (3, 8, 21, 34)]


@pytest.mark.parametrize(
    ("jobs", "threads", "at_once"), [(1, 1, 1), (2, 1, 2), (2, 2, 1), (3, 2, 1), (4, 2, 2), (7, 3, 2), (64, 1, 64)]
)
def test_hospitals_that_work_at_once_have_no_more_threads_than_jobs(
    monkeypatch: pytest.MonkeyPatch, jobs: int, threads: int, at_once: int
) -> None:
    pools: list[int] = []

    class Pool:
        def __init__(self, work: Any, jobs: int) -> None:
            pools.append(jobs)

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(engines, "Pool", Pool)
    engines.play("inprocess", places(threads), lambda grid: None, jobs, None)
    assert pools == ([at_once] if at_once > 1 else [])  # one hospital at a time needs no other process

    asked: dict[str, Any] = {}
    monkeypatch.setattr(flwr.simulation, "run_simulation", lambda **options: asked.update(options))
    engines.play("ray", places(threads), lambda grid: None, jobs, None)
    backend = asked["backend_config"]
    assert backend["init_args"]["num_cpus"] // backend["client_resources"]["num_cpus"] == at_once


@pytest.mark.parametrize(
    ("jobs", "threads", "expected"), [(None, 1, usable_cores()), (None, 2000, 2000), (3, 2, 3), (5000, 1, 5000)]
)
def test_jobs_without_a_choice_are_the_cores_and_no_fewer_than_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jobs: int | None, threads: int, expected: int
) -> None:
    """A run that was begun with many threads can be gone on with on a small machine: threads are part of its bits."""
    data = consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    found: list[tuple[int, int]] = []

    class Stop(Exception):
        pass

    def stop(asked: Resolved, *_: object) -> None:
        found.append((asked.jobs, asked.request.threads))
        raise Stop

    monkeypatch.setattr("sim.centralized.simulate", stop)
    options = ["--data", str(data), "--out", str(tmp_path / "run"), "--device", "cpu", "--threads", str(threads)]
    with pytest.raises(Stop):
        simulate.app(["centralized", *options, *([] if jobs is None else ["--jobs", str(jobs)])], standalone_mode=False)
    assert found == [(expected, threads)]


def test_federation_with_two_threads_in_all_runs_its_hospitals_one_by_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from sim import inprocess_grid
    from sim.cli import run as tempt

    seen: list[tuple[int, int]] = []
    deliver = inprocess_grid.deliver

    def watched(delivery: Any, emit: Any = None) -> Any:
        reply = deliver(delivery)
        seen.append((delivery.place.hospital, torch.get_num_threads()))
        return reply

    def no_pool(*_: object) -> None:
        raise AssertionError("a second hospital would begin beside the first")

    monkeypatch.setattr(inprocess_grid, "deliver", watched)
    monkeypatch.setattr(engines, "Pool", no_pool)
    data = consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    options = ["--data", str(data), "--out", str(tmp_path / "run"), "--models", "finetune-freeze", "--rounds", "1"]
    try:
        threads = ["--jobs", "2", "--threads", "2"]
        assert tempt(["simulate", "federated", *options, *threads, *consortium.assigned()]) == 0
    finally:
        torch.set_num_threads(1)
    assert {hospital for hospital, _ in seen} == set(consortium.SIZES)
    assert {threads for _, threads in seen} == {2}
