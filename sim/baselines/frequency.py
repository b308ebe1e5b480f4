"""Frequency: each medication's rate in all training records, the same for every record. A floor, not in the paper."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from shared_model.recommendation import Context, Fitted, Recommended, above_threshold
from shared_model.records import RecordSet

TITLE = "Frequency"
PAPER: dict[str, tuple[float, float | None]] = {}
SCOPE = "consortium"


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    """Count each medication in the training records."""
    return Fitted({"rate": train.medications.multi_hot(context.medications).double().sum(0) / max(len(train), 1)})


def answer(tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended:
    return above_threshold(tensors["rate"].float().expand(len(records), -1), context)
