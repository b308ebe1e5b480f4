"""Trimmed mean (Yin et al., ICML 2018): of each number, without the largest and smallest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from shared_model.algorithms import _all_at_once
from shared_model.federated_algorithm import Option

_BETA = "beta"


def least(options: Mapping[str, float]) -> int:
    """So many that one is trimmed at each end: of n updates floor(beta n) are."""
    beta = options[_BETA]
    if beta < 1e-9:  # no federation has so many hospitals
        return 10**9 if beta else 1
    found = math.ceil(1 / beta)
    return next(n for n in (found - 1, found, found + 1) if int(beta * n))


ALGORITHM = replace(
    _all_at_once.ALGORITHM, finish="FedTrimmedAvg", least=least, options={_BETA: Option(0.2, below=0.5)}
)
