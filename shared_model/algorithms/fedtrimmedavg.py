"""Trimmed mean (Yin et al., ICML 2018): of each number, without the largest and smallest."""

from __future__ import annotations

from dataclasses import replace

from shared_model.algorithms import _all_at_once
from shared_model.federated_algorithm import Option

ALGORITHM = replace(_all_at_once.ALGORITHM, options={"beta": Option(0.2, below=0.5)})
