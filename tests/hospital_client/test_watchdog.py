"""A hospital's work ends in time: with an error where Python still runs, by SIGKILL where the process is stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from hospital_client import app
from hospital_client.app import HospitalConfig, make_app
from hospital_client.watchdog import TimeIsOver, time_limit
from server import exchange
from server.federation_settings import FederationSettings
from server.plain_message import plain_message
from shared_model.errors import HOSPITALS_ERROR
from shared_model.messages import Hello
from tests.sim import consortium
from tests.sim.consortium import environment


def test_work_that_takes_too_long_is_ended_and_what_was_set_before_is_set_again() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeIsOver), time_limit(0.05):
        while True:
            time.sleep(0.01)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    with time_limit(3600.0):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    with time_limit(0.0):
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_outside_of_the_main_thread_there_is_no_limit() -> None:
    done = []

    def work() -> None:
        with time_limit(0.01):
            time.sleep(0.05)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert done == [True]


def test_a_process_in_which_no_exception_gets_through_is_killed(tmp_path: Path) -> None:
    code = "import os, signal; from hospital_client import watchdog; watchdog._GRACE = 0.2\n"
    code += "with watchdog.time_limit(0.1): os.kill(os.getpid(), signal.SIGSTOP)"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(), cwd=tmp_path)
    assert process.wait(60) == -signal.SIGKILL


def test_the_watch_ends_with_its_process() -> None:
    code = "import os; from hospital_client.watchdog import time_limit\n"
    code += "with time_limit(3000):\n"
    code += "  print(open(f'/proc/self/task/{os.getpid()}/children').read(), flush=True); os._exit(0)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    (watch,) = done.stdout.split()
    until = time.monotonic() + 60
    while Path(f"/proc/{watch}/cmdline").exists() and Path(f"/proc/{watch}/cmdline").read_bytes():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_an_answer_that_takes_too_long_is_an_error_that_names_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    monkeypatch.setattr(app, "_partition", lambda place: time.sleep(60))
    plan = exchange.SeedPlan("test", 42, consortium.settings(), FederationSettings(timeout=0.5), consortium.VOCABULARY)
    message = plain_message(exchange.content_of(Hello(**plan.common()), {}), "query.hello")
    context = Context(run_id=0, node_id=1, node_config={}, state=RecordDict(), run_config={})
    reply = make_app(lambda context: HospitalConfig(data, 3, tmp_path))(message, context)
    assert reply.error.code == HOSPITALS_ERROR
    assert reply.error.reason is not None and reply.error.reason.startswith("TimeIsOver at ")


@pytest.mark.parametrize("asked", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_no_server_can_ask_a_deployed_hospital_for_work_without_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: float
) -> None:
    limits: list[float] = []

    @contextmanager
    def limit(seconds: float) -> Iterator[None]:
        limits.append(seconds)
        yield

    monkeypatch.setattr(app, "time_limit", limit)
    context = Context(run_id=0, node_id=8, node_config={}, state=RecordDict(), run_config={})
    for alone, seconds in ((True, asked), (True, 30.0), (False, 0.0)):
        place = HospitalConfig(tmp_path, 8, tmp_path, deployed=alone)
        settings = consortium.settings()
        request = Hello(limit=seconds, seed=42, experiment="x", settings=settings, vocabulary="f" * 64)
        content = exchange.content_of(request, {})
        make_app(lambda _, place=place: place)(plain_message(content, "query.hello", 8), context)  # type: ignore[misc]
    assert limits == [86_400, 30, 0], "a simulation needs none"
