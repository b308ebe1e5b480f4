"""A rule without an epoch, fitted once on all hospitals, that chooses by validation and draws from a seed. Made up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shared_model.metrics import average_precision
from shared_model.randomness import generator
from shared_model.recommendation import Context, Fitted, Recommended, above_threshold
from shared_model.records import RecordSet

TITLE = "Rule 2"
PAPER: dict[str, tuple[float, float | None]] = {}
SCOPE = "consortium"


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    """Rates of all records or of a tenth less, with a little noise."""
    rates = train.medications.multi_hot(context.medications).sum(0) / max(len(train), 1)
    noise = torch.rand(len(rates), generator=generator(context.device, context.seed, "rule-2", context.hospital))
    tables = {power: (rates + 1e-4 * noise).clamp(max=1) ** power for power in (1, -1)}
    scores = {power: _score(table, validation, context) for power, table in tables.items()}
    power = max(scores, key=lambda of: scores[of])
    return Fitted({"table": tables[power].clamp(0, 1)}, about={"power": power})


def answer(tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended:
    return above_threshold(tensors["table"].expand(len(records), -1), context)


def _score(table: Tensor, validation: RecordSet, context: Context) -> float:
    if not len(validation):
        return 0.0
    labels = validation.medications.multi_hot(context.medications)
    return float(average_precision(table.expand(len(labels), -1), labels).mean())
