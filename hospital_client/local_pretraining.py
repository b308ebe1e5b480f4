"""A hospital's share of federated pretraining: score what came in, then some epochs on its own records.

What goes out is the shared tensors and a few numbers. The loss, the loop and the random streams are those of the
centralized run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hospital_client.partition import Partition
from shared_model.fitting import PRETRAINING
from shared_model.module_state import adam_state, copied, put_adam_back, trained_parameters
from shared_model.pretraining import PretrainingNetwork, PretrainingTask, shared_parameters
from shared_model.settings import PretrainingSettings
from shared_model.training import run_epoch

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class LocalWork:
    """What a round asks of a hospital.

    Attributes:
        first_epoch: the first local epoch's number, from 1, over all rounds.
        stream: whose random numbers: the hospital's id, or `WHOLE_CONSORTIUM` where it is the federation's only one.
        proximal_mu: mu of FedProx; 0 leaves the term out.
    """

    first_epoch: int
    epochs: int
    stream: int
    proximal_mu: float = 0.0


@dataclass(frozen=True)
class LocalUpdate:
    """What local epochs leave.

    Attributes:
        tensors: the shared tensors after them.
        loss: mean over the records of the last local epoch.
        gradient: with control variates, the mean of the raw gradients over all local steps.
        optimizer: Adam's state, for a hospital that keeps it.
    """

    tensors: dict[str, Tensor]
    loss: float
    records: int
    gradient: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)


class LocalPretraining:
    """One hospital's records, ready for any round.

    Args:
        network: where tensors that come in are put; one will do for many hospitals.
    """

    def __init__(
        self, partition: Partition, network: PretrainingNetwork, settings: PretrainingSettings, seed: int
    ) -> None:
        self._network, self._settings, self._seed = network, settings, seed
        self._shared = shared_parameters(network)
        self._device = network.encoder.embedding.device
        split = partition.split(seed).to(self._device)
        self._task = PretrainingTask(network, split.train, split.validation, settings, seed=seed)

    @property
    def records(self) -> int:
        """How many training records there are: the weight of an update."""
        return self._task.records

    @property
    def validation_records(self) -> int:
        """How many records a score is a sum over."""
        return self._task.validation_records

    def score_sum(self, shared: Tensors) -> float:
        """The selection score of Section 4.1.3, summed over this hospital's validation records."""
        self._load(shared)
        self._network.eval()
        return self._task.score_sum()

    def train(
        self,
        shared: Tensors,
        work: LocalWork,
        *,
        optimizer_state: Tensors | None = None,
        correction: Tensors | None = None,
    ) -> LocalUpdate:
        """Local epochs from the shared tensors on; there must be a training record.

        Args:
            optimizer_state: Adam's state of the hospital's last update, to go on with.
            correction: c - c_i of SCAFFOLD, added to every gradient.

        Raises:
            FloatingPointError: the loss is no finite number.
            ValueError: training moved a buffer.
        """
        self._load(shared)
        self._network.train()
        trained = trained_parameters(self._network)
        optimizer = torch.optim.Adam(trained.values(), lr=self._settings.learning_rate, fused=True)
        if optimizer_state is not None:
            put_adam_back(optimizer, trained, optimizer_state)
        gradients = _Gradients(optimizer, self._shared, correction) if correction is not None else None
        task = _Proximal(self._task, work.proximal_mu) if work.proximal_mu else self._task
        constants = copied(dict(self._network.named_buffers()))
        loss = 0.0
        for epoch in range(work.first_epoch, work.first_epoch + work.epochs):
            loss = run_epoch(
                task,
                optimizer,
                self._settings.batch_size,
                self._seed,
                PRETRAINING,
                work.stream,
                epoch,
                self._device,
            )
            if not torch.isfinite(torch.tensor(loss)):
                raise FloatingPointError(f"the loss is {loss}")
        for name, buffer in self._network.named_buffers():
            if not torch.equal(buffer, constants[name]):
                raise ValueError(f"training moved the buffer {name}, which is not shared")
        steps = work.epochs * -(-self.records // self._settings.batch_size)
        return LocalUpdate(
            tensors={name: p.detach().clone() for name, p in self._shared.items()},
            loss=loss,
            records=self.records,
            gradient=gradients.mean(steps) if gradients is not None else {},
            optimizer=adam_state(optimizer, trained),
        )

    def _load(self, shared: Tensors) -> None:
        with torch.no_grad():
            for name, parameter in self._shared.items():
                parameter.copy_(shared[name])


class _Proximal:
    """A task with FedProx's term (Li et al., MLSys 2020): the distance from where the round began counts as loss."""

    def __init__(self, task: PretrainingTask, mu: float) -> None:
        self.module: nn.Module = task.module
        self.records, self.validation_records = task.records, task.validation_records
        self._task, self._mu = task, mu
        self._start = [p.detach().clone() for p in self.module.parameters()]

    def loss(self, index: Int[Tensor, " batch"], generator: torch.Generator) -> Float[Tensor, ""]:
        apart = [(p - start).square().sum() for p, start in zip(self.module.parameters(), self._start, strict=True)]
        return self._task.loss(index, generator) + 0.5 * self._mu * torch.stack(apart).sum()

    def score(self) -> float:
        return self._task.score()


class _Gradients:
    """SCAFFOLD (Karimireddy et al., ICML 2020): correct each gradient, and remember the mean of the raw ones.

    With plain gradient steps that mean is the new control variate of the paper's option II; it is one with Adam too.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], by: Tensors) -> None:
        self._parameters, self._by = parameters, by
        self._sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
        optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, *_: Any) -> None:
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                self._sums[name] += parameter.grad
                parameter.grad += self._by[name]

    def mean(self, steps: int) -> dict[str, Tensor]:
        return {name: total / steps for name, total in self._sums.items()}
