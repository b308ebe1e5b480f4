"""Hospital frequency: each medication's rate in the hospital's training records, shrunk towards the consortium's rate.

(n_hm + k p_m) / (n_h + k), the posterior mean under a beta prior of weight k; k is chosen among six by the hospital
mean of PRAUC on all validation records. A naive floor that knows the hospital, not in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from shared_model.metrics import average_precision
from shared_model.recommendation import Context, Fitted, Recommended, above_threshold
from shared_model.records import RecordSet

TITLE = "Hospital frequency"
PAPER: dict[str, tuple[float, float | None]] = {}
SCOPE = "consortium"
PRIOR_WEIGHTS = (1, 3, 10, 30, 100, 300)


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    """Count each medication in each hospital's training records and choose k."""
    labels = train.medications.multi_hot(context.medications).double()
    hospitals, member = torch.unique(train.hospital, return_inverse=True)
    counts = torch.zeros(len(hospitals), context.medications, dtype=torch.float64, device=labels.device)
    counts.index_add_(0, member, labels)
    records = member.bincount()[:, None].double()
    tensors = {"hospital": hospitals, "rate": labels.sum(0) / max(len(train), 1)}
    tables = {k: (counts + k * tensors["rate"]) / (records + k) for k in PRIOR_WEIGHTS}
    if len(validation):
        chosen = max(tables, key=lambda k: _validation_prauc(tensors | {"rates": tables[k]}, validation, context))
    else:
        chosen = PRIOR_WEIGHTS[2]
    return Fitted(tensors | {"rates": tables[chosen]}, about={"k": chosen})


def answer(tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended:
    return above_threshold(_rates(tensors, records), context)


def _rates(tensors: Mapping[str, Tensor], records: RecordSet) -> Float[Tensor, "records medications"]:
    """The hospital's rates; a hospital without training records gets the consortium's."""
    if not len(tensors["hospital"]):
        return tensors["rate"].float().expand(len(records), -1)
    place = torch.searchsorted(tensors["hospital"], records.hospital).clamp(max=len(tensors["hospital"]) - 1)
    known = (tensors["hospital"][place] == records.hospital)[:, None]
    return torch.where(known, tensors["rates"][place], tensors["rate"]).float()


def _validation_prauc(tensors: Mapping[str, Tensor], validation: RecordSet, context: Context) -> float:
    prauc = average_precision(_rates(tensors, validation), validation.medications.multi_hot(context.medications))
    means = [float(prauc[validation.hospital == hospital].mean()) for hospital in validation.hospitals]
    return sum(means) / len(means)
