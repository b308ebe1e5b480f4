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
    return next(n for n in range(math.ceil(0.9 / beta), 2**31) if int(beta * n)) if beta else 1


ALGORITHM = replace(
    _all_at_once.ALGORITHM, finish="FedTrimmedAvg", least=least, options={_BETA: Option(0.2, below=0.5)}
)
