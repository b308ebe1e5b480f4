"""Median (Yin et al., ICML 2018): of each number."""

from __future__ import annotations

from shared_model.algorithms import _all_at_once

ALGORITHM = _all_at_once.ALGORITHM
