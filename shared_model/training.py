"""The one training loop: epochs of Adam, early stopping on a validation score, best state, history, resume.

A method gives it a task: a module, the loss of a batch, and a score. Stopping and resuming at any epoch's end changes
no bit of the result: an epoch's randomness, that of torch's own layers too, is a function of (seed, purpose, hospital,
epoch), and the checkpoint holds the rest: parameters, every buffer, Adam's moments.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from pydantic import TypeAdapter
from torch import Tensor, nn

from shared_model import checkpoint
from shared_model.errors import TemptError
from shared_model.module_state import (
    adam_state,
    copied,
    hidden_state,
    put_adam_back,
    put_back,
    state_of,
    trained_parameters,
)
from shared_model.randomness import WHOLE_CONSORTIUM, generator, global_stream
from shared_model.settings import OptimizationSettings

_CHECKPOINT_SECONDS = 20.0


@runtime_checkable
class Task(Protocol):
    """What a method hands to the loop; one that has `draw_batches`, too, says how they are drawn (`DrawsBatches`).

    `loss` is asked for in training mode and `score` in evaluation mode; parameters that require no gradient are left to
    the task.
    """

    @property
    def module(self) -> nn.Module: ...

    records: int
    validation_records: int

    def loss(self, index: Int[Tensor, " batch"], generator: torch.Generator) -> Float[Tensor, ""]: ...

    def score(self) -> float: ...


@runtime_checkable
class DrawsBatches(Protocol):
    """A task that says how an epoch's batches are drawn; else each record is in one, in an order of chance."""

    def draw_batches(self, batch_size: int, generator: torch.Generator) -> Sequence[Int[Tensor, " batch"]]:
        """An epoch's batches, drawn on the CPU: places of training records, in every epoch as many batches."""


@dataclass
class Progress:
    """Where the loop is; everything but tensors that a checkpoint needs."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_step: int = 0
    best_score: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def take(self, score: float | None, *, selects: bool) -> bool:
        """Take the score of the epoch that was done last; whether it is the best so far.

        Args:
            score: None for one that could not be had: then the epoch stands in for the best only until there is one.
            selects: whether scores select; else the last epoch is the best.
        """
        better = not selects or (score is not None and (self.best_score is None or score > self.best_score))
        if better or self.best_score is None:
            self.best_epoch, self.best_step, self.best_score = self.epoch, self.step, score
        return better


def progress_of(about: Any) -> Progress:
    """The progress that a checkpoint holds.

    Raises:
        ValueError: it is of another form.
    """
    if not isinstance(about, dict) or about.keys() != vars(Progress()).keys():
        raise ValueError("its progress is of another form")
    return _PROGRESS.validate_json(json.dumps(about), strict=True)  # as JSON: of Python it would want a Progress itself


_PROGRESS = TypeAdapter(Progress)
OnEpoch = Callable[[dict[str, Any]], None]


def train(
    task: Task,
    settings: OptimizationSettings,
    *,
    seed: int,
    purpose: str,
    hospital: int,
    resume: Path | None = None,
    on_epoch: OnEpoch | None = None,
    epochs: int | None = None,
) -> Progress:
    """Train until patience or epochs end, and leave the module in its best state.

    Args:
        purpose: names the random streams, such as "pretraining".
        hospital: whose records they are, or `WHOLE_CONSORTIUM`.
        resume: a file that holds the loop's state while it runs; if it exists the loop goes on from it.
        on_epoch: called with each epoch's history row.
        epochs: train for exactly so many and keep the last state, with no look at validation.

    Raises:
        TemptError: the checkpoint is damaged or belongs to another module, the module keeps what a checkpoint can't
            hold, or the loss is no number.
    """
    if not task.records:  # nothing to learn from: the first weights are the result
        task.module.eval()
        return Progress()
    if (name := hidden_state(task.module)) is not None:
        raise TemptError(
            f"{purpose}: its module {name} keeps a state of its own (get_extra_state), which no checkpoint would hold; "
            "keep it in a buffer"
        )
    task.module.train()
    parameters = trained_parameters(task.module)
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise TemptError(
                f"{purpose}: its parameter {name} is {parameter.dtype}, which fused Adam does not take; "
                "keep real and imaginary parts as real numbers, by torch.view_as_real"
            )
    device = next(iter(parameters.values())).device
    optimizer = torch.optim.Adam(parameters.values(), lr=settings.learning_rate, fused=True)
    selects = epochs is None and task.validation_records > 0
    progress = Progress()
    best: dict[str, Tensor] = {}
    if resume is not None and resume.exists():
        progress, best = _restore(resume, task.module, optimizer)
    saved = time.monotonic()
    steps_an_epoch = len(_batches(task, settings.batch_size, generator(torch.device("cpu"), seed, purpose, hospital)))
    last = epochs if epochs is not None else most_epochs(settings, steps_an_epoch * settings.batch_size)
    while progress.epoch < last and not (selects and out_of_patience(progress, settings)):
        began = time.monotonic()
        epoch = progress.epoch + 1
        loss = run_epoch(task, optimizer, settings.batch_size, seed, purpose, hospital, epoch, device)
        if not math.isfinite(loss):
            whose = "all hospitals" if hospital == WHOLE_CONSORTIUM else f"hospital {hospital}"
            raise TemptError(
                f"{purpose} of {whose}: the loss is {loss} in epoch {epoch}; "
                f"lower its learning_rate (now {settings.learning_rate})"
            )
        score = score_of(task) if selects else None
        progress.epoch = epoch
        progress.step += steps_an_epoch
        better = progress.take(score, selects=selects)
        if better and selects:
            best = copied(state_of(task.module))
        seconds = time.monotonic() - began
        row = {
            "epoch": epoch,
            "step": progress.step,
            "loss": loss,
            "score": score,
            "best": better,
            "seconds": round(seconds, 3),
        }
        progress.history.append(row)
        if on_epoch is not None:
            on_epoch(row)
        if resume is not None and time.monotonic() - saved >= _CHECKPOINT_SECONDS:
            _save(resume, task.module, optimizer, best, progress)
            saved = time.monotonic()
    if selects:
        put_back(task.module, best)
    task.module.eval()
    return progress


def run_epoch(
    task: Task,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    seed: int,
    purpose: str,
    hospital: int,
    epoch: int,
    device: torch.device,
) -> float:
    """One pass over the records in batches of (seed, purpose, hospital, epoch); the mean loss of a record."""
    # Algorithm 1, lines 2 and 10: the order on the CPU, so that every device sees the same batches
    batches = _batches(task, batch_size, generator(torch.device("cpu"), seed, f"{purpose}/order", hospital, epoch))
    draws = generator(device, seed, purpose, hospital, epoch)
    total = torch.zeros((), dtype=torch.float64, device=device)
    with global_stream(device, seed, purpose, hospital, epoch):  # for layers that know no other, such as nn.Dropout
        for index in torch.cat(list(batches)).to(device).split([len(batch) for batch in batches]):
            loss = task.loss(index, draws)
            # Algorithm 1, lines 6 and 13
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(index)
    return float(total) / sum(len(batch) for batch in batches)


def shuffled(
    records: int, batch_size: int, generator: torch.Generator, hospital: Int[Tensor, " records"] | None = None
) -> Sequence[Int[Tensor, " batch"]]:
    """The places of so many records in batches, in an order of chance.

    Args:
        hospital: of each record, where a batch is to be of one hospital's; the batches come in an order of chance, too.
    """
    order = torch.randperm(records, generator=generator)
    if hospital is None:
        return list(order.split(batch_size))
    whose = hospital.cpu()[order]
    batches = [batch for one in whose.unique() for batch in order[whose == one].split(batch_size)]
    return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]


def _batches(task: Task, batch_size: int, generator: torch.Generator) -> Sequence[Int[Tensor, " batch"]]:
    if isinstance(task, DrawsBatches):
        return task.draw_batches(batch_size, generator)
    return shuffled(task.records, batch_size, generator)


def score_of(task: Task) -> float:
    """The task's score in evaluation mode; each of its modules is then in the mode that it was in before."""
    modes = [(module, module.training) for module in task.module.modules()]
    task.module.eval()
    try:
        return task.score()
    finally:
        for module, mode in modes:
            module.training = mode


def most_epochs(settings: OptimizationSettings, records: int) -> int:
    """The epochs that a training lasts at most."""
    steps_an_epoch = max(1, -(-records // settings.batch_size))
    return max(settings.epochs, -(-settings.least_steps // steps_an_epoch))


def out_of_patience(progress: Progress, settings: OptimizationSettings) -> bool:
    """Whether the best score is too long ago, in epochs (or rounds) and in steps."""
    return (
        progress.epoch - progress.best_epoch >= settings.patience
        and progress.step - progress.best_step >= settings.least_steps
    )


def _save(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    progress: Progress,
) -> None:
    tensors = {f"now.{name}": tensor for name, tensor in state_of(module).items()}
    moments = adam_state(optimizer, trained_parameters(module))
    tensors |= {f"adam.{name}": tensor for name, tensor in moments.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    checkpoint.save(path, tensors, vars(progress), durable=False)


def _restore(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, dict[str, Tensor]]:
    parameters = trained_parameters(module)
    tensors, about = checkpoint.load(path, next(iter(parameters.values())).device)
    try:
        put_back(module, _part(tensors, "now."))
        put_adam_back(optimizer, parameters, _part(tensors, "adam."))
        progress, best = progress_of(about), _part(tensors, "best.")
        if best.keys() != (state_of(module).keys() if progress.best_score is not None else set()):
            raise KeyError("its best state is another module's")
        return progress, best
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TemptError(f"{path}: a checkpoint of another run ({error}); delete it to compute it again") from None


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
