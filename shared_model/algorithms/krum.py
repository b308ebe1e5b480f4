"""Krum (Blanchard et al., NIPS 2017): the one update that is nearest to most others."""

from __future__ import annotations

from dataclasses import replace

from shared_model.algorithms import _all_at_once
from shared_model.federated_algorithm import Option

ALGORITHM = replace(_all_at_once.ALGORITHM, options={"num_malicious_nodes": Option(0)})
