"""PRAUC, Jaccard and F1 of Section 4.1.4 (Eq. 15, Eq. 16, Eq. 18, Eq. 19) against sets, scikit-learn, hand numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from shared_model.metric_names import MEASURED, METRICS, OF_SCORES
from shared_model.metrics import (
    RecordMetrics,
    average_precision,
    hospital_mean,
    record_mean,
    record_metrics,
    size_group,
)
from tests import oracles

# Few distinct scores, so that ties are common; widths from 1 upwards.
rows = st.integers(1, 9).flatmap(
    lambda width: st.lists(
        st.tuples(
            st.lists(st.sampled_from([0.0, 0.125, 0.3, 0.5, 0.75, 1.0]), min_size=width, max_size=width),
            st.lists(st.booleans(), min_size=width, max_size=width),
        ),
        min_size=1,
        max_size=5,
    )
)


def tensors(records: list[tuple[list[float], list[bool]]]) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.tensor([scores for scores, _ in records], dtype=torch.float64),
        torch.tensor([labels for _, labels in records], dtype=torch.float64),
    )


def by_threshold(probabilities: torch.Tensor, labels: torch.Tensor, threshold: float) -> RecordMetrics:
    return record_metrics(probabilities, probabilities > threshold, labels)


@settings(max_examples=150, deadline=None)
@given(records=rows)
def test_average_precision_of_any_scores_equals_scikit_learn_with_ties(
    records: list[tuple[list[float], list[bool]]],
) -> None:
    """What stands for Eq. 17; a record without a positive label has 0 (scikit-learn warns there)."""
    found = average_precision(*tensors(records)).tolist()

    for value, (scores, labels) in zip(found, records, strict=True):
        expected = float(average_precision_score(labels, scores)) if any(labels) else 0.0
        assert value == pytest.approx(expected, abs=1e-12)
        assert value == pytest.approx(
            oracles.average_precision(scores, {i for i, y in enumerate(labels) if y}), abs=1e-12
        )


@settings(max_examples=150, deadline=None)
@given(records=rows, threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_record_metrics_of_any_scores_equal_sets_and_stay_in_0_to_1(
    records: list[tuple[list[float], list[bool]]], threshold: float
) -> None:
    """Eq. 15, Eq. 16, Eq. 18, Eq. 19, each record by its sets."""
    scores, labels = tensors(records)
    found = record_metrics(scores, scores > threshold, labels)

    for i, (scores, labels) in enumerate(records):
        above, prescribed = oracles.recommended(scores, threshold), {m for m, y in enumerate(labels) if y}
        assert float(found.jaccard[i]) == pytest.approx(oracles.jaccard(prescribed, above), abs=1e-12)
        assert float(found.f1[i]) == pytest.approx(oracles.f1(prescribed, above), abs=1e-12)
        assert float(found.medications[i]) == len(above)
        assert all(0 <= float(values[i]) <= 1 for values in (found.prauc, found.jaccard, found.f1))


def test_average_precision_of_hand_numbers_is_as_worked_out() -> None:
    """Positives at ranks 1 and 3 of 4: (1/1 + 2/3) / 2. All tied: one step, precision 2/4. Scores may be -inf."""
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.5, 0.5, 0.5, 0.5], [1.0, -torch.inf, 0.5, -torch.inf]])
    labels = torch.tensor([[1.0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 1, 0]])
    assert average_precision(scores, labels).tolist() == pytest.approx([5 / 6, 0.5, 0.5])


def test_record_metrics_of_hand_numbers_are_as_worked_out() -> None:
    """Recommended {0, 1, 2}, prescribed {0, 2, 3, 4}: Eq. 18 is 2/5; precision 2/3, recall 1/2, Eq. 19 is 4/7."""
    found = by_threshold(torch.tensor([[0.9, 0.8, 0.4, 0.2, 0.1]]), torch.tensor([[1.0, 0, 1, 1, 1]]), 0.3)
    assert found.jaccard.tolist() == pytest.approx([2 / 5])
    assert found.f1.tolist() == pytest.approx([4 / 7])
    assert found.medications.tolist() == [3]
    assert found.prauc.tolist() == pytest.approx([(1 + 2 / 3 + 3 / 4 + 4 / 5) / 4])


def test_record_metrics_at_the_threshold_recommend_strictly_above_it() -> None:
    """Section 4.1.4 has >; float32's 0.3 is not above 0.3."""
    above = torch.nextafter(torch.tensor(0.3), torch.tensor(1.0))
    probabilities = torch.stack([torch.tensor(0.3), above, torch.tensor(0.25)])[None]
    found = by_threshold(probabilities, torch.tensor([[1.0, 1.0, 0.0]]), 0.3)
    assert found.medications.tolist() == [1]
    assert found.jaccard.tolist() == [0.5]


def test_record_metrics_of_nothing_true_and_nothing_recommended_are_0() -> None:
    found = by_threshold(torch.tensor([[0.1, 0.2]]), torch.zeros(1, 2), 0.3)
    assert [values.tolist() for values in found] == [[0], [0], [0], [0]]


def test_record_metrics_means_are_over_records() -> None:
    found = by_threshold(torch.tensor([[0.9, 0.1], [0.1, 0.2]]), torch.tensor([[1.0, 0], [1, 0]]), 0.3)
    assert found.means() == {"prauc": 0.75, "jaccard": 0.5, "f1": 0.5, "medications": 0.5}


HOSPITALS = {
    "73": {"records": 3, "prauc": 0.5, "jaccard": 0.3, "f1": 0.4, "medications": 19.5},
    "90": {"records": 1, "prauc": 0.1, "jaccard": 0.1, "f1": 0.2, "medications": 2.0},
    "91": {"records": 0, "prauc": 0.0, "jaccard": 0.0, "f1": 0.0, "medications": 0.0},
}


def test_records_without_scores_have_every_metric_but_prauc() -> None:
    """A system that decides on sets: recommended {0}, prescribed {0, 1}; Eq. 18 is 1/2, Eq. 19 is 2/3."""
    found = record_metrics(None, torch.tensor([[True, False, False]]), torch.tensor([[1.0, 1, 0]]))
    assert found.means() == {"prauc": None, "jaccard": 0.5, "f1": pytest.approx(2 / 3), "medications": 1.0}


def test_means_of_what_some_hospitals_lack_are_over_the_others_and_of_what_all_lack_are_none() -> None:
    some = HOSPITALS | {"92": HOSPITALS["90"] | {"prauc": None, "jaccard": 0.8}}
    assert hospital_mean(some)["prauc"] == pytest.approx(0.3) and record_mean(some)["prauc"] == pytest.approx(0.4)
    assert hospital_mean(some)["jaccard"] == pytest.approx(0.4)
    none = {"92": some["92"]}
    assert hospital_mean(none) == record_mean(none) == {"prauc": None, "jaccard": 0.8, "f1": 0.2}


def test_names_of_metrics_are_those_of_what_is_computed() -> None:
    assert RecordMetrics._fields == MEASURED and set(METRICS) < set(MEASURED) and set(METRICS) > OF_SCORES


def test_hospital_mean_of_hand_numbers_counts_each_hospital_once() -> None:
    """Section 4.1.4: over records, then over hospitals; the one without a test record does not count."""
    assert hospital_mean(HOSPITALS) == pytest.approx({"prauc": 0.3, "jaccard": 0.2, "f1": 0.3})


def test_record_mean_of_hand_numbers_counts_each_record_once() -> None:
    assert record_mean(HOSPITALS) == pytest.approx({"prauc": 0.4, "jaccard": 0.25, "f1": 0.35})


def test_means_without_any_test_record_are_0() -> None:
    nothing = {"91": HOSPITALS["91"]}
    assert hospital_mean(nothing) == record_mean(nothing) == {"prauc": 0, "jaccard": 0, "f1": 0}
    assert hospital_mean({}) == record_mean({}) == {"prauc": 0, "jaccard": 0, "f1": 0}


@pytest.mark.parametrize(
    "records, group", [(1, "small"), (1000, "small"), (1001, "medium"), (2000, "medium"), (2001, "large")]
)
def test_size_group_at_the_bounds_of_table_7_is_the_papers(records: int, group: str) -> None:
    assert size_group(records) == group
