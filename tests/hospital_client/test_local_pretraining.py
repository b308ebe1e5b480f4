"""A hospital's local epochs: FedProx's term, SCAFFOLD's correction on both sides, and that nothing else of it moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from hospital_client import app
from hospital_client.local_pretraining import LocalPretraining, LocalWork, _Gradients, _Proximal
from hospital_client.partition import Partition, read_partition
from server.plain_message import plain_message
from shared_model.errors import TemptError
from shared_model.pretraining import PretrainingNetwork, PretrainingTask
from shared_model.randomness import generator
from shared_model.settings import Settings
from tests.server.federations import initial_tensors
from tests.sim import consortium

DATASET, SETTINGS = consortium.make_dataset(), consortium.settings(pretraining__learning_rate="0.01")
HOSPITAL = 8
Tensors = dict[str, torch.Tensor]


def partition() -> Partition:
    own = DATASET.of_hospitals([HOSPITAL])
    return Partition(HOSPITAL, own.vocabulary, own.records, own.split_by_patient)


def shared() -> Tensors:
    return {name: torch.from_numpy(array.copy()) for name, array in initial_tensors(SETTINGS, DATASET, 42).items()}


def network() -> PretrainingNetwork:
    return PretrainingNetwork(SETTINGS.encoder, partition().rows, torch.Generator().manual_seed(9), "zero")


def local(settings: Settings = SETTINGS) -> LocalPretraining:
    return LocalPretraining(partition(), network(), settings.pretraining, 42)


def apart(one: Tensors, other: Tensors) -> float:
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


# ------------------------------------------------------------------------------------------------ FedProx


def test_the_proximal_term_is_half_of_mu_times_the_squared_distance_from_the_start() -> None:
    module = network()
    split = partition().split(42)
    base = PretrainingTask(module, split.train, split.validation, SETTINGS.pretraining, seed=42)
    task = _Proximal(base, 3.0)
    index = torch.arange(5)

    def draws() -> torch.Generator:
        return generator(torch.device("cpu"), 1, "test", 0)

    assert task.loss(index, draws()).item() == pytest.approx(base.loss(index, draws()).item(), rel=1e-6)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.1
    distance = 0.01 * sum(p.numel() for p in module.parameters())
    expected = base.loss(index, draws()).item() + 0.5 * 3.0 * distance
    assert task.loss(index, draws()).item() == pytest.approx(expected, rel=1e-5)


def test_the_stronger_the_proximal_term_the_nearer_an_update_stays() -> None:
    moved = [apart(local().train(shared(), LocalWork(1, 6, HOSPITAL, mu)).tensors, shared()) for mu in (0.0, 1.0, 50.0)]
    assert moved[0] > moved[1] > moved[2] > 0


# ------------------------------------------------------------------------------------------------ SCAFFOLD


def test_each_step_goes_along_the_corrected_gradient_and_the_mean_is_of_the_raw_ones() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    gradients = _Gradients(optimizer, {"w": weight}, {"w": torch.tensor([0.5, 0.25])})
    expected, raw = weight.detach().clone(), []
    for _ in range(3):
        optimizer.zero_grad()
        weight.square().sum().backward()
        raw.append(2 * expected)
        expected = expected - 0.1 * (2 * expected + torch.tensor([0.5, 0.25]))
        optimizer.step()
        assert weight.detach() == pytest.approx(expected)
    assert gradients.mean(3)["w"] == pytest.approx(torch.stack(raw).mean(0))


@pytest.fixture
def place(tmp_path: Path) -> app.Place:
    return app.Place(consortium.write_dataset(tmp_path / "data", DATASET), HOSPITAL, tmp_path / "folder")


def ask(place: app.Place, tensors: Tensors, control: Tensors, number: int, taken: int) -> RecordDict:
    """What the hospital answers to a round of SCAFFOLD."""
    config: dict[str, Any] = {"experiment": "test", "seed": 42, "settings": SETTINGS.model_dump_json()}
    config |= {"round": number, "first-epoch": number, "epochs": 1, "taken": taken, "proximal-mu": 0.0}
    config |= {"train": True, "score": False, "alone": False, "keep-optimizer": False}
    config |= {"bfloat16": False, "changed-rows": False}
    arrays = {
        name: ArrayRecord({n: Array(t.numpy()) for n, t in record.items()})
        for name, record in (("arrays", tensors), ("control", control))
    }
    content = RecordDict({**arrays, "config": app.ConfigRecord(config)})
    message: Message = plain_message(content, "train.pretrain", HOSPITAL, number=number)
    context = Context(run_id=0, node_id=HOSPITAL, node_config={}, state=RecordDict(), run_config={})
    reply = app.make_app(lambda context: place, simulated=True)(message, context)
    assert not reply.has_error(), reply
    return reply.content


def test_a_hospital_is_corrected_by_the_servers_variate_minus_its_own_and_tells_how_its_own_moved(
    place: app.Place,
) -> None:
    start, zero = shared(), {name: torch.zeros_like(t) for name, t in shared().items()}
    draws = torch.Generator().manual_seed(3)
    server = {name: 0.05 * torch.randn(t.shape, generator=draws) for name, t in start.items()}

    # round 1: its own variate is zero
    first = ask(place, start, server, 1, taken=0)
    by_hand = local().train(start, LocalWork(1, 1, HOSPITAL), correction=server)
    same(first, "arrays", by_hand.tensors)
    same(first, "control", by_hand.gradient)
    assert apart(by_hand.tensors, local().train(start, LocalWork(1, 1, HOSPITAL), correction=zero).tensors) > 0

    # round 2, after round 1's update was taken: its own is the mean gradient of round 1
    own = by_hand.gradient
    second = ask(place, start, server, 2, taken=1)
    correction = {name: server[name] - own[name] for name in own}
    by_hand = local().train(start, LocalWork(2, 1, HOSPITAL), correction=correction)
    same(second, "arrays", by_hand.tensors)
    same(second, "control", {name: by_hand.gradient[name] - own[name] for name in own})

    # round 3, as round 2's update was not taken: its own is still that of round 1
    third = ask(place, start, server, 3, taken=1)
    by_hand = local().train(start, LocalWork(3, 1, HOSPITAL), correction=correction)
    same(third, "arrays", by_hand.tensors)


def same(content: RecordDict, record: str, expected: Tensors) -> None:
    found = content.array_records[record]
    assert sorted(found) == sorted(expected)
    assert [n for n in expected if not np.array_equal(found[n].numpy(), expected[n].numpy())] == []


# ------------------------------------------------------------------------------------------------ other networks


class WithTower(PretrainingNetwork):
    """A part that no record of this hospital reaches, a frozen one, and a constant."""

    def __init__(self) -> None:
        super().__init__(SETTINGS.encoder, partition().rows, torch.Generator().manual_seed(9), "zero")
        self.tower = torch.nn.Linear(3, 2)
        self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("positions", torch.arange(3), persistent=False)


def test_kept_optimizer_of_a_parameter_without_a_gradient_goes_on_with_the_same_bits() -> None:
    """Two epochs in one round are two rounds of one, with the optimizer kept."""
    module = WithTower()
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    hospital = LocalPretraining(partition(), module, SETTINGS.pretraining, 42)
    whole = hospital.train(start, LocalWork(1, 2, HOSPITAL))
    first = hospital.train(start, LocalWork(1, 1, HOSPITAL))
    second = hospital.train(first.tensors, LocalWork(2, 1, HOSPITAL), optimizer_state=first.optimizer)
    for one, other in ((whole.tensors, second.tensors), (whole.optimizer, second.optimizer)):
        assert sorted(one) == sorted(other) and all(torch.equal(one[name], other[name]) for name in one)
    assert not any("tower" in name or "frozen" in name for name in whole.optimizer)
    assert all(torch.equal(whole.tensors[name], start[name]) for name in ("tower.weight", "tower.bias", "frozen"))


@pytest.mark.parametrize("strategy", ["proximal", "scaffold"])
def test_strategies_take_a_parameter_without_a_gradient(strategy: str) -> None:
    module = WithTower()
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    zero = {name: torch.zeros_like(p) for name, p in start.items()}
    hospital = LocalPretraining(partition(), module, SETTINGS.pretraining, 42)
    work = LocalWork(1, 1, HOSPITAL, 1.0 if strategy == "proximal" else 0.0)
    update = hospital.train(start, work, correction=zero if strategy == "scaffold" else None)
    assert torch.equal(update.tensors["tower.weight"], start["tower.weight"])
    assert apart(update.tensors, start) > 0
    assert sorted(update.gradient) == (sorted(start) if strategy == "scaffold" else [])


def test_network_with_statistics_that_no_federation_shares_is_refused_at_both_sides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each side would go on with running means of its own."""
    module = network()
    module.project_diagnoses.append(torch.nn.BatchNorm1d(SETTINGS.encoder.c))
    words = r"shares parameters alone, .* the buffer project_diagnoses\.3\.num_batches_tracked; use layers without"
    with pytest.raises(TemptError, match=words):
        LocalPretraining(partition(), module, SETTINGS.pretraining, 42)
    monkeypatch.setattr("server.federation.PretrainingNetwork", lambda *_: module)
    with pytest.raises(TemptError, match=words):
        initial_tensors(SETTINGS, DATASET, 42)


def test_buffer_that_moves_although_it_is_said_to_be_constant_is_no_update() -> None:
    module = WithTower()

    def move(*_: Any) -> None:
        module.positions += 1

    module.encoder.register_forward_hook(move)
    hospital = LocalPretraining(partition(), module, SETTINGS.pretraining, 42)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    with pytest.raises(ValueError, match="moved the buffer positions"):
        hospital.train(start, LocalWork(1, 1, HOSPITAL))


# ------------------------------------------------------------------------------------------------ records


def test_a_partition_is_the_hospitals_part_of_the_dataset_and_opens_no_other(tmp_path: Path) -> None:
    data = consortium.write_dataset(tmp_path / "data", DATASET)
    for other in (data / "hospitals").iterdir():
        if other.name != str(HOSPITAL):
            (other / "records.parquet").write_bytes(b"not to be read")
    found = read_partition(data, HOSPITAL)
    assert found.records.stay.tolist() == DATASET.records.of_hospital(HOSPITAL).stay.tolist()
    assert found.split(42).train.stay.tolist() == DATASET.split(42).of_hospital(HOSPITAL).train.stay.tolist()
    with pytest.raises(TemptError, match="has no hospital 99"):
        read_partition(data, 99)


def test_records_that_are_replaced_during_a_run_are_refused(place: app.Place) -> None:
    start, zero = shared(), {name: torch.zeros_like(t) for name, t in shared().items()}
    ask(place, start, zero, 1, taken=0)
    path = place.partition / "hospitals" / str(HOSPITAL) / "records.parquet"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(TemptError, match=r"records\.parquet: was replaced while the run was at work"):
        ask(place, start, zero, 2, taken=1)


def test_folders_are_for_their_owner_alone(place: app.Place) -> None:
    start, zero = shared(), {name: torch.zeros_like(t) for name, t in shared().items()}
    ask(place, start, zero, 1, taken=0)
    folders = [place.folder, *(path for path in place.folder.rglob("*") if path.is_dir())]
    assert {path.name for path in folders} >= {"folder", "egress", "kept"}
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
