"""Units on a few processes: order, threads, reports; and what becomes of them when one fails or is killed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest
import torch

from shared_model.errors import TemptError
from sim.workers import Emit, Pool, run_units, usable_cores


@dataclass(frozen=True)
class Piece:
    name: str
    threads: int = 1
    needs: Piece | None = None


def work(unit: Piece, emit: Emit) -> dict[str, Any]:
    began = time.monotonic()
    if unit.name == "mistake":
        raise TemptError("the loss is nan; lower its learning_rate")
    if unit.name == "defect":
        raise ZeroDivisionError("of a unit")
    if unit.name == "full disk":
        raise OSError(errno.ENOSPC, "No space left on device", "/data/run")
    if unit.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    emit({"of": unit.name, "number": 1})
    emit({"of": unit.name, "number": 2})
    return {"pid": os.getpid(), "threads": torch.get_num_threads(), "span": (began, time.monotonic())}


def run(units: Sequence[Piece], jobs: int, done: set[Piece] | None = None) -> dict[str, Any]:
    """What was reported: each unit's result in the order of ending, and its events."""
    results: dict[str, Any] = {}
    events: list[tuple[str, int]] = []

    def on_event(unit: Piece, event: dict[str, Any]) -> None:
        assert event["of"] == unit.name
        events.append((unit.name, event["number"]))

    def on_done(unit: Piece, result: dict[str, Any]) -> None:
        results[unit.name] = result

    run_units(units, work, jobs=jobs, done=done if done is not None else set(), on_event=on_event, on_done=on_done)
    return {"results": results, "events": events}


FIRST = Piece("first", threads=2)
SECOND = Piece("second", needs=FIRST)


@pytest.fixture(autouse=True)
def _threads() -> Any:
    yield
    torch.set_num_threads(1)
    assert multiprocessing.active_children() == []


def test_units_with_one_job_run_here_each_after_the_one_it_needs() -> None:
    done: set[Piece] = {Piece("before")}
    units = [SECOND, Piece("before"), Piece("third", needs=Piece("before")), FIRST]
    found = run(units, 1, done)
    assert list(found["results"]) == ["third", "first", "second"]
    assert found["events"] == [(name, n) for name in ("third", "first", "second") for n in (1, 2)]
    assert {of["pid"] for of in found["results"].values()} == {os.getpid()}
    assert [of["threads"] for of in found["results"].values()] == [1, 2, 1]
    assert done == set(units)


def test_units_on_two_processes_keep_order_and_threads() -> None:
    """More units than processes; one of three threads has all to itself, one waits for the other."""
    units = [Piece("wide", threads=3), SECOND, FIRST, *(Piece(f"small {i}") for i in range(4))]
    found = run(units, 2)["results"]
    assert set(found) == {unit.name for unit in units}
    assert os.getpid() not in {of["pid"] for of in found.values()}
    assert len({of["pid"] for of in found.values()}) <= 2
    assert {name: of["threads"] for name, of in found.items() if of["threads"] > 1} == {"wide": 3, "first": 2}
    assert found["first"]["span"][1] <= found["second"]["span"][0]
    for one in units:
        a, b = found[one.name]["span"]
        beside = [of for of in units if of != one and found[of.name]["span"][0] < b and a < found[of.name]["span"][1]]
        assert min(one.threads, 2) + max([min(of.threads, 2) for of in beside], default=0) <= 2


@pytest.mark.parametrize("jobs", [1, 2])
def test_unit_with_a_mistake_of_the_user_ends_the_run_with_its_words(jobs: int) -> None:
    done: set[Piece] = set()
    with pytest.raises(TemptError, match=r"^the loss is nan; lower its learning_rate$"):
        run([Piece("fine"), Piece("mistake", needs=Piece("fine"))], jobs, done)
    assert done == {Piece("fine")}


def test_full_disk_in_a_worker_is_the_users_to_mend() -> None:
    with pytest.raises(
        TemptError, match=r"^/data/run: No space left on device; make room there, or name another place$"
    ):
        run([Piece("full disk"), Piece("one")], jobs=2)


def test_unit_with_a_defect_ends_the_run_with_its_trace() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in work.*ZeroDivisionError: of a unit"):
        run([Piece("defect")], 2)


def test_worker_that_is_killed_at_work_is_reported_with_a_way_on() -> None:
    with pytest.raises(TemptError, match=r"ended from outside \(status -9\).*--resume") as caught:
        run([Piece("killed")], 2)
    assert len(str(caught.value).splitlines()) == 1


def test_worker_that_is_killed_while_idle_is_reported_with_a_way_on() -> None:
    def on_done(unit: Piece, result: dict[str, Any]) -> None:
        os.kill(result["pid"], signal.SIGKILL)
        (process,) = multiprocessing.active_children() or [None]  # type: ignore[list-item]
        if process is not None:
            process.join()

    units = [Piece("fine"), Piece("after", needs=Piece("fine"))]
    with pytest.raises(TemptError, match=r"ended from outside \(status -9\).*--resume"):
        run_units(units, work, jobs=2, done=set(), on_event=lambda unit, event: None, on_done=on_done)


def test_usable_cores_are_those_of_this_process() -> None:
    assert usable_cores() == len(os.sched_getaffinity(0))


def test_the_first_worker_was_born_listening_to_ctrl_c() -> None:
    """multiprocessing starts a process of its own before the first worker, and unblocks the signal behind it."""
    tracker: Any = resource_tracker._resource_tracker
    tracker._stop()
    with Pool(work, 2) as pool:
        pool.start(Piece("one"))
        ((_, process),) = pool._processes.items()
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        blocked = next(int(line.split()[1], 16) for line in status if line.startswith("SigBlk"))
        assert blocked >> (signal.SIGINT - 1) & 1
