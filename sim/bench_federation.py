"""What a federation costs beside its local training, at the paper's model size.

    python -m sim.bench_federation            80 and 1,000 hospitals, engine inprocess; some 15 minutes on an idle core
    python -m sim.bench_federation --ray      also a round of 80 hospitals on Ray
    python -m sim.bench_federation --quick    does it run? a few hospitals of a few records

In one process and one run: the local training of every round in a plain loop, then the same rounds through messages,
validation, averaging, ledgers and checkpoints. Seconds pass or fail nothing; the exit status is 1 only if both do not
end in the same tensors.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Before torch is imported, as in sim/cli.py
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np
import torch
from flwr.serverapp import Grid

from hospital_client.app import HospitalConfig
from hospital_client.local_pretraining import LocalPretraining, LocalWork
from hospital_client.partition import read_partition
from server import exchange, rounds
from server.federation import Federation
from server.federation_settings import FederationSettings
from shared_model import checkpoint
from shared_model.federated_algorithm import Arrays
from shared_model.files import write_json
from shared_model.fitting import PRETRAINING, FitFiles
from shared_model.lines import say, tell
from shared_model.pretrainings.tempt import PretrainingNetwork
from shared_model.records import RecordSet, write_records
from shared_model.settings import Settings
from shared_model.vocabulary import Vocabulary, write_vocabulary
from sim.bench import MEDICATIONS, ROWS, SEED, made_up_records
from sim.engines import play

VOCABULARY = Vocabulary(
    diagnoses=tuple(f"d{i}" for i in range(ROWS.diagnoses)),
    procedures=tuple(f"p{i}" for i in range(ROWS.procedures)),
    medications=tuple(range(900_001, 900_001 + MEDICATIONS)),
    medication_names=tuple(f"drug {i}" for i in range(MEDICATIONS)),
)
SETTINGS = Settings()
_ROUNDS = 2
_LARGEST_DIFFERENCE = 1e-6


class Row(NamedTuple):
    """A federation's measurement; seconds of all rounds, memory in MiB after the first and after the last."""

    engine: str
    hospitals: int
    records: int
    plain: float
    federated: float
    after_first: float
    after_last: float


def make_partitions(directory: Path, pool: RecordSet, hospitals: int, records: int) -> None:
    """A dataset directory of hospitals that each have `records` of the pool's records, drawn with replacement."""
    draws = torch.Generator().manual_seed(SEED)
    directory.mkdir()
    write_vocabulary(directory / "vocabulary.json", VOCABULARY)
    write_json(directory / "dataset.json", {"format": 1, "options": {}})
    for hospital in range(1, hospitals + 1):
        own = pool.select(torch.randint(len(pool), (records,), generator=draws))
        stay = torch.arange(records) + hospital * 100_000
        folder = directory / "hospitals" / str(hospital)
        folder.mkdir(parents=True)
        own = RecordSet(torch.full_like(stay, hospital), stay, stay, own.diagnoses, own.procedures, own.medications)
        write_records(folder / "records.parquet", own)


def plain_loop(data: Path, hospitals: Sequence[int], initial: Arrays) -> tuple[float, Arrays]:
    """Seconds of the local training alone, and the tensors that its weighted means end in."""
    network = PretrainingNetwork(SETTINGS.encoder, ROWS, torch.Generator().manual_seed(0))
    current = {name: torch.from_numpy(array) for name, array in initial.items()}

    def local_of(hospital: int) -> LocalPretraining:
        return LocalPretraining(read_partition(data, hospital), network, SETTINGS.pretraining, SEED)

    local_of(hospitals[0]).begin(current, LocalWork(1, 1, hospitals[0])).epochs()  # a process's first step is nobody's
    began = time.perf_counter()
    locals_ = [local_of(hospital) for hospital in hospitals]
    seconds = time.perf_counter() - began
    for number in range(1, _ROUNDS + 2):
        total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in current.items()}
        weight = 0
        for hospital, local in zip(hospitals, locals_, strict=True):
            began = time.perf_counter()
            if number > 1:
                local.score_sum(current)
            update = None
            if number <= _ROUNDS:
                begun = local.begin(current, LocalWork(number, 1, hospital))
                begun.epochs()
                update = begun.tensors()
            seconds += time.perf_counter() - began
            if update is not None:
                weight += local.records
                for name, tensor in update.items():
                    total[name] += tensor.double() * local.records
        if number <= _ROUNDS:
            current = {name: (tensor / weight).float() for name, tensor in total.items()}
    return seconds, {name: tensor.numpy() for name, tensor in current.items()}


def measure(engine: str, hospitals: int, records: int, pool: RecordSet, folder: Path) -> tuple[Row, float]:
    """A row, and the largest difference between both ways' tensors."""
    data, run = folder / "data", folder / "run"
    make_partitions(data, pool, hospitals, records)
    federation = FederationSettings(rounds=_ROUNDS)
    whole = Federation(run, VOCABULARY, SETTINGS, federation, (), False, hospitals, hospitals)
    ids = list(range(1, hospitals + 1))
    torch.set_num_threads(1)
    plain, expected = plain_loop(data, ids, whole.initial(SEED))
    memory: list[float] = []
    seconds = 0.0
    files = FitFiles.of(run, SEED, PRETRAINING, 0)

    def work(grid: Grid) -> None:
        nonlocal seconds
        plan = exchange.SeedPlan(whole.experiment(), SEED, SETTINGS, federation, VOCABULARY, expected=hospitals)
        agreed, _ = exchange.greet(grid, plan)
        began = time.perf_counter()
        rounds.pretrain(grid, plan, agreed, whole.initial(SEED), files, lambda row: memory.append(_resident()))
        seconds = time.perf_counter() - began

    play(engine, [HospitalConfig(data, h, run) for h in ids], work, 1, None)
    last, about = checkpoint.load(files.tensors)
    apart = 0.0
    if about["best_epoch"] == _ROUNDS:
        apart = max(float(np.abs(last[name].numpy() - expected[name]).max()) for name in expected)
    return Row(engine, hospitals, records, plain, seconds, memory[0], memory[-1]), apart


def _resident() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a line a federation; 1 if both ways differ."""
    parser = argparse.ArgumentParser(
        prog="python -m sim.bench_federation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="does it run? few hospitals and rounds")
    parser.add_argument("--ray", action="store_true", help="with the engine ray beside")
    given = parser.parse_args(arguments)
    sizes = [("inprocess", 3, 20)] if given.quick else [("inprocess", 80, 1279), ("inprocess", 1000, 128)]
    if given.ray:
        sizes.append(("ray", 80, 1279))
    pool = made_up_records(64 if given.quick else 10_000)
    tell(f"{_ROUNDS} rounds, one process of one thread, c=300, vocabularies 1,161/1,000")
    tell(f"{'':9}{'':>10}{'records':>9}{'local':>9}{'in all':>9}{'added':>7}{'ms a':>9}{'MiB after round':>18}")
    tell(f"{'engine':9}{'hospitals':>10}{'each':>9}{'s':>9}{'s':>9}{'':>7}{'message':>9}{'1':>9}{_ROUNDS:>9}")
    same = True
    for engine, hospitals, records in sizes:
        with tempfile.TemporaryDirectory() as folder:
            row, apart = measure(engine, hospitals, records, pool, Path(folder))
        added = row.federated / row.plain - 1
        message = 1000 * (row.federated - row.plain) / (hospitals * (_ROUNDS + 1))
        tell(
            f"{engine:9}{hospitals:>10}{records:>9}{row.plain:>9.1f}{row.federated:>9.1f}{added:>7.0%}"
            f"{message:>9.0f}{row.after_first:>9.0f}{row.after_last:>9.0f}"
        )
        if apart > _LARGEST_DIFFERENCE:
            same = False
            say(f"error: the tensors differ by {apart:.1e}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
