"""How fast training is: against the same model trained the plain way, and against the machine's own matrix products.

The plain way is padded twice: to the batch's longest set, as most would write it, and to the longest set there can be.

    python -m sim.bench            under 5 minutes on 2 idle cores
    python -m sim.bench --quick    does it run? few records in small batches, one thread, no whole run

Everything is measured in one process on the same made-up records, in turns, so that all of it meets the same load.
Seconds pass or fail nothing; the exit status is 1 only if the ways do not give the same loss.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# Before torch is imported, as in sim/cli.py
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np
import torch

from shared_model.adaptation import tempt
from shared_model.batching import TokenRows
from shared_model.lines import tell
from shared_model.pretrainings.tempt import PretrainingNetwork, PretrainingTask
from shared_model.randomness import generator
from shared_model.recommendation import Context, RecommendationTask, draw_initial
from shared_model.records import CodeSets, RecordSet
from shared_model.settings import Settings
from shared_model.training import Task, run_epoch
from sim.bench_run import stage_lines, whole_run
from sim.plain_model import (
    PlainNetwork,
    PlainPretraining,
    PlainRecords,
    PlainTuning,
    PretrainingCollate,
    TuningCollate,
    loader,
    run_steps,
)
from sim.synthetic_eicu import Flags, SyntheticSettings, World, profile_sizes, tilts
from sim.synthetic_eicu import generator as synthetic_generator
from sim.workers import usable_cores

ROWS = TokenRows(1161, 1000)
MEDICATIONS = 300
PRETRAINING_MFLOP = 41  # of an ideal step, a record: packed, [CLS] alone in the last layer, forward and backward
SEED = 42
CPU = torch.device("cpu")
TOLERANCE = 1e-5
_MATMUL_SIZES = (768, 1024, 1536)


class Row(NamedTuple):
    """What was measured with a number of threads; rates are medians over rounds."""

    threads: int
    gflops: float
    pretraining: float
    plain_pretraining: float
    padded_pretraining: float
    tuning: float
    plain_tuning: float
    padded_tuning: float
    processor: float  # seconds of processors used, a second; with one thread less than 1 if others took their turn

    @property
    def share(self) -> float:
        """The share of the machine's matrix products that pretraining reaches."""
        return self.pretraining * PRETRAINING_MFLOP / 1000 / self.gflops


class Losses(NamedTuple):
    """A batch's loss by our way and a plain one, same weights and masks, without dropout."""

    ours: float
    plain: float

    @property
    def same(self) -> bool:
        return abs(self.ours - self.plain) <= TOLERANCE * abs(self.ours)


Batches = Callable[[list[int], int, torch.Generator], Any]
"""Batches of the records at some places, of some size, with a generator for masks."""


@dataclass
class Pair:
    """A stage both ways: our task, and the plain network with its batches of the records at some places.

    Attributes:
        batches: padded to the longest set there can be.
        short_batches: padded to each batch's longest set.
    """

    task: Task
    plain: PlainNetwork
    batches: Batches
    short_batches: Batches
    ours_optimizer: torch.optim.Optimizer
    plain_optimizer: torch.optim.Optimizer


def made_up_records(count: int) -> RecordSet:
    """Records of 16 hospitals of the synthetic `paper` profile, with Table 2's vocabularies."""
    world = World(2014, SyntheticSettings())
    procedures = np.sort(np.argsort(-world.procedure_share, kind="stable")[: ROWS.procedures])
    medications = np.sort(np.argsort(-world.medication_share, kind="stable")[:MEDICATIONS])
    hospitals = len(profile_sizes("paper"))
    inclined = tilts(hospitals, synthetic_generator(world.seed, "tilts"))
    kept: list[list[Flags]] = []
    owner: list[int] = []
    for hospital in range(0, hospitals, hospitals // 16):
        stays = world.stays(hospital, -(-count // 16), float(inclined[hospital]))
        content = [stays.diagnoses, stays.procedures[:, procedures], stays.medications[:, medications]]
        whole = np.logical_and.reduce([table.any(1) for table in content])
        kept.append([table[whole] for table in content])
        owner += [hospital] * int(whole.sum())
    sets = [_code_sets(np.concatenate(tables)) for tables in zip(*kept, strict=True)]
    stay = torch.arange(len(owner))
    return RecordSet(torch.tensor(owner), stay, stay, *sets)


def pairs(records: RecordSet, settings: Settings) -> dict[str, Pair]:
    """Pretraining and prompt tuning both ways, from the same weights."""
    longest = settings.encoder.longest_set
    plain_records = PlainRecords(records, ROWS, longest)
    none = records.select(torch.arange(0))
    network = PretrainingNetwork(settings.encoder, ROWS, generator(CPU, SEED, "bench/initial", 0))
    context = Context(settings, ROWS, MEDICATIONS, SEED, 1, CPU, part=copy.deepcopy(network.encoder))
    recommender = tempt.build(context)
    draw_initial(recommender.module, context, "bench")
    prompts = recommender.module.get_parameter("prompts")

    def pretraining_batches(to: int | None, order: list[int], batch_size: int, draws: torch.Generator) -> Any:
        collate = PretrainingCollate(ROWS, to, settings.pretraining.mask_fraction, draws)
        return loader(plain_records, collate, batch_size, order)

    def tuning_batches(to: int | None, order: list[int], batch_size: int, draws: torch.Generator) -> Any:
        return loader(plain_records, TuningCollate(ROWS, to, MEDICATIONS), batch_size, order)

    task = PretrainingTask(network, records, none, settings.pretraining, seed=SEED)
    plain = PlainPretraining(network, settings.pretraining)
    head_dropout = settings.tuning.head_dropout
    tuning_task = RecommendationTask(recommender, records, none, context, head_dropout=head_dropout)
    plain_tuning = PlainTuning(context.pretrained, prompts, recommender.head, head_dropout).train()
    rate, tuning_rate = settings.pretraining.learning_rate, settings.tuning.learning_rate
    return {
        "pretraining": Pair(
            task,
            plain,
            partial(pretraining_batches, longest),
            partial(pretraining_batches, None),
            _adam(network, rate),
            _adam(plain, rate),
        ),
        "tuning": Pair(
            tuning_task,
            plain_tuning,
            partial(tuning_batches, longest),
            partial(tuning_batches, None),
            _adam(recommender.module, tuning_rate),
            _adam(plain_tuning, tuning_rate),
        ),
    }


def same_losses(records: RecordSet, batch_size: int) -> dict[str, Losses]:
    """Each stage's loss of the first records, without dropout, on the same masks; the plain way that is further off."""
    settings = Settings()
    encoder = settings.encoder.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
    tuning = settings.tuning.model_copy(update={"head_dropout": 0.0})
    found = {}
    for name, pair in pairs(records, settings.model_copy(update={"encoder": encoder, "tuning": tuning})).items():
        index = torch.arange(min(batch_size, len(records)))
        ours = pair.task.loss(index, generator(CPU, SEED, "bench/masks", 0))
        plain = []
        for batches in (pair.short_batches, pair.batches):
            (batch,) = batches(index.tolist(), batch_size, generator(CPU, SEED, "bench/masks", 0))
            plain.append(Losses(float(ours.detach()), float(pair.plain.loss(batch).detach())))
        found[name] = max(plain, key=lambda both: abs(both.ours - both.plain))
    return found


def measure(stages: dict[str, Pair], threads: int, *, rounds: int, plain_batches: int, batch_size: int) -> Row:
    """Rates of all ways and of matrix products, in turns; the first round is left out.

    Args:
        plain_batches: that are padded to the longest set there can be, a round; twice as many to their own longest.
    """
    torch.set_num_threads(threads)
    rates: dict[str, list[float]] = {}
    processor = began = 0.0
    for turn in range(rounds + 1):
        if turn == 1:
            rates.clear()
            processor, began = time.process_time(), time.perf_counter()
        rates.setdefault("gflops", []).append(_matmul_gflops())
        for name, pair in stages.items():
            order = torch.randperm(pair.task.records, generator=generator(CPU, SEED, "bench/order", 0, turn))
            seconds = _seconds(lambda p=pair, t=turn: _our_epoch(p, batch_size, t))  # type: ignore[misc]
            rates.setdefault(name, []).append(pair.task.records / seconds)
            for way, make, count in (("plain", pair.short_batches, 2), ("padded", pair.batches, 1)):
                part = min(count * plain_batches * batch_size, pair.task.records)
                batches = make(order[:part].tolist(), batch_size, generator(CPU, SEED, "bench/plain", 0, turn))
                seconds = _seconds(lambda p=pair, b=batches: run_steps(p.plain, p.plain_optimizer, b))  # type: ignore[misc]
                rates.setdefault(f"{way}_{name}", []).append(part / seconds)
    used = (time.process_time() - processor) / (time.perf_counter() - began)
    return Row(threads=threads, processor=used, **{name: statistics.median(values) for name, values in rates.items()})


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sim.bench", description="How fast training is on this machine.")
    parser.add_argument(
        "--quick", action="store_true", help="does it run? few records in small batches, one thread, no whole run"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    cores = usable_cores()
    batch_size = 8 if options.quick else 64
    records = made_up_records(2 * batch_size if options.quick else 2048)
    losses = same_losses(records, batch_size)
    rows = []
    _say(_head(records, cores, load))
    _say(_losses(losses))
    stages = pairs(records, Settings())
    _say(_TABLE_HEAD)
    for threads in [1] if options.quick or cores == 1 else [1, cores]:
        rounds, plain_batches = (1, 1) if options.quick else (5, 2)
        rows.append(measure(stages, threads, rounds=rounds, plain_batches=plain_batches, batch_size=batch_size))
        _say(_table_row(rows[-1]))
    _say(_TABLE_FOOT)
    _say(_warnings(load, rows[0]))
    run = None if options.quick else whole_run(epochs=3)
    if run is not None:
        _say(stage_lines(run))
    if options.json is not None:
        content = {
            "records": len(records),
            "cores": cores,
            "load_average_before": load,
            "losses": {name: pair._asdict() for name, pair in losses.items()},
            "rows": [row._asdict() | {"share": row.share} for row in rows],
            "whole_run": run,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if all(pair.same for pair in losses.values()) else 1


_TABLE_HEAD = (
    "                matmul       pretraining, records/s         tuning, records/s",
    "threads        GFLOP/s   ours  plain  ratio  of matmul     ours  plain  ratio",
)
_TABLE_FOOT = (
    f"of matmul: {PRETRAINING_MFLOP} MFLOP a record against the rate of a float32 product",
    "plain: torch's encoder layer, sets padded to the batch's longest, a DataLoader",
    "to 101: the same, every set padded to the longest there can be (tuning: 103)",
)


def _head(records: RecordSet, cores: int, load: float) -> Iterator[str]:
    means = [float(sets.lengths.double().mean()) for sets in (records.diagnoses, records.procedures)]
    yield f"{len(records)} made-up records, {means[0]:.2f} diagnoses and {means[1]:.2f} procedures a record"
    yield f"{cores} cores, load average {load:.2f} before, torch {torch.__version__}"


def _losses(losses: dict[str, Losses]) -> Iterator[str]:
    for name, pair in losses.items():
        verdict = "the same" if pair.same else f"THEY DIFFER by more than {TOLERANCE}"
        yield f"loss of {name} without dropout: ours {pair.ours:.7f}, plain {pair.plain:.7f}: {verdict}"


def _table_row(row: Row) -> Iterator[str]:
    yield (
        f"{row.threads:>7}{row.gflops:>15.0f}{row.pretraining:>7.0f}{row.plain_pretraining:>7.1f}"
        f"{row.pretraining / row.plain_pretraining:>7.1f}{row.share:>11.0%}"
        f"{row.tuning:>9.0f}{row.plain_tuning:>7.1f}{row.tuning / row.plain_tuning:>7.1f}"
    )
    yield (
        f"{'to 101':>7}{row.padded_pretraining:>29.1f}{row.pretraining / row.padded_pretraining:>7.1f}"
        f"{row.padded_tuning:>27.1f}{row.tuning / row.padded_tuning:>7.1f}"
    )


def _warnings(load: float, one_thread: Row) -> Iterator[str]:
    if load > 0.5 or one_thread.processor < 0.95:
        yield "WARNING: other processes are busy, the figures are of a shared machine"
        yield f"(load average {load:.2f} before; one thread had {one_thread.processor:.0%} of a core)"


def _say(lines: Any) -> None:
    for line in lines:
        tell(line)


def _our_epoch(pair: Pair, batch_size: int, epoch: int) -> None:
    run_epoch(pair.task, pair.ours_optimizer, batch_size, SEED, "bench", 0, epoch, CPU)


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _matmul_gflops() -> float:
    best = 0.0
    for size in _MATMUL_SIZES:
        a, b, out = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
        for _ in range(3):
            began = time.perf_counter()
            torch.mm(a, b, out=out)
            best = max(best, 2e-9 * size**3 / (time.perf_counter() - began))
    return best


def _adam(module: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=rate, fused=True)


def _code_sets(content: Flags) -> CodeSets:
    """The columns of every row's True."""
    offsets = np.concatenate([[0], content.sum(1).cumsum()])
    return CodeSets(torch.from_numpy(np.nonzero(content)[1]), torch.from_numpy(offsets))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
