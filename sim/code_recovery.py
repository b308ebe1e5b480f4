"""What an update tells of a hospital's codes: an embedding moves only if the hospital has that code.

    python -m sim.code_recovery DATASET [--epochs 1] [--seed 42]

Each hospital trains from the first shared tensors on, as in a federation's first round. The reader of its update then
names every code whose embedding differs from what was sent. Printed: how many of the codes of its training records are
named so, and how many named ones it does not have.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hospital_client.local_pretraining import LocalPretraining, LocalWork
from hospital_client.partition import Partition
from server.federation import Federation
from server.federation_settings import FederationSettings
from shared_model.batching import FIRST_DIAGNOSIS
from shared_model.errors import TemptError
from shared_model.lines import say, tell
from shared_model.pretrainings.tempt import PretrainingNetwork
from shared_model.records import read_dataset
from shared_model.settings import Settings


def recovered(partition: Partition, settings: Settings, seed: int, epochs: int) -> tuple[set[int], set[int]]:
    """The rows of the embedding table that the hospital's training codes have, and those that its update moves."""
    whole = Federation(Path(), partition.vocabulary, settings, FederationSettings(), (), False, 1, 1)
    shared = {name: torch.from_numpy(array) for name, array in whole.initial(seed).items()}
    network = PretrainingNetwork(settings.encoder, partition.rows, torch.Generator().manual_seed(0))
    local = LocalPretraining(partition, network, settings.pretraining, seed)
    begun = local.begin(shared, LocalWork(1, epochs, partition.hospital))
    begun.epochs()
    name = "encoder.embedding"
    moved = np.flatnonzero((begun.tensors()[name] != shared[name]).any(1).numpy())
    train = partition.split(seed).train
    has = {code + FIRST_DIAGNOSIS for code in train.diagnoses.codes.tolist()}
    has |= {code + partition.rows.first_procedure for code in train.procedures.codes.tolist()}
    codes = set(range(FIRST_DIAGNOSIS, partition.rows.first_prompt))  # not [CLS] and [MASK]
    return has, set(moved.tolist()) & codes


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line a hospital."""
    parser = argparse.ArgumentParser(
        prog="python -m sim.code_recovery", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="a dataset directory of `tempt prepare`")
    parser.add_argument("--epochs", type=int, default=1, help="local ones before the update (1)")
    parser.add_argument("--seed", type=int, default=42, help="of split and training (42)")
    given = parser.parse_args(arguments)
    try:
        dataset = read_dataset(given.dataset)
    except TemptError as error:
        say(f"error: {error}")
        return 2
    torch.set_num_threads(1)
    tell(f"{'hospital':>8}{'records':>9}{'its codes':>11}{'named':>8}{'share':>8}{'of these wrong':>16}")
    for hospital in dataset.records.hospitals:
        own = dataset.of_hospitals([hospital])
        partition = Partition(hospital, own.vocabulary, own.records, own.split_by_patient)
        has, moved = recovered(partition, Settings(), given.seed, given.epochs)
        tell(
            f"{hospital:>8}{len(own.records):>9}{len(has):>11}{len(has & moved):>8}"
            f"{len(has & moved) / max(1, len(has)):>8.0%}{len(moved - has):>16}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
