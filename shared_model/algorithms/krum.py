"""Krum (Blanchard et al., NIPS 2017): the one update that is nearest to most others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from shared_model.algorithms import _all_at_once
from shared_model.federated_algorithm import Option

_F = "num_malicious_nodes"


def least(options: Mapping[str, float]) -> int:
    """n > 2f + 2 (Section 4 of the paper); else those f could be nearest to each other."""
    return 2 * int(options[_F]) + 3 if options[_F] else 1


ALGORITHM = replace(_all_at_once.ALGORITHM, finish="Krum", least=least, options={_F: Option(0)})
