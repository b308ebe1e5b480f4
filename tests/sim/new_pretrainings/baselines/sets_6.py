"""The most likely medications, so many for every patient: a system that answers with sets and no scores. Made up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from shared_model.objectives import recommendation_loss
from shared_model.recommendation import Context, Fitted, Recommended, draw_initial
from shared_model.records import RecordSet
from shared_model.settings import OptimizationSettings
from shared_model.training import train as fit_task

TITLE = "Sets 6"
PAPER = {"jaccard": (0.2844, 0.0013), "f1": (0.4252, 0.0017)}
SCOPE = "hospital"
SCORES = False
NEEDS = "gaps-5"
DEFAULT = False


class Settings(OptimizationSettings, frozen=True, extra="forbid"):
    """Of this method alone."""

    learning_rate: float = Field(0.05, gt=0, le=1, description="made up")
    batch_size: int = Field(8, ge=1, le=65536, description="made up")
    epochs: int = Field(3, ge=1, le=1000, description="made up")
    least_steps: int = Field(0, ge=0, le=1000, description="made up")
    most: int = Field(3, ge=1, le=13, description="medications of an answer, made up")


class _Task:
    def __init__(self, head: nn.Linear, train: RecordSet, validation: RecordSet, context: Context) -> None:
        self.module, self._train, self._validation, self._context = head, train, validation, context
        self.records, self.validation_records = len(train), len(validation)

    def loss(self, index: Tensor, generator: torch.Generator) -> Tensor:
        records = self._train.select(index)
        labels = records.medications.multi_hot(self._context.medications)
        return recommendation_loss(self.module(_inputs(records, self._context)), labels)

    def score(self) -> float:
        chosen = _chosen(self.module, self._validation, self._context)
        true = self._validation.medications.multi_hot(self._context.medications) > 0
        return float((chosen & true).sum() / (chosen | true).sum())


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    head = nn.Linear(context.settings.encoder.c, context.medications).to(context.device)
    draw_initial(head, context, "sets-6")
    progress = fit_task(
        _Task(head, train, validation, context),
        context.own,
        seed=context.seed,
        purpose="sets-6",
        hospital=context.hospital,
        resume=context.resume,
        on_epoch=context.on_epoch,
        epochs=context.epochs,
    )
    return Fitted({name: of.detach() for name, of in head.state_dict().items()}, progress.history, progress.best_epoch)


def answer(tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended:
    head = nn.Linear(context.settings.encoder.c, context.medications).to(context.device)
    head.load_state_dict(dict(tensors))
    return Recommended(None, _chosen(head, records, context))


@torch.no_grad()
def _inputs(records: RecordSet, context: Context) -> Tensor:
    found: Tensor = context.pretrained(records.diagnoses.codes, records.diagnoses.offsets[:-1])
    return found


@torch.no_grad()
def _chosen(head: nn.Module, records: RecordSet, context: Context) -> Tensor:
    logits = head(_inputs(records, context))
    return torch.zeros_like(logits).scatter_(1, logits.topk(context.own.most, dim=1).indices, 1) > 0
