"""Which procedures go with diagnoses, by squared error: another network, another loss and another score. Made up."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from shared_model.pretraining import Pretraining
from shared_model.recommendation import Context
from shared_model.records import RecordSet
from shared_model.settings import OptimizationSettings


class Settings(OptimizationSettings, frozen=True, extra="forbid"):
    """Of this pretraining alone."""

    learning_rate: float = Field(0.05, gt=0, le=1, description="made up")
    batch_size: int = Field(8, ge=1, le=65536, description="made up")
    epochs: int = Field(3, ge=1, le=1000, description="made up")
    least_steps: int = Field(0, ge=0, le=1000, description="made up")
    noise: float = Field(0.1, ge=0, le=1, description="of what is known, made up")


class _Network(nn.Module):
    def __init__(self, context: Context, draws: torch.Generator) -> None:
        super().__init__()
        c = context.settings.encoder.c
        self.codes = nn.EmbeddingBag(context.rows.diagnoses, c)
        self.head = nn.Linear(c, context.rows.procedures)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * 0.1)


class _Task:
    def __init__(self, network: nn.Module, train: RecordSet, validation: RecordSet, context: Context) -> None:
        self.module, self._train, self._validation, self._noise = network, train, validation, context.own.noise
        self.records, self.validation_records = len(train), len(validation)

    def _error(self, records: RecordSet) -> Tensor:
        sets = records.diagnoses
        found: Tensor = self.module.get_submodule("head")(
            self.module.get_submodule("codes")(sets.codes, sets.offsets[:-1])
        )
        return ((found - records.procedures.multi_hot(found.shape[1])) ** 2).mean()

    def loss(self, index: Tensor, generator: torch.Generator) -> Tensor:
        noise = 1 + self._noise * torch.rand((), generator=generator)
        return self._error(self._train.select(index)) * noise

    @torch.no_grad()
    def score(self) -> float:
        return -float(self._error(self._validation))


PRETRAINING = Pretraining(_Network, _Task, lambda context: context.own, reads="codes", settings=Settings)
