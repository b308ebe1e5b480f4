"""PRAUC, Jaccard and F1 of each record (Section 4.1.4), and their means over hospitals.

Eq. 17 as printed can exceed 1; PRAUC is the average precision of a record, as in the released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

METRICS = ("prauc", "jaccard", "f1")


class RecordMetrics(NamedTuple):
    """Each record's metrics and how many medications were recommended."""

    prauc: Float[Tensor, " records"]
    jaccard: Float[Tensor, " records"]
    f1: Float[Tensor, " records"]
    medications: Float[Tensor, " records"]

    def means(self) -> dict[str, float]:
        return {name: float(values.double().mean()) for name, values in zip(self._fields, self, strict=True)}


def record_metrics(
    probabilities: Float[Tensor, "records medications"], labels: Float[Tensor, "records medications"], threshold: float
) -> RecordMetrics:
    """Every metric of every record; a medication is recommended strictly above the threshold.

    A record without a positive label has PRAUC 0; nothing true and nothing recommended has Jaccard and F1 0.
    """
    recommended, true = probabilities > threshold, labels > 0
    both = (recommended & true).sum(1).double()
    n_recommended, n_true = recommended.sum(1).double(), true.sum(1).double()
    # Eq. 18
    jaccard = both / (recommended | true).sum(1).clamp(min=1)
    # /Eq. 18
    # Eq. 19, rearranged: 2 precision recall / (precision + recall), with Eq. 15 and 16
    f1 = 2 * both / (n_recommended + n_true).clamp(min=1)
    # /Eq. 19
    return RecordMetrics(average_precision(probabilities, labels), jaccard, f1, n_recommended)


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


def hospital_mean(hospitals: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean over hospitals of each one's own mean (Section 4.1.4); those without a test record don't count."""
    counted = [values for values in hospitals.values() if values["records"]]
    return {name: sum(values[name] for values in counted) / max(len(counted), 1) for name in METRICS}


def record_mean(hospitals: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The mean over all test records, whichever hospital's; where it says how many `counted`, over so many of them."""
    counted = {hospital: values.get("counted", values["records"]) for hospital, values in hospitals.items()}
    total = sum(counted.values())
    return {
        name: sum(values[name] * counted[hospital] for hospital, values in hospitals.items() if counted[hospital])
        / max(total, 1)
        for name in METRICS
    }


def size_group(records: int) -> str:
    """The group of Table 7: small up to 1,000 records, medium up to 2,000, large beyond."""
    return "small" if records <= 1000 else "medium" if records <= 2000 else "large"
