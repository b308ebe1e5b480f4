"""Median (Yin et al., ICML 2018): of each number."""

from __future__ import annotations

from dataclasses import replace

from shared_model.algorithms import _all_at_once

ALGORITHM = replace(_all_at_once.ALGORITHM, finish="FedMedian")
