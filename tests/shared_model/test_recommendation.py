"""Recommending (Eq. 12, Eq. 13, Eq. 14) through an encoder, with and without prompts, against the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from shared_model import recommendation
from shared_model.adaptation import finetune_freeze, tempt
from shared_model.batching import CLS, FIRST_DIAGNOSIS, TokenRows
from shared_model.encoder import MedicalEncoder
from shared_model.randomness import Dropout
from shared_model.recommendation import (
    Context,
    RecommendationTask,
    Recommender,
    draw_initial,
    head_of,
    recommend,
    record_sets,
    representations,
)
from shared_model.records import CodeSets, RecordSet
from shared_model.settings import EncoderSettings, Settings, TuningSettings
from shared_model.whole_network import whole_network
from tests import oracles

DIAGNOSES, PROCEDURES, MEDICATIONS, C, HEADS, B = 11, 7, 5, 6, 3, 2
ROWS = TokenRows(DIAGNOSES, PROCEDURES)
LONGEST = 4
# The third record's diagnoses are more than LONGEST; the fourth has no medication.
DIAGNOSIS_SETS = [[1, 4], [0], [2, 3, 8, 9, 10], [5, 6]]
PROCEDURE_SETS = [[6], [0, 2, 3], [1], [3, 4]]
MEDICATION_SETS = [[0, 3], [4], [0, 1, 2], []]
HOSPITALS = [3, 3, 3, 8]


def records_of(index: Sequence[int]) -> RecordSet:
    whole = RecordSet(
        hospital=torch.tensor(HOSPITALS),
        stay=torch.arange(4) + 100,
        patient=torch.arange(4),
        diagnoses=CodeSets.of(DIAGNOSIS_SETS),
        procedures=CodeSets.of(PROCEDURE_SETS),
        medications=CodeSets.of(MEDICATION_SETS),
    )
    return whole.select(torch.tensor(list(index), dtype=torch.int64))


RECORDS = records_of(range(4))


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors, labels among them, are float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_context(b: int = B, rate: float = 0.0, tuning: dict[str, object] | None = None, **more: object) -> Context:
    settings = Settings(
        encoder=EncoderSettings(c=C, layers=2, heads=HEADS, longest_set=LONGEST, dropout=rate, attention_dropout=rate),
        tuning=TuningSettings(prompts_per_modality=b, epochs=2, batch_size=3, least_steps=0, **(tuning or {})),
    )
    encoder = MedicalEncoder(settings.encoder, ROWS).double()
    oracles.set_by_formula(encoder)
    values = {"seed": 42, "hospital": 3, "device": torch.device("cpu"), "part": encoder} | more
    return Context(settings=settings, rows=ROWS, medications=MEDICATIONS, **values)  # type: ignore[arg-type]


def prompted(context: Context) -> Recommender:
    """TEMPT's recommender with weights by formula, in float64."""
    recommender = tempt.build(context)
    recommender.module.double()
    oracles.set_by_formula(recommender.module)
    return recommender


def whole(context: Context) -> Recommender:
    recommender = whole_network(context.pretrained, context)
    recommender.module.double()
    oracles.set_by_formula(recommender.module)
    return recommender


def literal(
    encoder: dict[str, Tensor], head: Sequence[Tensor], index: Sequence[int], prompts: Tensor | None = None
) -> list[Tensor]:
    """y_hat of Eq. 14, or of Eq. 12 without prompts, a record at a time."""
    embedding, layers = encoder["embedding"], oracles.layers_of(encoder)
    own = {
        "diagnoses": list(prompts[:B]) if prompts is not None else [],
        "procedures": list(prompts[B:]) if prompts is not None else [],
    }
    return [
        oracles.recommend_with_prompts(
            [embedding[FIRST_DIAGNOSIS + code] for code in DIAGNOSIS_SETS[i][:LONGEST]],
            [embedding[ROWS.first_procedure + code] for code in PROCEDURE_SETS[i][:LONGEST]],
            own,
            embedding[CLS],
            layers,
            HEADS,
            head,
        )
        for i in index
    ]


def labels_of(index: Sequence[int]) -> list[list[float]]:
    return [[float(m in MEDICATION_SETS[i]) for m in range(MEDICATIONS)] for i in index]


@pytest.mark.parametrize("index", [[0, 1, 2, 3], [3, 0], [2]])
@pytest.mark.usefixtures("float64")
def test_loss_with_prompts_equals_equations_with_gradients_of_prompts_and_head(index: list[int]) -> None:
    """Eq. 13 of Eq. 14: gradients of O_d, O_p and Theta_MLP; the encoder has none."""
    context = make_context()
    recommender = prompted(context)
    parameters = oracles.leaves(recommender.module)
    y_hat = literal(
        oracles.leaves(context.pretrained), oracles.mlp_of(parameters, "head."), index, parameters["prompts"]
    )
    expected = oracles.tuning_loss(y_hat, labels_of(index))

    task = RecommendationTask(recommender, RECORDS, RECORDS, context)
    found = task.loss(torch.tensor(index), torch.Generator().manual_seed(1))

    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-10)
    found.backward()
    expected.backward()
    for name, parameter in recommender.module.named_parameters():
        assert parameter.grad is not None and parameters[name].grad is not None
        assert torch.allclose(parameter.grad, parameters[name].grad, rtol=0, atol=1e-10), name
    assert all(p.grad is None for p in context.pretrained.parameters())


@pytest.mark.usefixtures("float64")
def test_loss_of_the_whole_network_equals_equations_with_gradients() -> None:
    """Eq. 13 of Eq. 12: finetuning moves embeddings and encoder too."""
    context = make_context()
    recommender = whole(context)
    parameters = oracles.leaves(recommender.module)
    encoder = {name.removeprefix("encoder."): p for name, p in parameters.items() if name.startswith("encoder.")}
    expected = oracles.tuning_loss(literal(encoder, oracles.mlp_of(parameters, "head."), range(4)), labels_of(range(4)))

    found = RecommendationTask(recommender, RECORDS, RECORDS, context).loss(torch.arange(4), torch.Generator())

    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-10)
    found.backward()
    expected.backward()
    for name, parameter in recommender.module.named_parameters():
        reference = parameters[name].grad
        assert parameter.grad is not None
        assert torch.allclose(
            parameter.grad, torch.zeros_like(parameter) if reference is None else reference, rtol=0, atol=1e-10
        ), name


def test_recommend_with_prompts_equals_equation() -> None:
    """Eq. 14 of every record, in order, in parts of any size."""
    context = make_context()
    recommender = prompted(context)
    parameters = oracles.leaves(recommender.module)
    expected = literal(
        oracles.leaves(context.pretrained), oracles.mlp_of(parameters, "head."), range(4), parameters["prompts"]
    )
    found = recommend(recommender, RECORDS, LONGEST)
    assert torch.allclose(found, torch.stack(expected).detach(), rtol=0, atol=1e-10)
    assert not found.requires_grad


def test_recommend_without_prompts_equals_equation() -> None:
    """Eq. 12, without dropout even where training has it."""
    context = make_context(rate=0.5)
    recommender = whole(context)
    parameters = oracles.leaves(recommender.module)
    encoder = {name.removeprefix("encoder."): p for name, p in parameters.items() if name.startswith("encoder.")}
    expected = literal(encoder, oracles.mlp_of(parameters, "head."), range(4))
    found = recommend(recommender, RECORDS, LONGEST)
    assert torch.allclose(found, torch.stack(expected).detach(), rtol=0, atol=1e-10)


def test_recommend_in_parts_equals_recommend_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    recommender = prompted(make_context())
    at_once = recommend(recommender, RECORDS, LONGEST)
    monkeypatch.setattr(recommendation, "_EVALUATION_BATCH", 3)
    assert torch.allclose(recommend(recommender, RECORDS, LONGEST), at_once, rtol=0, atol=1e-12)


def test_recommend_in_any_order_gives_each_record_its_own() -> None:
    recommender = prompted(make_context())
    found, again = recommend(recommender, RECORDS, LONGEST), recommend(recommender, records_of([2, 0, 3]), LONGEST)
    assert torch.allclose(again, found[[2, 0, 3]], rtol=0, atol=1e-12)


def test_representations_of_records_are_r_d_beside_r_p() -> None:
    context = make_context()
    encoder = context.pretrained
    recommender = whole(context)
    both = encoder(record_sets(RECORDS.diagnoses.truncated(LONGEST), RECORDS.procedures, ROWS), None).detach()
    found = representations(recommender, RECORDS, LONGEST)
    assert torch.allclose(found, torch.cat([both[:4], both[4:]], dim=1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("constant", [False, True])
def test_score_is_the_mean_over_hospitals_of_record_means(constant: bool) -> None:
    """Hospital 3 has three records, hospital 8 one without medications (0); by the oracle's average precision."""
    context = make_context(b=0)
    recommender = tempt.build(context)._replace(representation_is_frozen=constant)
    recommender.module.double()
    oracles.set_by_formula(recommender.module)
    probabilities = recommend(recommender, RECORDS, LONGEST).tolist()
    own = [oracles.average_precision(p, set(m)) for p, m in zip(probabilities, MEDICATION_SETS, strict=True)]
    expected = (sum(own[:3]) / 3 + own[3]) / 2

    assert RecommendationTask(recommender, RECORDS, RECORDS, context).score() == pytest.approx(expected, abs=1e-10)


def test_loss_of_constant_representations_equals_loss_of_computed_ones() -> None:
    """finetune-freeze encodes once; a batch picks rows."""
    context = make_context()
    recommender = finetune_freeze.build(context)
    recommender.module.double()
    oracles.set_by_formula(recommender.module)
    index = torch.tensor([2, 0, 3])
    losses = [
        float(
            RecommendationTask(recommender._replace(representation_is_frozen=constant), RECORDS, RECORDS, context)
            .loss(index, torch.Generator())
            .detach()
        )
        for constant in (True, False)
    ]
    assert recommender.representation_is_frozen
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)


def test_loss_hands_dropout_to_training_and_none_to_scoring() -> None:
    seen: list[Dropout | None] = []
    context = make_context()
    head = nn.Sequential(nn.Linear(2, MEDICATIONS)).double()

    def represent(diagnoses: CodeSets, procedures: CodeSets, hospital: Tensor, dropout: Dropout | None) -> Tensor:
        seen.append(dropout)
        return torch.ones(len(diagnoses) + len(procedures), 1, dtype=torch.float64)

    task = RecommendationTask(Recommender(head, represent, head), RECORDS, RECORDS, context)
    task.loss(torch.arange(4), torch.Generator())
    task.score()
    assert [dropout is None for dropout in seen] == [False, True]


def test_representation_sees_the_hospital_of_each_record_in_training_and_scoring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recommendation, "_EVALUATION_BATCH", 3)
    seen: list[list[int]] = []
    head = nn.Sequential(nn.Linear(2, MEDICATIONS)).double()

    def represent(diagnoses: CodeSets, procedures: CodeSets, hospital: Tensor, dropout: Dropout | None) -> Tensor:
        seen.append(hospital.tolist())
        return torch.ones(len(diagnoses) + len(procedures), 1, dtype=torch.float64)

    task = RecommendationTask(Recommender(head, represent, head), RECORDS, RECORDS, make_context())
    task.loss(torch.tensor([3, 1]), torch.Generator())
    task.score()
    assert seen == [[8, 3], [3, 3, 3], [8]]


def test_batches_of_a_recommender_by_hospital_are_of_one_hospital_each() -> None:
    recommender = whole(make_context())
    for by_hospital, sizes in ((True, [1, 1, 2]), (False, [2, 2])):
        task = RecommendationTask(recommender._replace(by_hospital=by_hospital), RECORDS, RECORDS, make_context())
        drawn = [task.draw_batches(2, torch.Generator().manual_seed(seed)) for seed in range(20)]
        for batches in drawn:
            assert sorted(place for batch in batches for place in batch.tolist()) == [0, 1, 2, 3]
            assert sorted(map(len, batches)) == sizes
        mixed = {len({HOSPITALS[place] for place in batch.tolist()}) for batches in drawn for batch in batches}
        assert mixed == ({1} if by_hospital else {1, 2})
        assert len({tuple(HOSPITALS[batch[0]] for batch in batches) for batches in drawn}) > 1  # neither comes first


def test_initial_weights_are_a_function_of_seed_purpose_and_hospital() -> None:
    def drawn(purpose: str = "tempt", **more: object) -> list[float]:
        context = make_context(**more)
        head = head_of(context)
        draw_initial(head, context, purpose)
        return head[0].weight.flatten().tolist()

    assert drawn() == drawn()
    assert len({tuple(drawn()), tuple(drawn("other")), tuple(drawn(seed=43)), tuple(drawn(hospital=4))}) == 4


@pytest.mark.parametrize("start, rates", [("rate", [0.5, 0.3, 0.3, 0.3, 0.3]), ("zero", [0.5] * 5)])
def test_fit_starts_at_the_rates_of_training_records_or_at_0(start: str, rates: list[float]) -> None:
    """(n_m + 1/2) / (n + 1): of 4 records 2 have medication 0, 1 has each other one; at 1e-30 nothing is learnt."""
    context = make_context(tuning={"output_bias": start, "learning_rate": 1e-30})
    context.pretrained.float()
    for validation in (RECORDS, records_of([1])):
        fitted = finetune_freeze.fit(RECORDS, validation, context)
        assert fitted.tensors["2.bias"].sigmoid().tolist() == pytest.approx(rates, abs=1e-6)


def test_head_of_a_context_is_as_wide_as_both_representations() -> None:
    head = head_of(make_context())
    assert [tuple(p.shape) for p in head.parameters()] == [
        (2 * C, 2 * C),
        (2 * C,),
        (MEDICATIONS, 2 * C),
        (MEDICATIONS,),
    ]


def test_context_without_a_pretrained_encoder_says_so() -> None:
    with pytest.raises(ValueError, match="needs a pretrained network"):
        _ = make_context(part=None).pretrained


def test_recommend_for_no_records_has_no_rows() -> None:
    """A hospital with no test record has a defined result."""
    assert recommend(prompted(make_context()), records_of([]), LONGEST).shape == (0, MEDICATIONS)


@pytest.mark.parametrize("method", [tempt, finetune_freeze])
def test_fit_without_validation_records_keeps_the_last_epoch(method: object) -> None:
    """A hospital without a validation record keeps its last epoch."""
    context = make_context()
    context.pretrained.float()
    fitted = method.fit(RECORDS, records_of([]), context)  # type: ignore[attr-defined]
    assert fitted.best_epoch == 2
    assert [row["score"] for row in fitted.history] == [None, None]
