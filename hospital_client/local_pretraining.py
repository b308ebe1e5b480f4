"""A hospital's share of federated pretraining: score what came in, then some epochs on its own records.

What an algorithm makes of these epochs stands in its own file. The loss, the loop and the random streams are those of
the centralized run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hospital_client.partition import Partition
from shared_model.fitting import PRETRAINING
from shared_model.module_state import adam_state, copied, put_adam_back, trained_parameters
from shared_model.pretraining import shared_parameters
from shared_model.pretrainings.tempt import PretrainingNetwork, PretrainingTask
from shared_model.settings import PretrainingSettings
from shared_model.training import run_epoch

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class LocalWork:
    """What a round asks of a hospital.

    Attributes:
        first_epoch: the first local epoch's number, from 1, over all rounds.
        stream: whose random numbers: the hospital's id, or `WHOLE_CONSORTIUM` where it is the federation's only one.
    """

    first_epoch: int
    epochs: int
    stream: int


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
        split = partition.split(seed).to(network.encoder.embedding.device)
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

    def begin(self, shared: Tensors, work: LocalWork, optimizer_state: Tensors | None = None) -> LocalRound:
        """A round from the shared tensors on; there must be a training record.

        Args:
            optimizer_state: Adam's state of the hospital's last update, to go on with.
        """
        self._load(shared)
        self._network.train()
        trained = trained_parameters(self._network)
        optimizer = torch.optim.Adam(trained.values(), lr=self._settings.learning_rate, fused=True)
        if optimizer_state is not None:
            put_adam_back(optimizer, trained, optimizer_state)
        return LocalRound(self._task, self._shared, optimizer, work, self._settings.batch_size, self._seed)

    def _load(self, shared: Tensors) -> None:
        with torch.no_grad():
            for name, parameter in self._shared.items():
                parameter.copy_(shared[name])


class LocalRound:
    """A round at a hospital: what an algorithm's `local` works with (`shared_model.federated_algorithm.LocalModel`)."""

    def __init__(
        self,
        task: PretrainingTask,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Adam,
        work: LocalWork,
        batch_size: int,
        seed: int,
    ) -> None:
        self.task, self.parameters = task, parameters
        self._optimizer, self._work, self._batch_size, self._seed = optimizer, work, batch_size, seed

    @property
    def steps(self) -> int:
        return self._work.epochs * -(-self.task.records // self._batch_size)

    def epochs(
        self, *, term: Callable[[], Tensor] | None = None, before_step: Callable[[], None] | None = None
    ) -> float:
        """See the protocol.

        Raises:
            FloatingPointError: the loss is no finite number.
            ValueError: training moved a buffer.
        """
        module, work = self.task.module, self._work
        hook = self._optimizer.register_step_pre_hook(lambda *_: before_step() if before_step is not None else None)
        task = self.task if term is None else _WithTerm(self.task, term)
        constants = copied(dict(module.named_buffers()))
        device = next(iter(self.parameters.values())).device
        loss = 0.0
        for epoch in range(work.first_epoch, work.first_epoch + work.epochs):
            loss = run_epoch(
                task, self._optimizer, self._batch_size, self._seed, PRETRAINING, work.stream, epoch, device
            )
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss}")
        hook.remove()
        for name, buffer in module.named_buffers():
            if not torch.equal(buffer, constants[name]):
                raise ValueError(f"training moved the buffer {name}, which is not shared")
        return loss

    def tensors(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's, for a hospital that keeps it."""
        return adam_state(self._optimizer, trained_parameters(self.task.module))


class _WithTerm:
    """A task with a further term in its loss."""

    def __init__(self, task: PretrainingTask, term: Callable[[], Tensor]) -> None:
        self.module: nn.Module = task.module
        self.records, self.validation_records = task.records, task.validation_records
        self._task, self._term = task, term

    def loss(self, index: Int[Tensor, " batch"], generator: torch.Generator) -> Float[Tensor, ""]:
        return self._task.loss(index, generator) + self._term()

    def score(self) -> float:
        return self._task.score()
