"""PRAUC, Jaccard and F1 of each record (Section 4.1.4), and their means over hospitals.

Eq. 17 as printed can exceed 1; PRAUC is the average precision of a record, as in the released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shared_model.metric_names import METRICS

Measured = Mapping[str, Mapping[str, Any]]
"""By hospital how many test records it has, and what was measured of them."""


class RecordMetrics(NamedTuple):
    """Each record's metrics and how many medications were recommended; no PRAUC where there are no scores."""

    prauc: Float[Tensor, " records"] | None
    jaccard: Float[Tensor, " records"]
    f1: Float[Tensor, " records"]
    medications: Float[Tensor, " records"]

    def means(self) -> dict[str, float | None]:
        return {
            name: None if values is None else float(values.double().mean())
            for name, values in zip(self._fields, self, strict=True)
        }


def record_metrics(
    scores: Float[Tensor, "records medications"] | None,
    recommended: Bool[Tensor, "records medications"],
    labels: Float[Tensor, "records medications"],
) -> RecordMetrics:
    """Every metric of every record.

    A record without a positive label has PRAUC 0; nothing true and nothing recommended has Jaccard and F1 0.
    """
    true = labels > 0
    both = (recommended & true).sum(1).double()
    n_recommended, n_true = recommended.sum(1).double(), true.sum(1).double()
    # Eq. 18
    jaccard = both / (recommended | true).sum(1).clamp(min=1)
    # /Eq. 18
    # Eq. 19, rearranged: 2 precision recall / (precision + recall), with Eq. 15 and 16
    f1 = 2 * both / (n_recommended + n_true).clamp(min=1)
    # /Eq. 19
    prauc = None if scores is None else average_precision(scores, labels)
    return RecordMetrics(prauc, jaccard, f1, n_recommended)


def average_precision(
    scores: Float[Tensor, "records codes"], labels: Float[Tensor, "records codes"]
) -> Float[Tensor, " records"]:
    """The area under each record's precision-recall steps; equal scores are one step. 0 without a positive label."""
    ordered, order = scores.sort(1, descending=True)  # records codes, as is all below
    positive = labels.gather(1, order).double()
    position = torch.arange(scores.shape[1], device=scores.device)
    # the step's last position, for each position of it
    last_of_step = torch.ones_like(ordered, dtype=torch.bool)
    last_of_step[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
    end = position.expand_as(order).masked_fill(~last_of_step, scores.shape[1]).flip(1).cummin(1).values.flip(1)
    precision = positive.cumsum(1).gather(1, end) / (end + 1)
    return (positive * precision).sum(1) / positive.sum(1).clamp(min=1)


def hospital_mean(hospitals: Measured) -> dict[str, float | None]:
    """The mean over hospitals of each one's own mean (Section 4.1.4); those without a test record don't count."""
    return _means([(values, 1) for values in hospitals.values() if values["records"]])


def record_mean(hospitals: Measured) -> dict[str, float | None]:
    """The mean over all test records, whichever hospital's; where it says how many `counted`, over so many of them."""
    weighted = [(values, values.get("counted", values["records"])) for values in hospitals.values()]
    return _means([(values, int(weight)) for values, weight in weighted if weight])


def _means(weighted: Sequence[tuple[Mapping[str, float | None], int]]) -> dict[str, float | None]:
    """Each metric's weighted mean over those that have it: 0 where nothing was measured, None where all lack it."""
    found: dict[str, float | None] = {}
    for name in METRICS:
        known = [(value, weight) for values, weight in weighted if (value := values[name]) is not None]
        mean = sum(value * weight for value, weight in known) / max(sum(weight for _, weight in known), 1)
        found[name] = mean if known or not weighted else None
    return found


def size_group(records: int) -> str:
    """The group of Table 7: small up to 1,000 records, medium up to 2,000, large beyond."""
    return "small" if records <= 1000 else "medium" if records <= 2000 else "large"
