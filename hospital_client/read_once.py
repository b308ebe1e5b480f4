"""What a process reads once for all the messages that it answers: hospitals' records, and one network for them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from hospital_client.local_pretraining import LocalPretraining
from hospital_client.partition import read_partition, records_file
from shared_model.batching import TokenRows
from shared_model.errors import TemptError
from shared_model.fitting import stamp_of
from shared_model.pretrainings.tempt import PretrainingNetwork
from shared_model.settings import EncoderSettings, Settings


class _Own(NamedTuple):
    """Whose records, and where the work is done."""

    partition: Path
    hospital: int
    device: str


def local_pretraining(partition: Path, hospital: int, device: str, settings: Settings, seed: int) -> LocalPretraining:
    """A hospital's share of pretraining, ready for any round.

    Args:
        partition: a dataset directory with the hospital's records.

    Raises:
        TemptError: the records are missing or damaged, or others than those that were read before.
    """
    known, own = _hospitals(settings, seed), _Own(partition, hospital, device)
    path = records_file(partition, hospital)
    if own not in known:
        read = read_partition(partition, hospital)
        network = _network(settings.encoder, read.rows, device)
        known[own] = stamp_of(path), LocalPretraining(read, network, settings.pretraining, seed)
    stamp, local = known[own]
    if stamp != stamp_of(path):
        raise TemptError(f"{path}: was replaced while the run was at work; begin another run with it")
    return local


@lru_cache(maxsize=1)
def _network(settings: EncoderSettings, rows: TokenRows, device: str) -> PretrainingNetwork:
    """One network for every hospital that this process works for: its tensors come with each message."""
    unused = torch.Generator().manual_seed(0)
    return PretrainingNetwork(settings, rows, unused, "zero").to(device)


@lru_cache(maxsize=1)
def _hospitals(settings: Settings, seed: int) -> dict[_Own, tuple[tuple[int, ...], LocalPretraining]]:
    """The hospitals that this process has worked for with these settings; they share one network.

    Beside each stands what its records' file was like when it was read.
    """
    return {}
