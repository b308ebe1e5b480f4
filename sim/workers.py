"""Independent units of work on a few processes, each with threads of its own.

Many operators of a small model are too small for two threads; independent units in processes of one thread use every
core. A worker dies with its parent, whatever ends the parent, and takes no signal from the terminal itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

import torch

from shared_model.errors import Defect, TemptError, of_the_system


class Threaded(Protocol):
    """A piece of work: how many threads it takes."""

    @property
    def threads(self) -> int: ...


class Unit(Threaded, Protocol):
    """A piece of work of which another may need to be done before it."""

    @property
    def needs(self) -> Any | None: ...


U = TypeVar("U", bound=Unit)
Emit = Callable[[dict[str, Any]], None]
Work = Callable[[Any, Emit], Any]
"""A unit's work, given the unit and a function that reports on the way; a module's function, as it is sent by name."""


def run_units(
    units: Iterable[U],
    work: Work,
    *,
    jobs: int,
    done: set[U],
    on_event: Callable[[U, dict[str, Any]], None],
    on_done: Callable[[U, Any], None],
) -> None:
    """Do every unit that is not done yet, each after the one it needs, in the order given where there is a choice.

    Args:
        jobs: threads in all; a unit with more takes them all. With 1, everything runs in this process.
        done: what need not be done; what gets done is added.

    Raises:
        TemptError: a unit's own, or a worker process died.
    """
    left = [unit for unit in units if unit not in done]
    if jobs == 1:
        while left:
            unit = next(unit for unit in left if unit.needs is None or unit.needs in done)
            left.remove(unit)
            torch.set_num_threads(unit.threads)
            result = work(unit, lambda event, unit=unit: on_event(unit, event))  # type: ignore[misc]
            done.add(unit)
            on_done(unit, result)
        return
    with Pool(work, jobs) as pool:
        busy: dict[Connection, U] = {}
        while left or busy:
            free = jobs - sum(min(unit.threads, jobs) for unit in busy.values())
            for unit in list(left) if free else ():
                if min(unit.threads, jobs) > free:
                    break
                if unit.needs is None or unit.needs in done:
                    left.remove(unit)
                    free -= min(unit.threads, jobs)
                    busy[pool.start(unit)] = unit
            if not busy:
                raise RuntimeError(f"{left[0]} needs a unit that is neither done nor to be done")
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                kind, content = pool.receive(connection)
                unit = busy[connection]
                if kind == "event":
                    on_event(unit, content)
                elif kind == "done":
                    pool.idle.append(connection)
                    del busy[connection]
                    done.add(unit)
                    on_done(unit, content)
                elif kind == "mistake":
                    raise TemptError(content)
                else:
                    raise Defect(f"a worker process failed:\n{content}")


class Pool:
    """Worker processes, started when first needed and ended when the block ends."""

    def __init__(self, work: Work, jobs: int) -> None:
        self._work, self.jobs = work, jobs
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[Connection, Any] = {}
        self.idle: list[Connection] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for connection, process in self._processes.items():
            process.kill()
            process.join()
            connection.close()

    def start(self, unit: Threaded) -> Connection:
        if not self.idle:
            here, there = self._context.Pipe()
            process = self._context.Process(target=_worker, args=(there, self._work), daemon=True)
            # A worker is born deaf to Ctrl-C: it takes seconds to import torch before it could say so itself
            resource_tracker.ensure_running()  # it unblocks the signal when it starts, which is with the first worker
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            there.close()
            self._processes[here] = process
            self.idle.append(here)
        connection = self.idle.pop()
        try:
            connection.send(unit)
        except (BrokenPipeError, ConnectionResetError):
            raise self._ended(connection) from None
        return connection

    def receive(self, connection: Connection) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = connection.recv()
            return message
        except (EOFError, ConnectionResetError):
            raise self._ended(connection) from None

    def _ended(self, connection: Connection) -> TemptError:
        process = self._processes[connection]
        process.join()
        return TemptError(
            f"a worker process was ended from outside (status {process.exitcode}), perhaps for want of memory; "
            "go on with --resume and fewer --jobs"
        )


def _worker(connection: Connection, work: Work) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            unit = connection.recv()
        except EOFError:
            return
        torch.set_num_threads(unit.threads)
        try:
            message = ("done", work(unit, lambda event: connection.send(("event", event))))
        except TemptError as error:
            message = ("mistake", str(error))
        except OSError as error:
            mistake = of_the_system(error)
            message = ("mistake", str(mistake)) if mistake else ("defect", traceback.format_exc())
        except BaseException:
            message = ("defect", traceback.format_exc())
        connection.send(message)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def usable_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
