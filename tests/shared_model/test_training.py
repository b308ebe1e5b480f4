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
from shared_model.module_state import adam_state, hidden_state, put_adam_back, put_back, state_of
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


class DrawsItsOwn(Scripted):
    """Batches of two and one record of the first three, the last record in both."""

    def draw_batches(self, batch_size: int, generator: torch.Generator) -> list[Tensor]:
        first = int(torch.randint(2, (), generator=generator))
        return [torch.tensor([first, 2]), torch.tensor([2])]


def test_batches_that_a_task_draws_are_those_of_training_and_its_steps() -> None:
    task = DrawsItsOwn()
    progress = run(task, options(least_steps=9))
    assert {tuple(batch) for batch in task.batches} == {(0, 2), (1, 2), (2,)}
    assert [len(batch) for batch in task.batches] == [2, 1] * 8
    assert [row["step"] for row in progress.history] == [2 * epoch for epoch in range(1, 9)]
    means = [(2 * a + b) / 3 for a, b in zip(task.losses[::2], task.losses[1::2], strict=True)]
    assert [row["loss"] for row in progress.history] == pytest.approx(means)
    longer = DrawsItsOwn()
    assert run(longer, options(least_steps=21)).epoch == 11  # of two steps each
    again = DrawsItsOwn()
    run(again, options(least_steps=9))
    assert again.batches == task.batches


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


# ------------------------------------------------------------------------------------------------ buffers, modes, Adam


class Statistics(nn.Module):
    """Buffers of every kind that training moves, and a tower that is reached in some epochs, if ever."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
            self.tower = nn.Linear(5, 1)
        self.tower.bias.requires_grad_(False)
        self.register_buffer("calls", torch.tensor(0), persistent=False)
        self.register_buffer("largest", torch.zeros(3, dtype=torch.bfloat16))
        self.register_buffer("seen", torch.empty(0))  # it grows
        self.register_buffer("first", None)  # it comes late
        self.average = nn.Parameter(torch.zeros(4), requires_grad=False)  # moved by hand
        self.register_buffer("same", self.calls)  # the same memory

    def forward(self, x: Tensor, *, with_tower: bool) -> Tensor:
        self.calls += 1
        self.largest.copy_(x.abs().flatten().topk(3).values)
        self.seen = torch.cat([self.seen, x.detach().mean()[None]])[-5:]
        if self.first is None:
            self.first = x.detach()[0]
        self.average.data.mul_(0.5).add_(self.net[0].bias.detach())
        out: Tensor = self.net(x)
        return out + self.tower(x) if with_tower else out


class WithStatistics:
    """Its tower gets a gradient from epoch `reached` on, 0 for never."""

    records, validation_records = 8, 1

    def __init__(self, scores: Sequence[float] = (), reached: int = 0, done: int = 0) -> None:
        self.module = Statistics()
        self.validation_records = 1 if scores else 0
        self._scores, self._epoch, self._reached = list(scores), done, reached
        self._batches = 0
        self.modes: list[tuple[str, bool, bool]] = []

    def loss(self, index: Tensor, generator: torch.Generator) -> Tensor:
        epoch = self._epoch + 1 + self._batches // 2 if not self.validation_records else self._epoch + 1
        self._batches += 1
        self.modes.append(("loss", self.module.training, self.module.net[2].training))
        inputs = torch.cat([INPUTS, INPUTS[:1] + 1])[index]
        return self.module(inputs, with_tower=0 < self._reached <= epoch).square().mean()

    def score(self) -> float:
        self.modes.append(("score", self.module.training, self.module.net[1].training))
        self._epoch += 1
        return self._scores[self._epoch - 1]


def everything(module: nn.Module) -> dict[str, Tensor]:
    found = dict(module.named_parameters()) | dict(module.named_buffers(remove_duplicate=False))
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def assert_same_state(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


SCORES = (0.1, 0.5, 0.4, 0.6, 0.3, 0.5, 0.2, 0.9)
FOUR = {"batch_size": 4, "learning_rate": 0.05}


def train_with_statistics(task: WithStatistics, **more: Any) -> Progress:
    values: dict[str, Any] = {"seed": 42, "purpose": "test", "hospital": 3} | more
    return train(task, options(**FOUR), **values)


def test_train_scores_in_evaluation_mode_and_goes_on_in_training_mode() -> None:
    task = WithStatistics([0.1, 0.2, 0.1, 0.1])
    train_with_statistics(task)
    epoch = [("loss", True, True), ("loss", True, True), ("score", False, False)]
    assert task.modes == epoch * 4
    assert not any(module.training for module in task.module.modules())


def test_score_leaves_each_module_in_the_mode_it_was_in_also_when_it_fails() -> None:
    task = WithStatistics([])
    task.module.net[1].eval()  # held at what it has learnt
    before = [module.training for module in task.module.modules()]
    with pytest.raises(IndexError):
        training.score_of(task)
    assert task.modes == [("score", False, False)]
    assert [module.training for module in task.module.modules()] == before and True in before and False in before


def test_train_restores_buffers_of_the_best_epoch() -> None:
    task, at_end = WithStatistics(SCORES), list[dict[str, Tensor]]()
    progress = train_with_statistics(task, on_epoch=lambda row: at_end.append(everything(task.module)))
    assert (progress.epoch, progress.best_epoch) == (6, 4)
    assert_same_state(everything(task.module), at_end[3])
    assert at_end[3]["calls"] == 8 and task.module.same is task.module.calls
    assert not torch.equal(at_end[3]["net.1.running_mean"], at_end[5]["net.1.running_mean"])


@pytest.mark.parametrize("reached", [0, 1, 2, 4], ids=["never", "at once", "before the end", "after the end"])
@pytest.mark.parametrize("scores", [(), SCORES], ids=["last", "best"])
@pytest.mark.parametrize("at", [[1], [3], [5], [2, 3, 4]], ids=str)
def test_resumed_training_of_buffers_and_parameters_without_a_gradient_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: list[int], scores: tuple[float, ...], reached: int
) -> None:
    """Each interruption comes before its epoch is kept: what is on disk is the epoch before."""
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)
    whole = WithStatistics(scores, reached)
    expected = train_with_statistics(whole)
    before = 0
    for epoch in at:

        def stop(row: dict[str, Any], epoch: int = epoch) -> None:
            if row["epoch"] == epoch:
                raise Interruption

        torch.rand(epoch)  # what torch's own generator gave before is of no account
        with pytest.raises(Interruption):
            task = WithStatistics(scores, reached, done=before)
            train_with_statistics(task, resume=tmp_path / "partial", on_epoch=stop)
        before = epoch - 1
    task = WithStatistics(scores, reached, done=before)
    found = train_with_statistics(task, resume=tmp_path / "partial")
    assert_same_state(everything(task.module), everything(whole.module))
    assert timeless(found.history) == timeless(expected.history)
    moved = not torch.equal(whole.module.tower.weight, Statistics().tower.weight)
    assert moved == (reached > 0)


def test_train_with_layers_that_draw_from_torch_is_the_same_whatever_was_drawn_before() -> None:
    found = []
    for before in (1, 2):
        torch.manual_seed(before)
        state = torch.get_rng_state()
        task = WithStatistics()
        train_with_statistics(task, epochs=2)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(everything(task.module))
    assert_same_state(*found)


class Other(Statistics):
    def __init__(self, change: str) -> None:
        super().__init__()
        if change == "a buffer more":
            self.register_buffer("more", torch.ones(2))
        elif change == "a buffer less":
            del self.largest
        elif change == "another type":
            self.tower.double()
        elif change == "a tower less":
            del self.tower


@pytest.mark.parametrize("change", ["a buffer more", "a buffer less", "another type", "a tower less"])
def test_training_from_a_checkpoint_of_a_module_with_other_tensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)
    train_with_statistics(WithStatistics(), epochs=1, resume=tmp_path / "partial")
    task = WithStatistics()
    task.module = Other(change)
    with pytest.raises(TemptError, match="partial: a checkpoint of another run") as caught:
        train_with_statistics(task, epochs=2, resume=tmp_path / "partial")
    assert len(str(caught.value).splitlines()) == 1


class Turned(nn.Module):
    """Parameters that lie in memory otherwise than their shape says."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(1)
        self.turned = nn.Parameter(torch.randn(6, 4, generator=draws).T)
        self.convolution = nn.Conv2d(3, 5, 2).to(memory_format=torch.channels_last)
        with torch.no_grad():
            for parameter in self.convolution.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draws))


def test_adam_goes_on_with_moments_in_the_parameters_own_order_in_memory() -> None:
    def steps(module: Turned, optimizer: torch.optim.Adam, many: int) -> None:
        for _ in range(many):
            optimizer.zero_grad()
            weighted = [(p * torch.arange(p.numel()).view(p.shape)).square().sum() for p in module.parameters()]
            torch.stack(weighted).sum().backward()
            optimizer.step()

    whole, first = Turned(), Turned()
    steps(whole, torch.optim.Adam(whole.parameters(), lr=0.1, fused=True), 5)
    before = torch.optim.Adam(first.parameters(), lr=0.1, fused=True)
    steps(first, before, 2)
    kept = {name: tensor.contiguous() for name, tensor in adam_state(before, dict(first.named_parameters())).items()}
    again = torch.optim.Adam(first.parameters(), lr=0.1, fused=True)
    put_adam_back(again, dict(first.named_parameters()), kept)
    steps(first, again, 3)
    for one, other in zip(first.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_adams_moments_go_to_their_parameters_device() -> None:
    """Fused Adam on a GPU takes no step that lies in the machine's memory; `meta` stands for one."""
    here = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(here.parameters(), fused=True)
    here(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    kept = adam_state(optimizer, dict(here.named_parameters()))
    there = nn.Linear(2, 1, device="meta")
    again = torch.optim.Adam(there.parameters())
    put_adam_back(again, dict(there.named_parameters()), kept)
    devices = {value.device.type for state in again.state.values() for value in state.values()}
    assert devices == {"meta"}


class Hidden(nn.Module):
    """Keeps what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = 0

    def get_extra_state(self) -> int:
        return self.seen

    def set_extra_state(self, state: int) -> None:
        self.seen = state


def test_a_module_whose_own_state_would_be_lost_at_a_resumption_is_refused() -> None:
    assert hidden_state(nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.LSTM(1, 1))) is None
    module = nn.Sequential(nn.Linear(1, 1), Hidden())
    assert hidden_state(module) == "1" and hidden_state(Hidden()) == "Hidden"
    task = Scripted([1.0])
    task.module = module  # type: ignore[assignment]
    with pytest.raises(TemptError, match=r"its module 1 keeps a state of its own .* keep it in a buffer"):
        run(task)


def test_a_complex_parameter_is_refused() -> None:
    task = Scripted([1.0])
    task.module = nn.Module()  # type: ignore[assignment]
    task.module.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(TemptError, match=r"its parameter phase is torch\.complex64, .* torch\.view_as_real"):
        run(task)


def test_a_buffer_whose_numbers_share_memory_is_put_back() -> None:
    module = nn.Linear(1, 1)
    module.register_buffer("wide", torch.ones(1, 1).expand(1, 4))
    kept = {name: tensor.clone() for name, tensor in state_of(module).items()} | {"wide": torch.arange(4.0)[None]}
    put_back(module, kept)
    assert module.wide.tolist() == [[0, 1, 2, 3]]
