"""One new file and nothing else: a federated algorithm of two exchanges a round that sums gradients, on its own path.

It runs by its name through the command, its options, the ledger, a deployed hospital's policy, a resumption in the
middle of a round, and both engines; what it ends in is held to the plain loop over all hospitals' records.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message

import shared_model.algorithms
from hospital_client.local_pretraining import LocalPretraining, LocalWork
from hospital_client.partition import read_partition
from server.rounds import _Rounds
from shared_model import checkpoint
from shared_model.algorithms import algorithms
from shared_model.files import read_json
from shared_model.pretrainings.tempt import PretrainingNetwork
from sim.cli import run as tempt
from tests.server.federations import initial_tensors
from tests.server.test_rounds import INITIAL, Made, rising
from tests.server.test_rounds import run as run_made
from tests.server.test_rounds import tensors as made_tensors
from tests.sim import consortium
from tests.sim.command import mistake
from tests.sim.consortium import assert_same, assigned, fingerprint

FOLDER = Path(__file__).parent / "new_algorithms"
NAME = "extra-gradient-2"
PUT_THERE = f"import shared_model.algorithms\nshared_model.algorithms.__path__.append({str(FOLDER)!r})\n"
ROUNDS = 2
LAST: dict[str, np.ndarray] = {}
"""The last round's tensors of `run`, whichever round was the best."""


@pytest.fixture(scope="module", autouse=True)
def _put_there() -> Iterator[None]:
    shared_model.algorithms.__path__.append(str(FOLDER))
    algorithms.cache_clear()
    yield
    shared_model.algorithms.__path__.remove(str(FOLDER))
    algorithms.cache_clear()
    sys.modules.pop(f"shared_model.algorithms.{NAME.replace('-', '_')}", None)


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--data", str(data), "--out", str(out), "--seeds", "42", "--jobs", "1", "--models", "finetune-freeze"]
    return [
        *("simulate", "federated", *fixed, "--strategy", NAME, "--rounds", str(ROUNDS)),
        *("--strategy-option", "eta=0.5", *assigned(), *more),
    ]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, save = tmp_path_factory.mktemp("new") / "run", _Rounds.save

    def kept(state: _Rounds, path: Path) -> None:
        save(state, path)
        LAST.update(state.current)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_Rounds, "save", kept)
        assert tempt(arguments(data, out)) == 0
    return out


def test_it_ends_in_the_tensors_of_the_plain_loop(data: Path, run: Path) -> None:
    dataset, settings = consortium.make_dataset(), consortium.settings()
    partitions = [read_partition(data, hospital) for hospital in consortium.SIZES]
    network = PretrainingNetwork(settings.encoder, partitions[0].rows, torch.Generator().manual_seed(0))
    hospitals = [LocalPretraining(partition, network, settings.pretraining, 42) for partition in partitions]
    now = {name: torch.from_numpy(array.copy()) for name, array in initial_tensors(settings, dataset, 42).items()}

    def stepped(at: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in now.items()}
        records = 0
        for hospital in hospitals:
            begun = hospital.begin(at, LocalWork(1, 1, 1))
            for parameter in begun.parameters.values():
                parameter.grad = None
            begun.task.loss(torch.arange(hospital.records), torch.Generator().manual_seed(7)).backward()
            for name, parameter in begun.parameters.items():
                total[name] += 0 if parameter.grad is None else parameter.grad.double() * hospital.records
            records += hospital.records
        return {name: tensor - 0.5 * (total[name] / records).float() for name, tensor in now.items()}

    for _ in range(ROUNDS):
        now = stepped(stepped(now))
    assert sorted(LAST) == sorted(now)
    for name, tensor in now.items():
        assert LAST[name] == pytest.approx(tensor.numpy(), abs=1e-6), name


def test_a_round_has_two_exchanges_and_no_weights_come_back(run: Path) -> None:
    about = read_json(run / "results.json")["federation"]["seeds"]["42"]
    assert about["rounds"] == ROUNDS
    assert {h: part["taken"] for h, part in about["hospitals"].items()} == {str(h): [1, 2] for h in consortium.SIZES}
    lines = [json.loads(line) for line in (run / "egress" / "8.jsonl").read_text().splitlines()]
    told = [(line["round"], "score-sum" in line["numbers"], len(line["arrays"]) > 0) for line in lines[1:-1]]
    assert told == [(1, False, True), (1, False, True), (2, True, True), (2, False, True), (3, True, False)]
    assert all(name.startswith("gradient/") for line in lines for name in line["arrays"])


def without_ledgers(run: Path) -> dict[str, Any]:
    """A run's fingerprint; a ledger has a second greeting where the run was resumed."""
    return {name: content for name, content in fingerprint(run).items() if not name.startswith("egress")}


@pytest.mark.parametrize("after", [1, 2, 3])
def test_it_goes_on_to_the_same_bits_from_the_middle_of_a_round(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out, saved, save = tmp_path / "run", 0, _Rounds.save

    def interrupt(state: _Rounds, path: Path) -> None:
        nonlocal saved
        save(state, path)
        saved += 1
        if saved == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(_Rounds, "save", interrupt)
    assert tempt(arguments(data, out)) == 130
    assert tempt([*arguments(data, out), "--resume"]) == 0
    found, expected = (
        {name: content for name, content in fingerprint(of).items() if not name.startswith("egress")}
        for of in (out, run)
    )  # a ledger has a second greeting
    assert_same(found, expected)


def test_options_of_it_are_bound(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = mistake(capsys, [*arguments(data, tmp_path / "run"), "--strategy-option", "seed=0.5"])
    assert "option seed=0.5 of extra-gradient-2: expected a whole number" in line


class Failing(Made):
    """Gradients of one; in the second exchange of round 2 no hospital makes a number, until the first is done again."""

    def _answer(self, message: Message) -> Message:
        config = message.content.config_records["config"]
        if not config["train"]:
            return super()._answer(message)
        hospital, exchange = message.metadata.dst_node_id, (config["round"], config["exchange"])
        self.asked.setdefault(exchange, []).append(hospital)
        if exchange == (2, 1) and len(self.asked[2, 0]) == 3:
            return Message(Error(100, "FloatingPointError at loss.py:1"), reply_to=message)
        reply = super()._answer(message)
        arrays = {name: Array(np.ones_like(array)) for name, array in INITIAL.items()}
        del reply.content["arrays"]
        reply.content["gradient"] = ArrayRecord(arrays)
        return reply

    asked: dict[tuple[Any, Any], list[int]]


def test_an_exchange_in_the_middle_of_a_round_is_done_again_without_its_heaviest_answer(tmp_path: Path) -> None:
    """Node 3 is hospital 21, of 60 of 100 records: what came of the first exchange of round 2 is put on its answer."""
    grid = Failing(lambda hospital, number: 0.0, rising)
    grid.asked = {}
    result = run_made(tmp_path, grid, strategy=NAME, options={"eta": 0.25})
    assert {exchange: len(nodes) for exchange, nodes in grid.asked.items()} == {
        **{(1, 0): 3, (1, 1): 3, (2, 0): 5, (2, 1): 5, (3, 0): 3, (3, 1): 3}
    }
    assert result["hospitals"]["21"]["taken"] == [1, 3] and result["hospitals"]["3"]["taken"] == [1, 2, 3]
    (reason,) = (why for why in result["hospitals"]["21"]["rejected"] if "heaviest" in why)
    assert reason.startswith("round 2: its tensors made no numbers in round 2, and this update was the heaviest")
    assert [row["step"] for row in result["history"]] == sorted({row["step"] for row in result["history"]})
    for name, array in made_tensors(tmp_path).items():
        assert array == pytest.approx(INITIAL[name] - 3 * 0.25)


ASKED = f"""
{PUT_THERE}
import sys
from pathlib import Path
from hospital_client.app import HospitalConfig
from hospital_client.policy import Policy, text_of
from tests.hospital_client.policies import write_policy
from tests.hospital_client.test_admission import refusal, sent
place = HospitalConfig(Path(sys.argv[1]), 3, Path(sys.argv[2]), deployed=True)
print([line for line in text_of(Policy()).splitlines() if line.startswith("draw")])
for draw in (7.0, 10.0):
    print(refusal(sent(place, "pretrain", algorithm="{NAME}", **{{"asked.draw": draw}})))
write_policy(place.folder, "unmasked_sums = true")
print(sorted(sent(place, "pretrain", algorithm="{NAME}", **{{"asked.draw": 7.0}}).content.array_records))
"""


def test_a_deployed_hospitals_policy_knows_its_numbers_and_its_sums(data: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", ASKED, str(data), str(tmp_path / "state")]
    done = subprocess.run(words, capture_output=True, text=True, env=consortium.environment(), check=False)
    assert done.stdout.splitlines() == [
        "['draw = [0, 9]']",
        f"refused by policy: unmasked_sums is false, and the strategy {NAME} asks for sums of gradients",
        "refused by policy: rounds.draw is 10, accepted 0 to 9",
        "['gradient']",
    ], done.stderr


@pytest.mark.slow
def test_it_gives_the_same_tensors_on_ray(data: Path, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(PUT_THERE)
    environment = consortium.environment()
    environment["PYTHONPATH"] = f"{folder}:{environment['PYTHONPATH']}"
    words = consortium.command(*arguments(data, tmp_path / "ray", "--engine", "ray"))
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    path = Path("checkpoints") / "seed-42" / "pretraining.safetensors"
    found, expected = (checkpoint.load(folder / path)[0] for folder in (tmp_path / "ray", run))
    assert all(np.array_equal(found[name].numpy(), expected[name].numpy()) for name in expected)
