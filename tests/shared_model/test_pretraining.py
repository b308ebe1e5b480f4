"""A batch's pretraining loss (Eq. 5 to Eq. 11; Algorithm 1, lines 3-6) and its score, against the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from shared_model.batching import CLS, FIRST_DIAGNOSIS, MASK, TokenRows
from shared_model.pretrainings import tempt
from shared_model.pretrainings.tempt import PretrainingNetwork, PretrainingTask, least_loss
from shared_model.records import CodeSets, RecordSet
from shared_model.settings import EncoderSettings, PretrainingSettings
from tests import oracles

DIAGNOSES, PROCEDURES, C, HEADS = 11, 7, 6, 2
ROWS = TokenRows(DIAGNOSES, PROCEDURES)
LONGEST = 5
# The last record's diagnoses are more than LONGEST: 8 and 10 are cut.
DIAGNOSIS_SETS = [[1, 4], [0], [2, 3, 9], [5], [0, 1, 2, 6, 7, 8, 10]]
PROCEDURE_SETS = [[6], [0, 2], [1], [3, 4, 5], [2, 6]]


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors, labels among them, are float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_network(**more: object) -> PretrainingNetwork:
    rates = {"dropout": 0.0, "attention_dropout": 0.0}
    settings = EncoderSettings(c=C, layers=2, heads=HEADS, longest_set=LONGEST, **(rates | more))  # type: ignore[arg-type]
    network = PretrainingNetwork(settings, ROWS, torch.Generator().manual_seed(1)).double()
    oracles.set_by_formula(network)
    return network


def records_of(
    diagnoses: Sequence[Sequence[int]], procedures: Sequence[Sequence[int]], first_stay: int = 100
) -> RecordSet:
    count = len(diagnoses)
    return RecordSet(
        hospital=torch.full((count,), 73),
        stay=torch.arange(count) + first_stay,
        patient=torch.arange(count),
        diagnoses=CodeSets.of(diagnoses),
        procedures=CodeSets.of(procedures),
        medications=CodeSets.of([[0]] * count),
    )


RECORDS = records_of(DIAGNOSIS_SETS, PROCEDURE_SETS)


def make_task(
    network: PretrainingNetwork, validation: RecordSet = RECORDS, seed: int = 42, **more: object
) -> PretrainingTask:
    settings = PretrainingSettings(**({"contrastive_weight": 0.25, "temperature": 0.7} | more))  # type: ignore[arg-type]
    return PretrainingTask(network, RECORDS, validation, settings, seed=seed)


def last_code_of_each(sets: CodeSets, uniform: Tensor, fraction: float) -> Tensor:
    """Masks by formula in place of drawn ones: the last code of every set, and code 2 wherever it stands."""
    masked = sets.codes == 2
    masked[sets.offsets[1:] - 1] = True
    return masked


def hidden_tokens(codes: Sequence[int], embedding: Tensor, first_row: int) -> tuple[list[Tensor], list[int]]:
    """D' of Section 3.3.1 under `last_code_of_each`, and the masked codes."""
    masked = [code for i, code in enumerate(codes) if code == 2 or i == len(codes) - 1]
    return [embedding[MASK if code in masked else first_row + code] for code in codes], masked


def literal_loss(parameters: dict[str, Tensor], index: Sequence[int], temperature: float, weight: float) -> Tensor:
    """L_pretrain of Eq. 11, a record at a time."""
    embedding, layers = parameters["encoder.embedding"], oracles.layers_of(parameters, "encoder.")
    y_hat_d, y_hat_p, y_d, y_p, u_d, u_p = [], [], [], [], [], []
    for i in index:
        tokens_d, masked_d = hidden_tokens(DIAGNOSIS_SETS[i][:LONGEST], embedding, FIRST_DIAGNOSIS)
        tokens_p, masked_p = hidden_tokens(PROCEDURE_SETS[i], embedding, ROWS.first_procedure)
        r_d = oracles.represent(tokens_d, embedding[CLS], layers, HEADS)
        r_p = oracles.represent(tokens_p, embedding[CLS], layers, HEADS)
        y_hat_d.append(oracles.mask_probabilities(r_d, oracles.mlp_of(parameters, "mask_diagnoses.")))
        y_hat_p.append(oracles.mask_probabilities(r_p, oracles.mlp_of(parameters, "mask_procedures.")))
        y_d.append([float(code in masked_d) for code in range(DIAGNOSES)])
        y_p.append([float(code in masked_p) for code in range(PROCEDURES)])
        projected = oracles.project(
            r_d,
            r_p,
            oracles.mlp_of(parameters, "project_diagnoses."),
            oracles.mlp_of(parameters, "project_procedures."),
        )
        u_d.append(projected[0])
        u_p.append(projected[1])
    mask = oracles.mask_loss(y_hat_d, y_d, y_hat_p, y_p)
    return oracles.pretraining_loss(mask, oracles.contrastive_loss(u_d, u_p, temperature), weight)


@pytest.mark.parametrize("index", [[0, 1, 2, 3, 4], [4, 2, 0], [3]])
@pytest.mark.usefixtures("float64")
def test_loss_of_a_batch_equals_equations_with_gradients(index: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 5 to Eq. 11 end to end, the gradient of every parameter, a batch of one included."""
    monkeypatch.setattr(tempt, "choose_masked", last_code_of_each)
    network = make_network()
    parameters = oracles.leaves(network)
    expected = literal_loss(parameters, index, 0.7, 0.25)

    found = make_task(network).loss(torch.tensor(index), torch.Generator().manual_seed(1))

    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-10)
    found.backward()
    expected.backward()
    for name, parameter in network.named_parameters():
        reference = parameters[name].grad
        reference = torch.zeros_like(parameter) if reference is None else reference
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(gradient, reference, rtol=0, atol=1e-10), name


def test_loss_in_float32_equals_equations_to_1e_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempt, "choose_masked", last_code_of_each)
    network = make_network().float()
    expected = literal_loss(oracles.leaves(network), range(5), 0.7, 0.25)
    found = make_task(network).loss(torch.arange(5), torch.Generator().manual_seed(1))
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_loss_of_the_preset_weight_0_leaves_projectors_without_gradient() -> None:
    """gamma of Eq. 11 weighs the contrastive loss alone."""
    network = make_network()
    make_task(network, contrastive_weight=0.0).loss(torch.arange(5), torch.Generator().manual_seed(1)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        if name.startswith("project_"):
            assert parameter.grad.abs().max() == 0, name
    assert network.mask_procedures[2].weight.grad.abs().max() > 0


def test_loss_is_a_function_of_its_generator_with_masks_and_dropout() -> None:
    network = make_network(dropout=0.3, attention_dropout=0.2)
    task = make_task(network, mask_fraction=0.5, mask_token_fraction=0.8, random_code_fraction=0.1)
    state = torch.get_rng_state()
    first, again, other = (
        float(task.loss(torch.arange(5), torch.Generator().manual_seed(seed)).detach()) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), state)


def test_loss_of_a_batch_of_one_and_of_an_empty_set_is_finite_with_gradients() -> None:
    """A record whose procedures are none: [CLS] alone, no masked code, all labels 0."""
    network = make_network()
    records = records_of([[3]], [[]])
    task = PretrainingTask(network, records, records, PretrainingSettings(), seed=1)
    loss = task.loss(torch.tensor([0]), torch.Generator().manual_seed(1))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_score_equals_average_precision_of_masked_diagnoses_among_codes_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Section 4.1.3: each record by the oracle (Eq. 1 to Eq. 5), the codes that are shown left out of its ranking."""
    monkeypatch.setattr(tempt, "choose_masked", last_code_of_each)
    network = make_network(dropout=0.5)
    parameters = oracles.leaves(network)
    embedding, layers = parameters["encoder.embedding"], oracles.layers_of(parameters, "encoder.")
    expected = []
    for codes in (codes[:LONGEST] for codes in DIAGNOSIS_SETS):
        tokens, masked = hidden_tokens(codes, embedding, FIRST_DIAGNOSIS)
        r = oracles.represent(tokens, embedding[CLS], layers, HEADS)
        y_hat = oracles.mask_probabilities(r, oracles.mlp_of(parameters, "mask_diagnoses.")).tolist()
        candidates = [code for code in range(DIAGNOSES) if code not in codes or code in masked]
        ranked = [y_hat[code] for code in candidates]
        expected.append(oracles.average_precision(ranked, {candidates.index(code) for code in masked}))

    assert make_task(network).score() == pytest.approx(sum(expected) / 5, abs=1e-10)


def test_score_in_parts_equals_score_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network()
    whole = make_task(network).score()
    monkeypatch.setattr(tempt, "_EVALUATION_BATCH", 2)
    assert make_task(network).score() == pytest.approx(whole, abs=1e-12)


def test_score_moves_no_gradient_and_draws_nothing() -> None:
    network = make_network(dropout=0.5)
    task = make_task(network)
    state = torch.get_rng_state()
    assert task.score() == task.score()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in network.parameters())


def test_validation_masks_are_fixed_by_seed_and_stay_in_any_order_or_subset() -> None:
    """Every side of a federation hides the same codes: the sum of scores over subsets is the whole's."""
    sets = [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9], [0, 1, 2, 3, 4], [6, 7, 8, 9, 10], [0, 5, 10]]
    network = make_network()
    validation = records_of(sets, [[0]] * 5)

    def masked_by_stay(records: RecordSet, seed: int = 42) -> dict[int, list[bool]]:
        hidden = make_task(network, records, seed, mask_fraction=0.4)._validation
        masks = CodeSets(hidden._masked.long(), hidden._sets.offsets).lists()
        return dict(zip(records.stay.tolist(), [[bool(x) for x in own] for own in masks], strict=True))

    whole = masked_by_stay(validation)
    assert all(any(own) for own in whole.values())
    for order in ([4, 3, 2, 1, 0], [2], [1, 4]):
        part = masked_by_stay(validation.select(torch.tensor(order)))
        assert part == {stay: whole[stay] for stay in part}
    assert masked_by_stay(validation, 43) != whole

    parts = [validation.select(torch.tensor(part)) for part in ([3, 0], [1, 2, 4])]
    sums = sum(make_task(network, part, mask_fraction=0.4).score() * len(part) for part in parts)
    assert make_task(network, validation, mask_fraction=0.4).score() == pytest.approx(sums / 5, abs=1e-12)


def test_task_learns_from_training_records_alone() -> None:
    """Other validation records, other score, same loss and gradient."""
    network = make_network()
    gradients = []
    for validation in (RECORDS, records_of([[9, 10]], [[5]])):
        network.zero_grad()
        make_task(network, validation).loss(torch.arange(5), torch.Generator().manual_seed(1)).backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_network_from_the_same_generator_has_the_same_bits() -> None:
    settings = EncoderSettings(c=C)
    first, again = (PretrainingNetwork(settings, ROWS, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_network_starts_at_the_rate_of_one_masked_code_a_set_or_at_0() -> None:
    """The first probability (Eq. 5) of a mask head's output bias is 1/11 for 11 diagnoses and 1/7 for 7 procedures."""
    settings = EncoderSettings(c=C)
    at_rate, at_zero = (PretrainingNetwork(settings, ROWS, torch.Generator(), start) for start in ("rate", "zero"))
    assert at_rate.mask_diagnoses[2].bias.sigmoid().tolist() == pytest.approx([1 / 11] * 11, rel=1e-5)
    assert at_rate.mask_procedures[2].bias.sigmoid().tolist() == pytest.approx([1 / 7] * 7, rel=1e-5)
    assert at_zero.mask_diagnoses[2].bias.tolist() == [0] * 11
    others = [
        name
        for name, _ in at_rate.named_parameters()
        if name not in ("mask_diagnoses.2.bias", "mask_procedures.2.bias")
    ]
    assert all(torch.equal(at_rate.get_parameter(name), at_zero.get_parameter(name)) for name in others)


def test_task_counts_its_records() -> None:
    task = make_task(make_network(), records_of([[1]], [[1]]))
    assert (task.records, task.validation_records) == (5, 1)


def test_score_without_validation_records_is_0() -> None:
    assert make_task(make_network(), RECORDS.select(torch.empty(0, dtype=torch.int64))).score() == 0


@pytest.mark.parametrize("records, batches", [(2, [2]), (3, [3]), (7, [4, 3]), (9, [4, 4, 1]), (1, [1])])
def test_least_loss_of_an_epoch_is_the_mean_over_its_batches(records: int, batches: list[int]) -> None:
    """Eq. 11 with a mask loss of 0 and Eq. 9 at its least: simplices, the last batch being partial."""
    settings = PretrainingSettings(batch_size=4, contrastive_weight=3.0, temperature=0.1)
    total = 0.0
    for size in batches:
        u = list(torch.eye(size, dtype=torch.float64) - 1 / size)
        contrastive = oracles.contrastive_loss(u, u, 0.1) if size > 1 else torch.zeros(())
        total += size * float(oracles.pretraining_loss(torch.zeros(()), contrastive, 3.0))
    found, expected = least_loss(settings, records), total / records
    assert found <= expected <= found + 0.003 * abs(found) + 1e-12


def test_least_loss_without_contrast_or_negatives_is_zero() -> None:
    assert least_loss(PretrainingSettings(contrastive_weight=0.0, temperature=1e-320), 1000) == 0
    assert least_loss(PretrainingSettings(batch_size=1), 1000) == 0
    assert least_loss(PretrainingSettings(), 0) == 0


def test_least_loss_of_many_records_takes_no_time_and_is_of_full_batches() -> None:
    settings = PretrainingSettings(batch_size=2, contrastive_weight=1.0, temperature=1.0)
    assert least_loss(settings, 10**9) == pytest.approx(-4.0, rel=3e-3)
