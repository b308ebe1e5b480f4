"""The two most probable medications of a new head, without their probabilities, also in a federation. Made up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from shared_model.adaptation import finetune_freeze
from shared_model.recommendation import Context, Fitted, Recommended
from shared_model.records import RecordSet

TITLE = "TEMPT (few-8)"
PAPER: dict[str, tuple[float, float | None]] = {}
SCOPE = "hospital"
SCORES = False
NEEDS = "tempt"


class Settings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Of this method alone."""

    most: int = Field(2, ge=1, le=13, description="medications of an answer, made up")


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    return finetune_freeze.fit(train, validation, context)


def answer(tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended:
    scores, _ = finetune_freeze.answer(tensors, records, context)
    assert scores is not None
    return Recommended(None, torch.zeros_like(scores).scatter_(1, scores.topk(context.own.most, 1).indices, 1) > 0)
