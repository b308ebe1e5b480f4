"""A network with BatchNorm, whose statistics are buffers, and a parameter that never has a gradient. Made up."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from shared_model.randomness import Dropout
from shared_model.recommendation import (
    Context,
    Fitted,
    Recommended,
    Recommender,
    fit_recommender,
    head_of,
    kept_answer,
)
from shared_model.records import CodeSets, RecordSet

TITLE = "Norm 7"
PAPER: dict[str, tuple[float, float | None]] = {}
SCOPE = "hospital"
NEEDS = "gaps-5"


class Settings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Of this method alone."""

    momentum: float = Field(0.1, gt=0, le=1, description="of the statistics, made up")


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    return fit_recommender(build(context), train, validation, context.settings.training, context, "norm-7")


def answer(tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended:
    return kept_answer(build(context), tensors, records, context)


class _Norm(nn.Module):
    def __init__(self, context: Context) -> None:
        super().__init__()
        c = context.settings.encoder.c
        self.codes = deepcopy(context.pretrained)
        self.fresh = nn.ModuleDict(
            {
                "procedures": nn.EmbeddingBag(context.rows.procedures, c),
                "norm": nn.BatchNorm1d(c, momentum=context.own.momentum),
                "tower": nn.Linear(3, 2),
            }
        )
        self.head = head_of(context)
        self.fresh["head"] = self.head


def build(context: Context) -> Recommender:
    module = _Norm(context).to(context.device)
    procedures_of, norm = module.fresh["procedures"], module.fresh["norm"]

    def represent(diagnoses: CodeSets, procedures: CodeSets, hospital: Tensor, dropout: Dropout | None) -> Tensor:
        assert hospital.unique().tolist() == [context.hospital] and len(hospital) == len(diagnoses)
        both = (module.codes, diagnoses), (procedures_of, procedures)
        return norm(torch.cat([bag(sets.codes, sets.offsets[:-1]) for bag, sets in both]))

    return Recommender(module, represent, module.head, to_initialize=module.fresh)
