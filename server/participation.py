"""Who trains in a round, and what became of each hospital's part."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.exchange import Hospital


@dataclass
class Participation:
    """What became of a hospital's part: rounds whose update was taken, replies left out and why, replies missed."""

    taken: list[int] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    missed: int = 0
    bytes_to_hospital: int = 0
    bytes_from_hospital: int = 0


def drawn(hospitals: Sequence[Hospital], most: int, seed: int, number: int) -> list[int]:
    """The hospitals that train in a round: drawn by (seed, round, id), so that resuming draws alike."""
    ids = [h.hospital for h in hospitals if h.train]
    order = sorted(ids, key=lambda h: hashlib.sha256(f"{seed}:round:{number}:{h}".encode()).digest())
    return sorted(order[:most])
