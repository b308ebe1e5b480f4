"""SCAFFOLD's c is the mean of the hospitals' c_i, whatever hospitals and server lose: against an oracle that keeps all.

Hospitals train for real, so that c_i is what they keep: the mean gradient of the last update that was taken from them.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from hospital_client.app import HospitalConfig
from server import exchange, rounds
from server.contributions import forget_contributions
from server.federation_settings import FederationSettings
from shared_model import checkpoint
from shared_model.algorithms import scaffold
from shared_model.errors import TemptError
from shared_model.federated_algorithm import Arrays, State, Told, Unusable
from shared_model.fitting import PRETRAINING, FitFiles
from sim.inprocess_grid import InProcessGrid
from tests.server.federations import Clock, initial_tensors
from tests.sim import consortium

DATASET = consortium.make_dataset()
SETTINGS = consortium.settings(pretraining__epochs="20", pretraining__patience="99")
TRAIN = {3: 34, 8: 23, 21: 13, 34: 4}
ROUNDS = 7
LOST, DAMAGED, MISSED, LATE, RESUMED, UNSAVED = "lost", "damaged", "missed", "late", "resumed", "unsaved"
"""A hospital's disk, its file, its reply before it worked, its reply after; the server, with or without its round."""
Events = dict[int, list[tuple[str, int]]]


class Lossy(InProcessGrid):
    """Replies of these hospitals are lost, after or before they did their work."""

    late: set[int]
    missed: set[int]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        found = [m for m in messages if m.metadata.dst_node_id not in self.missed]
        return super().push_messages(found) if found else []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for reply in super().pull_messages(message_ids) if reply.metadata.src_node_id not in self.late]


class Run:
    """A federation whose server's c is looked at after each exchange."""

    def __init__(self, folder: Path, **federation: Any) -> None:
        self.folder = folder
        data = consortium.write_dataset(folder / "data", DATASET)
        options = FederationSettings(
            **{"strategy": "scaffold", "rounds": ROUNDS, "quorum": 0.25, "timeout": 30.0} | federation
        )
        self.plan = exchange.SeedPlan("x", 42, SETTINGS, options, DATASET.vocabulary, expected=4)
        self.grid = Lossy({h: HospitalConfig(data, h, folder) for h in TRAIN}, None)
        self.grid.late, self.grid.missed = set(), set()
        self.files = FitFiles.of(folder, 42, PRETRAINING, 0)
        self.files.partial.parent.mkdir(parents=True)
        self.hospitals, _ = exchange.greet(self.grid, self.plan)
        self.initial = initial_tensors(SETTINGS, DATASET, 42)
        self.state = self.new()
        self.oracle: dict[int, dict[str, np.ndarray]] = {}

    def new(self) -> rounds._Rounds:
        state = rounds._Rounds(self.plan, self.hospitals, self.initial, self.files)
        if self.files.partial.exists():
            state.restore(self.files.partial)
        return state

    def kept(self, hospital: int) -> Path:
        return self.folder / "kept" / "x" / "seed-42" / str(hospital)

    def round(self, events: list[tuple[str, int]]) -> None:
        """One round with these losses, each before it."""
        self.grid.late, self.grid.missed = set(), set()
        unsaved = False
        for what, hospital in events:
            if what == LOST:
                shutil.rmtree(self.kept(hospital), ignore_errors=True)
            elif what == DAMAGED:
                for path in self.kept(hospital).glob("*.safetensors"):
                    path.write_bytes(b"half")
            elif what == RESUMED:
                self.state = self.new()
            elif what == UNSAVED:
                unsaved = True
            else:
                (self.grid.late if what == LATE else self.grid.missed).add(hospital)
        number = self.state.progress.epoch + 1
        self.state.round(self.grid)
        if unsaved:  # the server ended before it had written its checkpoint: the round is done again
            self.state = self.new()
            number = self.state.progress.epoch + 1
            self.state.round(self.grid)
        self.state.save(self.files.partial)
        for hospital, part in self.state.parts.items():
            if part.taken[-1:] == [number]:
                tensors, _ = checkpoint.load(self.kept(hospital) / "pending.safetensors")
                names = {
                    n.removeprefix("control."): t.numpy().copy() for n, t in tensors.items() if n.startswith("control.")
                }
                self.oracle[hospital] = names

    def apart(self) -> float:
        """How far c is from the mean of the hospitals' c_i, as a share of it."""
        total = sum(TRAIN.values())
        off = size = 0.0
        for name, c in self.state.state["control"].items():
            mean = sum(of[name].astype(np.float64) * TRAIN[h] / total for h, of in self.oracle.items())
            off, size = off + float(((c - mean) ** 2).sum()), size + float((mean**2).sum())
        return (off / size) ** 0.5

    def c(self) -> dict[str, np.ndarray]:
        return self.state.state["control"]


def play(run: Run, events: Events, last: int = ROUNDS - 1) -> list[float]:
    found = []
    with pytest.MonkeyPatch.context() as patched:
        for module in (exchange, rounds):
            patched.setattr(module, "time", Clock())
        for number in range(1, last + 1):
            run.round(events.get(number, []))
            found.append(run.apart())
    return found


PATTERNS: dict[str, Events] = {
    "nothing": {},
    "disks and files, one hospital's again and again": {
        2: [(LOST, 3)],
        3: [(LOST, 3), (DAMAGED, 8)],
        5: [(DAMAGED, 3)],
    },
    "missed, then lost, and lost while it is away": {
        3: [(MISSED, 3), (LOST, 8), (MISSED, 8)],
        4: [(LOST, 3), (MISSED, 8)],
    },
    "replies that came too late, before and after a loss": {3: [(LATE, 3), (LOST, 8), (LATE, 8)], 4: [(LOST, 3)]},
    "a server that goes on, without its last round": {
        3: [(UNSAVED, 0)],
        4: [(LOST, 3), (UNSAVED, 0)],
        5: [(RESUMED, 0)],
    },
    "everybody": {3: [(LOST, h) for h in TRAIN], 4: [(RESUMED, 0)]},
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_c_is_the_mean_of_the_hospitals_control_variates_whatever_is_lost(tmp_path: Path, pattern: str) -> None:
    assert max(play(Run(tmp_path), PATTERNS[pattern])) < 1e-5


@pytest.mark.parametrize("seed", [1, 2])
def test_c_is_the_mean_of_the_hospitals_after_losses_of_chance(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    kinds = (LOST, DAMAGED, MISSED, LATE, RESUMED, UNSAVED)
    events = {
        n: [(draw.choice(kinds), draw.choice(list(TRAIN))) for _ in range(draw.randint(0, 3))] for n in range(2, 7)
    }
    assert max(play(Run(tmp_path, fraction=0.75), events)) < 1e-5, events


def test_c_is_the_mean_also_where_movements_travel_in_sixteen_bits(tmp_path: Path) -> None:
    """A hospital's c_i is what the server has of it, not what it would be without the rounding."""
    assert max(play(Run(tmp_path, transport="bfloat16"), {3: [(LOST, 3)], 5: [(LOST, 3)]})) < 1e-5


def test_a_hospital_says_that_its_state_is_new_only_where_the_server_took_one(tmp_path: Path) -> None:
    play(Run(tmp_path), {2: [(LOST, 3), (MISSED, 8)]}, last=3)
    for hospital, expected in ((3, [2]), (8, [])):
        lines = (tmp_path / "egress" / f"{hospital}.jsonl").read_text().splitlines()
        told = [json.loads(line) for line in lines]
        assert [line["round"] for line in told if "control-is-new" in line["numbers"]] == expected


def test_what_hospitals_contributed_is_kept_while_rounds_last_and_missed_in_one_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    play(run, {}, last=3)
    folder = run.files.tensors.with_suffix(".controls")
    assert {path.name for path in folder.iterdir()} == {f"{h}.{n}.safetensors" for h in TRAIN for n in (2, 3)}
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "3.3.safetensors").write_bytes(b"half")
    with pytest.raises(TemptError, match=r"damaged checkpoint .* delete .*partial\.safetensors too$"):
        run.state.round(run.grid)
    forget_contributions(run.files)
    assert not folder.exists()
    with pytest.raises(TemptError, match=r"3\.3\.safetensors: what hospital 3 has contributed .* delete .*partial"):
        run.new()  # as of a release that kept none


LARGEST = 10.0


def take(state: State, moved: float, share: float, before: Arrays | None, is_new: int) -> tuple[State, Arrays]:
    """A round of one hospital, whose c_i moves so far."""
    gathered = scaffold.gather(state)
    arrays = {name: np.full_like(array, moved) for name, array in state["control"].items()}
    told = Told(
        3,
        {"arrays": arrays, "control": arrays},
        {"control-is-new": is_new},
        0.5,
        1,
        share,
        before,
        {"control": LARGEST},
    )
    kept = scaffold.accept(gathered, told)
    return scaffold.finish(state, gathered, {}, 1, 0), kept


def test_a_movement_from_zero_takes_out_what_had_been_contributed() -> None:
    """By hand: 0.3 of c is a hospital's whose c_i goes 2, 5, then 1 from nothing."""
    state, before = scaffold.begin({"w": np.zeros(2, np.float32)}), None
    for moved, is_new, c in [(2, 0, 0.6), (3, 0, 1.5), (1, 1, 0.3), (4, 0, 1.5)]:
        state, before = take(state, moved, 0.3, before, is_new)
        assert state["control"]["w"] == pytest.approx([c, c], rel=1e-6)


def test_a_hospital_that_never_contributed_and_says_it_is_new_takes_nothing_out() -> None:
    state, _ = take(scaffold.begin({"w": np.zeros(1, np.float32)}), 1, 0.5, None, 1)
    assert state["control"]["w"].tolist() == [0.5]


def test_a_control_variate_that_grows_by_steps_is_refused_when_no_gradient_is_so_large() -> None:
    """Each movement is within the bound; what they add up to is not, and then nothing of it is taken."""
    state, before = take(scaffold.begin({"w": np.zeros(1, np.float32)}), 6, 0.5, None, 0)
    kept = {name: array.copy() for name, array in state["control"].items()}
    gathered = scaffold.gather(state)
    step = {"w": np.full(1, 6, np.float32)}
    told = Told(3, {"arrays": step, "control": step}, {"control-is-new": 0}, 0.5, 1, 0.5, before, {"control": LARGEST})
    with pytest.raises(Unusable, match="the control: its norm is 12 now, expected at most 10"):
        scaffold.accept(gathered, told)
    assert gathered.mean.weight == 0 and gathered.c["w"].tolist() == kept["w"].tolist()
    assert scaffold.accept(gathered, replace(told, numbers={"control-is-new": 1}))["w"].tolist() == [6.0]
