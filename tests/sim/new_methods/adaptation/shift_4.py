"""Head on the frozen encoder behind a running mean, which is a buffer, with a tower that no record reaches. Made up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shared_model.encoder import FrozenEncoder
from shared_model.randomness import Dropout
from shared_model.recommendation import (
    Context,
    Fitted,
    Recommended,
    Recommender,
    fit_recommender,
    head_of,
    kept_answer,
    record_sets,
)
from shared_model.records import CodeSets, RecordSet

TITLE = "TEMPT (shift-4)"
PAPER: dict[str, tuple[float, float | None]] = {}
SCOPE = "hospital"
NEEDS = "tempt"


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    return fit_recommender(build(context), train, validation, context.settings.tuning, context, "shift-4")


def answer(tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended:
    return kept_answer(build(context), tensors, records, context)


class _Shifted(nn.Module):
    def __init__(self, context: Context) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(context.settings.encoder.c))
        self.register_buffer("batches", torch.tensor(0))
        self.scale = nn.Parameter(torch.ones(context.settings.encoder.c))
        self.drop = nn.Dropout(0.25)
        self.head = head_of(context)
        self.tower = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.batches += 1
            self.mean += (x.detach().mean(0) - self.mean) / self.batches
        shifted: Tensor = self.drop((x - self.mean) * self.scale)
        return shifted


def build(context: Context) -> Recommender:
    module = _Shifted(context).to(context.device)
    frozen = FrozenEncoder(context.pretrained)

    def represent(diagnoses: CodeSets, procedures: CodeSets, hospital: Tensor, dropout: Dropout | None) -> Tensor:
        return module(frozen(record_sets(diagnoses, procedures, context.rows)))

    return Recommender(module, represent, module.head)
