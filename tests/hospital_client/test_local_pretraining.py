"""A hospital's local epochs: FedProx's term, SCAFFOLD's correction on both sides, and that nothing else of it moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from hospital_client import app
from hospital_client.local_pretraining import LocalPretraining, LocalRound, LocalWork, _WithTerm
from hospital_client.partition import Partition, read_partition
from server.plain_message import plain_message
from shared_model.algorithms import algorithm, algorithms, scaffold
from shared_model.errors import TemptError
from shared_model.federated_algorithm import Answer, AskedHere
from shared_model.pretrainings.tempt import PretrainingNetwork, PretrainingTask
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


ONE = LocalWork(1, 1, HOSPITAL)


def asked(more: Mapping[str, Tensors] | None = None, last_accepted: int = 0, **numbers: float) -> AskedHere:
    return AskedHere(more or {}, numbers, 0, last_accepted)


def trained(
    name: str,
    work: LocalWork = ONE,
    came: AskedHere | None = None,
    kept: Tensors | None = None,
    start: Tensors | None = None,
    hospital: LocalPretraining | None = None,
    **numbers: float,
) -> tuple[Tensors, Answer, Tensors]:
    """What a round of an algorithm leaves: the shared tensors, all that is told, and what is kept."""
    begun = (hospital or local()).begin(start or shared(), work)
    answer, to_keep = algorithm(name).local(begun, came or asked(**numbers), kept)
    return dict(answer.arrays["arrays"]), answer, dict(to_keep)


def apart(one: Tensors, other: Tensors) -> float:
    return sum(float((one[name] - other[name]).square().sum()) for name in one) ** 0.5


# ------------------------------------------------------------------------------------------------ FedProx


def test_the_proximal_term_is_half_of_mu_times_the_squared_distance_from_the_start() -> None:
    module = network()
    split = partition().split(42)
    base = PretrainingTask(module, split.train, split.validation, SETTINGS.pretraining, seed=42)
    index = torch.arange(5)
    terms: list[Callable[[], torch.Tensor] | None] = []

    class Model(LocalRound):
        def epochs(self, *, term: Callable[[], torch.Tensor] | None = None, **_: Any) -> float:
            terms.append(term)
            return 0.0

    model = Model(base, dict(module.named_parameters()), torch.optim.Adam(module.parameters()), ONE, 5, 42)
    algorithm("fedprox").local(model, asked(proximal_mu=3.0), None)
    algorithm("fedprox").local(model, asked(proximal_mu=0.0), None)
    term, without = terms
    assert term is not None and without is None
    task = _WithTerm(base, term)

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
    moved = [
        apart(trained("fedprox", LocalWork(1, 6, HOSPITAL), proximal_mu=mu)[0], shared()) for mu in (0.0, 1.0, 50.0)
    ]
    assert moved[0] > moved[1] > moved[2] > 0


# ------------------------------------------------------------------------------------------------ SCAFFOLD


def test_each_step_goes_along_the_corrected_gradient_and_the_mean_is_of_the_raw_ones() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    c, own = torch.tensor([0.75, 0.5]), torch.tensor([0.25, 0.25])
    expected, raw = weight.detach().clone(), []

    class Squares:
        """Three steps of plain gradient descent on the sum of squares."""

        task: Any = None
        parameters: Mapping[str, torch.nn.Parameter] = {"w": weight}
        steps = 3

        def epochs(self, *, before_step: Callable[[], None], term: None = None) -> float:
            nonlocal expected
            for _ in range(3):
                weight.grad = None
                weight.square().sum().backward()
                before_step()
                raw.append(2 * expected)
                expected = expected - 0.1 * (2 * expected + c - own)
                with torch.no_grad():
                    weight.sub_(0.1 * weight.grad)
                assert weight.detach() == pytest.approx(expected)
            return 0.5

        def tensors(self) -> Tensors:
            return {"w": weight.detach().clone()}

    answer, kept = scaffold.local(Squares(), asked({"control": {"w": c}}, last_accepted=1), {"control.w": own})
    mean = torch.stack(raw).mean(0)
    assert kept["control.w"] == pytest.approx(mean)
    assert answer.arrays["control"]["w"] == pytest.approx(mean - own)
    assert answer.arrays["arrays"]["w"] == pytest.approx(expected) and answer.loss == 0.5 and answer.numbers == {}
    own = torch.zeros(2)
    assert scaffold.local(Squares(), asked({"control": {"w": c}}, 1), None)[0].numbers == {"control-is-new": 1}
    assert scaffold.local(Squares(), asked({"control": {"w": c}}, 0), None)[0].numbers == {}


@pytest.fixture
def place(tmp_path: Path) -> app.HospitalConfig:
    return app.HospitalConfig(consortium.write_dataset(tmp_path / "data", DATASET), HOSPITAL, tmp_path / "folder")


def ask(place: app.HospitalConfig, tensors: Tensors, control: Tensors, number: int, taken: int) -> RecordDict:
    """What the hospital answers to a round of SCAFFOLD."""
    config: dict[str, Any] = {"experiment": "test", "seed": 42, "settings": SETTINGS.model_dump_json()}
    config["vocabulary"] = DATASET.vocabulary.digest
    config |= {"round": number, "serial": number, "first-epoch": number, "epochs": 1, "last-accepted": taken}
    config |= {"algorithm": "scaffold", "exchange": 0}
    config |= {"train": True, "score": False, "only-hospital": False, "keep-optimizer": False}
    config |= {"bfloat16": False, "changed-rows": False}
    arrays = {
        name: ArrayRecord({n: Array(t.numpy()) for n, t in record.items()})
        for name, record in (("arrays", tensors), ("control", control))
    }
    content = RecordDict({**arrays, "config": ConfigRecord(config)})
    message: Message = plain_message(content, "train.pretrain", HOSPITAL, number=number)
    context = Context(run_id=0, node_id=HOSPITAL, node_config={}, state=RecordDict(), run_config={})
    reply = app.make_app(lambda context: place, simulated=True)(message, context)
    assert not reply.has_error(), reply
    return reply.content


def test_a_hospital_is_corrected_by_the_servers_variate_minus_its_own_and_tells_how_its_own_moved(
    place: app.HospitalConfig,
) -> None:
    start, zero = shared(), {name: torch.zeros_like(t) for name, t in shared().items()}
    draws = torch.Generator().manual_seed(3)
    server = {name: 0.05 * torch.randn(t.shape, generator=draws) for name, t in start.items()}

    # round 1: its own variate is zero
    first = ask(place, start, server, 1, taken=0)
    tensors, gradient = by_hand(start, 1, server)
    same(first, "arrays", tensors)
    same(first, "control", gradient)
    assert apart(tensors, by_hand(start, 1, zero)[0]) > 0

    # round 2, after round 1's update was taken: its own is the mean gradient of round 1
    own = gradient
    second = ask(place, start, server, 2, taken=1)
    correction = {name: server[name] - own[name] for name in own}
    tensors, gradient = by_hand(start, 2, correction)
    same(second, "arrays", tensors)
    same(second, "control", {name: gradient[name] - own[name] for name in own})

    # round 3, as round 2's update was not taken: its own is still that of round 1
    third = ask(place, start, server, 3, taken=1)
    same(third, "arrays", by_hand(start, 3, correction)[0])


def by_hand(start: Tensors, number: int, correction: Tensors) -> tuple[Tensors, Tensors]:
    """The tensors after a local epoch whose gradients were corrected, and the mean of the raw gradients."""
    begun = local().begin(start, LocalWork(number, 1, HOSPITAL))
    raw: list[Tensors] = []

    def correct() -> None:
        raw.append({name: p.grad.clone() for name, p in begun.parameters.items() if p.grad is not None})
        for name, parameter in begun.parameters.items():
            if parameter.grad is not None:
                parameter.grad += correction[name]

    begun.epochs(before_step=correct)
    means = {}
    for name, tensor in start.items():
        total = torch.zeros_like(tensor)
        for gradients in raw:
            total += gradients.get(name, torch.zeros_like(tensor))
        means[name] = total / len(raw)
    return begun.tensors(), means


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

    def after(start: Tensors, work: LocalWork, optimizer: Tensors | None = None) -> tuple[Tensors, Tensors]:
        begun = hospital.begin(start, work, optimizer)
        begun.epochs()
        return begun.tensors(), {name: tensor.clone() for name, tensor in begun.optimizer_state().items()}

    whole = after(start, LocalWork(1, 2, HOSPITAL))
    first, optimizer = after(start, ONE)
    second = after(first, LocalWork(2, 1, HOSPITAL), optimizer)
    for one, other in zip(whole, second, strict=True):
        assert sorted(one) == sorted(other) and all(torch.equal(one[name], other[name]) for name in one)
    assert not any("tower" in name or "frozen" in name for name in whole[1])
    assert all(torch.equal(whole[0][name], start[name]) for name in ("tower.weight", "tower.bias", "frozen"))


@pytest.mark.parametrize("name", algorithms())
def test_algorithms_take_a_parameter_without_a_gradient(name: str) -> None:
    module = WithTower()
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    hospital = LocalPretraining(partition(), module, SETTINGS.pretraining, 42)
    found = algorithm(name)
    options = {option: of.example if of.default is None else of.default for option, of in found.options.items()}
    what = found.ask(found.begin({n: p.numpy() for n, p in start.items()}), options, 0)
    more = {part: {n: torch.from_numpy(array) for n, array in of.items()} for part, of in what.more.items()}
    came = asked(more, **what.numbers)
    tensors, answer, _ = trained(name, came=came, start=start, hospital=hospital)
    assert torch.equal(tensors["tower.weight"], start["tower.weight"])
    assert apart(tensors, start) > 0
    assert {part: sorted(of) for part, of in answer.arrays.items()} == dict.fromkeys(
        algorithm(name).tells, sorted(start)
    )


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
        hospital.begin(start, ONE).epochs()


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


def test_records_that_are_replaced_during_a_run_are_refused(place: app.HospitalConfig) -> None:
    start, zero = shared(), {name: torch.zeros_like(t) for name, t in shared().items()}
    ask(place, start, zero, 1, taken=0)
    path = place.partition / "hospitals" / str(HOSPITAL) / "records.parquet"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(TemptError, match=r"records\.parquet: was replaced while the run was at work"):
        ask(place, start, zero, 2, taken=1)


def test_folders_are_for_their_owner_alone(place: app.HospitalConfig) -> None:
    start, zero = shared(), {name: torch.zeros_like(t) for name, t in shared().items()}
    ask(place, start, zero, 1, taken=0)
    folders = [place.folder, *(path for path in place.folder.rglob("*") if path.is_dir())]
    assert {path.name for path in folders} >= {"folder", "egress", "kept"}
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
