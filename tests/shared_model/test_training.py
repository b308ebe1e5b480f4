"""Laws of the training loop (Algorithm 1, lines 2, 6, 10 and 13), on a task whose scores are written down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared_model import training
from shared_model.errors import TemptError
from shared_model.randomness import generator
from shared_model.settings import OptimizationSettings
from shared_model.training import Progress, train

INPUTS = torch.arange(35, dtype=torch.float32).reshape(7, 5).sin()


class Scripted:
    """Squared error with noise from the loop's generator; its scores are `scores`, an epoch each."""

    def __init__(self, scores: Sequence[float] = (), records: int = 7, frozen: bool = False) -> None:
        self.module = nn.Linear(5, 1)
        with torch.no_grad():
            self.module.weight.copy_(torch.arange(5.0).cos()[None])
            self.module.bias.fill_(0.25)
        self.module.bias.requires_grad_(not frozen)
        self.records, self.validation_records = records, 1 if scores else 0
        self.batches: list[list[int]] = []
        self.losses: list[float] = []
        self._scores = list(scores)
        self._first = self.module.weight.detach().clone()

    def loss(self, index: Tensor, generator: torch.Generator) -> Tensor:
        self.batches.append(index.tolist())
        noise = torch.rand(len(index), 5, generator=generator)
        loss = (self.module(INPUTS[index] + noise) ** 2).mean()
        self.losses.append(float(loss.detach()))
        return loss

    def score(self) -> float:
        # the epoch is told from the batches, so that a resumed task has the same script
        raise NotImplementedError


class WithScores(Scripted):
    def __init__(self, scores: Sequence[float], records: int = 7, done: int = 0) -> None:
        super().__init__(scores, records)
        self.asked = done

    def score(self) -> float:
        self.asked += 1
        return self._scores[self.asked - 1]


def options(**more: Any) -> OptimizationSettings:
    values = {"learning_rate": 0.05, "batch_size": 3, "epochs": 8, "patience": 2, "least_steps": 0} | more
    return OptimizationSettings(**values)


def run(task: Scripted, settings: OptimizationSettings | None = None, **more: Any) -> Progress:
    values: dict[str, Any] = {"seed": 42, "purpose": "test", "hospital": 3} | more
    return train(task, settings or options(), **values)


def weights(task: Scripted) -> list[float]:
    return [float(x) for p in task.module.parameters() for x in p.detach().flatten()]


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def test_train_with_worse_scores_stops_after_patience_and_restores_the_best() -> None:
    task = WithScores([0.1, 0.5, 0.4, 0.5, 0.9])
    at_end: list[list[float]] = []
    progress = run(task, on_epoch=lambda row: at_end.append(weights(task)))
    assert [row["best"] for row in progress.history] == [True, True, False, False]  # an equal score is no better one
    assert (progress.best_epoch, progress.best_score) == (2, 0.5)
    assert weights(task) == at_end[1] != at_end[3]
    assert not task.module.training


def test_train_with_few_steps_an_epoch_waits_for_least_steps() -> None:
    # 7 records in batches of 3: 3 steps an epoch, so 10 steps take 4 epochs
    progress = run(WithScores([0.9] + [0.1] * 7), options(patience=2, least_steps=10))
    assert [row["epoch"] for row in progress.history] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in progress.history] == [3, 6, 9, 12, 15]
    progress = run(WithScores([0.9] + [0.1] * 7), options(patience=2, least_steps=9))
    assert len(progress.history) == 4
    progress = run(WithScores([0.9] + [0.1] * 7), options(patience=4, least_steps=3))
    assert len(progress.history) == 5


@pytest.mark.parametrize(("epochs", "least_steps", "expected"), [(2, 10, 4), (2, 9, 3), (5, 9, 5), (2, 0, 2)])
def test_train_with_few_steps_an_epoch_lasts_for_least_steps(epochs: int, least_steps: int, expected: int) -> None:
    progress = run(Scripted(), options(epochs=epochs, least_steps=least_steps))
    assert (progress.epoch, progress.step) == (expected, 3 * expected)


def test_train_for_fixed_epochs_knows_no_least_steps() -> None:
    assert run(Scripted(), options(least_steps=200), epochs=2).epoch == 2


def test_train_with_better_scores_ends_with_its_epochs() -> None:
    progress = run(WithScores([0.1 * i for i in range(8)]), options(patience=1))
    assert (progress.epoch, progress.best_epoch) == (8, 8)


def test_train_without_validation_records_keeps_the_last_epoch() -> None:
    task = Scripted()
    at_end: list[list[float]] = []
    progress = run(task, on_epoch=lambda row: at_end.append(weights(task)))
    assert progress.best_epoch == 8 and weights(task) == at_end[7]
    assert [row["score"] for row in progress.history] == [None] * 8


def test_train_for_fixed_epochs_never_looks_at_validation() -> None:
    task = Scripted([0.1])  # its score raises
    progress = run(task, epochs=11)
    assert (progress.epoch, progress.best_epoch, len(progress.history)) == (11, 11, 11)


def test_train_for_the_best_epoch_gives_the_best_state() -> None:
    chosen, fixed = WithScores([0.1, 0.2, 0.9, 0.1, 0.1]), Scripted()
    assert run(chosen).best_epoch == 3
    run(fixed, epochs=3)
    assert weights(chosen) == weights(fixed)


def test_train_uses_every_record_once_an_epoch_and_keeps_the_partial_batch() -> None:
    task = Scripted()
    progress = run(task, epochs=2)
    assert [len(batch) for batch in task.batches] == [3, 3, 1] * 2
    assert all(sorted(i for batch in task.batches[a : a + 3] for i in batch) == list(range(7)) for a in (0, 3))
    first = task.losses[:3]
    assert progress.history[0]["loss"] == pytest.approx((3 * first[0] + 3 * first[1] + first[2]) / 7, rel=1e-6)


@pytest.mark.parametrize(("records", "batch_size", "steps"), [(1, 64, 1), (6, 3, 2), (7, 7, 1), (7, 1, 7)])
def test_train_counts_steps(records: int, batch_size: int, steps: int) -> None:
    task = Scripted(records=records)
    assert run(task, options(batch_size=batch_size), epochs=3).step == 3 * steps == len(task.batches)


def test_order_is_a_function_of_seed_purpose_hospital_and_epoch() -> None:
    def order(**more: Any) -> list[tuple[int, ...]]:
        task = Scripted()
        run(task, options(batch_size=7), epochs=2, **more)
        return [tuple(batch) for batch in task.batches]

    assert order() == order()
    different = order() + order(seed=43) + order(purpose="other") + order(hospital=8)
    assert len(set(different)) == 8
    # Algorithm 1, lines 2 and 10: of the CPU's generator, whatever the device
    cpu = torch.device("cpu")
    assert list(order()[1]) == torch.randperm(7, generator=generator(cpu, 42, "test/order", 3, 2)).tolist()


def test_train_of_one_hospital_is_the_same_whatever_ran_before() -> None:
    alone = Scripted()
    run(alone, epochs=2)
    torch.manual_seed(1)
    for hospital in (8, 5):
        run(Scripted(), epochs=2, hospital=hospital)
    after = Scripted()
    run(after, epochs=2)
    assert weights(alone) == weights(after)


def test_train_leaves_frozen_parameters() -> None:
    task = Scripted(frozen=True)
    run(task, epochs=2)
    assert float(task.module.bias) == 0.25
    assert not torch.equal(task.module.weight, task._first)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_train_with_a_loss_that_is_no_number_says_so(value: float) -> None:
    task = Scripted()
    with torch.no_grad():
        task.module.bias.fill_(value)
    with pytest.raises(TemptError, match=r"test of hospital 3: the loss is (nan|inf) in epoch 1; .*learning_rate") as e:
        run(task)
    assert len(str(e.value).splitlines()) == 1


class Interruption(Exception):
    pass


def interrupted(path: Path, at: Sequence[int], scores: Sequence[float], settings: OptimizationSettings) -> Any:
    """A training that is interrupted at the end of these epochs, each time gone on with by a new task."""
    before = 0
    for epoch in [*at, 0]:

        def stop(row: dict[str, Any], epoch: int = epoch) -> None:
            if row["epoch"] == epoch:
                raise Interruption

        task = WithScores(scores, done=before) if scores else Scripted()
        if epoch:
            with pytest.raises(Interruption):
                run(task, settings, resume=path, on_epoch=stop)
            before = epoch - 1  # the epoch that was interrupted is done again
        else:
            return task, run(task, settings, resume=path)
    raise AssertionError


@pytest.mark.parametrize("scores", [(), (0.1, 0.5, 0.4, 0.6, 0.3, 0.5, 0.2, 0.9)], ids=["last", "best"])
@pytest.mark.parametrize("at", [[1], [2], [4], [6], [1, 3, 3, 5]], ids=str)  # with scores it stops after 6
def test_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: list[int], scores: tuple[float, ...]
) -> None:
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)
    whole = WithScores(scores) if scores else Scripted()
    expected = run(whole, options())
    task, found = interrupted(tmp_path / "partial", at, scores, options())
    assert weights(task) == weights(whole)
    assert timeless(found.history) == timeless(expected.history)
    assert (found.best_epoch, found.best_score, found.step) == (expected.best_epoch, expected.best_score, expected.step)


def test_training_resumed_after_its_last_epoch_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)
    scores = [0.1, 0.9, 0.1, 0.1]
    first = WithScores(scores)
    expected = run(first, resume=tmp_path / "partial")
    again = WithScores([])
    again.validation_records = 1
    found = run(again, resume=tmp_path / "partial")
    assert again.batches == [] and weights(again) == weights(first)
    assert timeless(found.history) == timeless(expected.history)


def test_training_keeps_no_file_before_it_is_due(tmp_path: Path) -> None:
    run(Scripted(), epochs=3, resume=tmp_path / "partial")
    assert not (tmp_path / "partial").exists()


@pytest.mark.parametrize(
    "module",
    [nn.Linear(4, 1), nn.Linear(5, 1, bias=False), nn.Sequential(nn.Linear(5, 1)), nn.Linear(1, 1)],
    ids=["another shape", "fewer tensors", "other names", "a shape that broadcasts"],
)
def test_training_from_a_checkpoint_of_another_module_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: nn.Module
) -> None:
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)
    other = Scripted()
    other.module = module  # type: ignore[assignment]
    inputs = torch.ones(3, next(module.parameters()).shape[1])
    other.loss = lambda index, generator: module(inputs[: len(index)]).square().mean()  # type: ignore[method-assign]
    run(other, epochs=1, resume=tmp_path / "partial")
    with pytest.raises(TemptError, match="partial: ") as caught:
        run(Scripted(), epochs=2, resume=tmp_path / "partial")
    assert len(str(caught.value).splitlines()) == 1


def test_training_from_a_damaged_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "partial"
    run(Scripted(), epochs=1, resume=path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TemptError, match="damaged checkpoint"):
        run(Scripted(), epochs=2, resume=path)
