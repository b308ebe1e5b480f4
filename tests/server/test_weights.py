"""As how many records a hospital counts: what it says, up to a bound; the whole run then goes by that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord
from hypothesis import given
from hypothesis import strategies as st

from hospital_client.app import HospitalConfig
from server.app import run_federation
from server.exchange import Hospital
from server.run_config import RUN_CONFIG
from server.weights import LARGEST_SHARE, bounded, counted, in_words, most_of
from shared_model.files import read_json
from shared_model.fitting import PRETRAINING, FitFiles
from shared_model.results import RESULTS
from sim.inprocess_grid import InProcessGrid
from tests.server import test_rounds
from tests.server.test_rounds import HOSPITALS, INITIAL, Made, rising, step, tensors
from tests.sim import consortium

SIZES = st.lists(st.integers(0, 10**9), min_size=1, max_size=12)


def weights(told: list[int], share: float) -> list[int]:
    most = most_of(told, share)
    return told if most is None else [min(records, most) for records in told]


@given(SIZES, st.floats(0.01, 1.0))
def test_nobody_counts_for_more_than_the_share_where_that_can_be(told: list[int], share: float) -> None:
    there = [records for records in told if records]
    found = weights(told, share)
    if len(there) * share < 1:
        assert found == told
    else:
        assert max(found) <= share * sum(found) * (1 + 1e-9) + 1e-6
    assert all(0 <= counts <= says for counts, says in zip(found, told, strict=True))
    assert [says for says in told if not says] == [says for says, c in zip(told, found, strict=True) if not c]


@given(SIZES, st.floats(0.1, 0.9))
def test_the_bound_is_the_largest_that_holds(told: list[int], share: float) -> None:
    """One record more for each who is bounded, and somebody would have more than the share."""
    most = most_of(told, share)
    if most is not None:
        more = [min(records, most + 2) for records in told]
        assert max(more) > share * sum(more) * (1 - 1e-9)


@pytest.mark.parametrize(
    "told, share, most",
    [
        ([60, 30, 10], 0.49, 38),  # 0.49 / 0.51 of 40
        ([49, 30, 21], 0.49, None),
        ([10**9, 10**9, 1, 1], 0.49, 49),  # two of them: 0.49 / 0.02 of 2
        ([10**9, 5], 0.49, None),
        ([10**9, 5], 0.5, 5),
        ([10**9], 1.0, None),
        ([10**9, 5, 0], 0.49, None),
        ([10**9, 1, 1], 0.4, 1),
        ([], 0.49, None),
    ],
)
def test_the_bound_of_sizes_by_hand(told: list[int], share: float, most: int | None) -> None:
    assert most_of(told, share) == most


LIAR = [Hospital(3, 1, 30, 5, 4), Hospital(8, 2, 10**9, 10**8, 10**7), Hospital(21, 3, 10, 1, 1)]


def test_each_kind_of_records_is_bounded_and_who_is_is_said() -> None:
    counts = counted(LIAR, None, LARGEST_SHARE)
    assert [(h.train, h.validation, h.test) for h in counts.values()] == [(30, 5, 4), (38, 10, 10), (10, 1, 1)]
    found = bounded(LIAR, counts)
    assert found == {
        "8": {
            "train": {"told": 10**9, "counted": 38},
            "validation": {"told": 10**8, "counted": 10},
            "test": {"told": 10**7, "counted": 10},
        }
    }
    (line,) = in_words(found, None, LARGEST_SHARE)
    assert line == (
        "hospital 8 tells more than it counts for: training records 1,000,000,000, counted 38, validation records "
        "100,000,000, counted 10, test records 10,000,000, counted 10; no hospital counts for more than 49% of all "
        "without --most-records"
    )


def test_hospitals_of_a_small_consortium_count_with_all_that_they_tell() -> None:
    """Of few records one hospital may have most of the validation records, as rounding makes them."""
    honest = [Hospital(3, 1, 34, 4, 5), Hospital(8, 2, 23, 2, 4), Hospital(21, 3, 13, 1, 3), Hospital(34, 4, 4, 0, 1)]
    assert counted(honest, None, LARGEST_SHARE) == {h.hospital: h for h in honest}


def test_two_hospitals_have_no_bound_and_three_have_one() -> None:
    assert counted(LIAR[:2], None, LARGEST_SHARE) == {h.hospital: h for h in LIAR[:2]}
    without_training = [*LIAR[:2], Hospital(21, 3, 0, 4, 3)]
    assert counted(without_training, None, LARGEST_SHARE) == {h.hospital: h for h in without_training}
    alone = [Hospital(3, 1, 30, 5, 4), Hospital(8, 2, 60, 9, 8), Hospital(21, 3, 0, 10**9, 10**9)]
    assert counted(alone, None, LARGEST_SHARE)[21] == Hospital(21, 3, 0, 15, 15), "of validation records all are"
    assert counted([], None, LARGEST_SHARE) == {}


def test_many_validation_records_beside_few_training_records_are_bounded_too() -> None:
    counts = counted([*LIAR[::2], Hospital(8, 2, 20, 10**8, 10**7)], None, LARGEST_SHARE)
    assert (counts[8].train, counts[8].validation, counts[8].test) == (20, 10, 10)


def test_the_operators_word_stands_in_place_of_the_share() -> None:
    counts = counted(LIAR, 20, LARGEST_SHARE)
    assert [(h.train, h.validation, h.test) for h in counts.values()] == [(20, 5, 4), (20, 10, 10), (10, 1, 1)]
    assert counted(LIAR, 10**9, LARGEST_SHARE) == {h.hospital: h for h in LIAR}, "of whose records an eighth is each"
    assert counted(LIAR, None, None) == {h.hospital: h for h in LIAR}


def test_updates_and_scores_weigh_what_a_hospital_counts_with(tmp_path: Path) -> None:
    """All three count with as many training records; five of seven validation records count as they are few."""
    scores = {3: [0.2, 0.4, 0.3], 8: [0.9, 0.1, 0.9]}
    grid = Made(step, lambda hospital, number: scores[hospital][number - 1])
    result = test_rounds.run(tmp_path, grid, most_records=4)
    assert result["bounded"]["3"] == {"train": {"told": 30, "counted": 4}}
    rows = result["history"]
    assert [row["score"] for row in rows] == pytest.approx(
        [(5 * a + 2 * b) / 7 for a, b in zip(*scores.values(), strict=True)]
    )
    assert [row["loss"] for row in rows] == pytest.approx([0.25 * (3 + 8 + 21) / 3] * 3)
    moved = sum((step(3, n) + step(8, n) + step(21, n)) / 3 for n in (1, 2, 3))
    assert tensors(tmp_path)["w"] == pytest.approx(INITIAL["w"] + moved, rel=1e-6)


def test_scaffold_weighs_what_a_hospital_counts_with(tmp_path: Path) -> None:
    grid = Made(step, rising)
    test_rounds.run(tmp_path, grid, strategy="scaffold", most_records=4)
    by_round = {m.metadata.group_id: m.content.array_records["control"] for m in grid.sent if "control" in m.content}
    mean = (step(3, 1) + step(8, 1) + step(21, 1)) / 3
    assert by_round["2"]["w"].numpy() == pytest.approx(np.full((2, 2), -mean), abs=1e-6)


def test_one_word_does_not_set_the_number_of_rounds(tmp_path: Path) -> None:
    """With the liar's 10^9 records an epoch would have so many steps that the least number of steps asks for none."""
    settings = consortium.settings(pretraining__epochs="2", pretraining__least_steps="40")
    hospitals = [*HOSPITALS[:2], Hospital(21, 3, 10**9, 0, 3)]
    believed, counts = (
        test_rounds.rounds._Rounds(
            test_rounds.exchange.SeedPlan(
                "x", 42, settings, test_rounds.FederationSettings(), consortium.VOCABULARY, largest_share=share
            ),
            hospitals,
            INITIAL,
            FitFiles.of(tmp_path, 42, PRETRAINING, 0),
        )
        for share in (None, LARGEST_SHARE)
    )
    assert believed.last == 2
    assert counts.last == -(-40 // -(-(30 + 10 + 38) // 16))


class Liar(InProcessGrid):
    """Hospital 8 says at the start that it has very many records, and stands by it."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            if reply.metadata.src_node_id == 8:
                numbers = dict(reply.content.metric_records["metrics"])
                lies = {"train": 10**9, "validation": 10**9, "test": 10**9, "num-examples": 10**9}
                lies["frequency.records"] = lies["finetune-freeze.records"] = 10**9
                numbers |= {name: value for name, value in lies.items() if name in numbers}
                if "score-sum" in numbers:
                    numbers["score-sum"] = 10**9 * 0.75
                reply.content["metrics"] = MetricRecord(numbers)
            yield reply


def federate(tmp_path: Path, grid_of: Callable[..., InProcessGrid] = Liar, **more: Any) -> dict[str, Any]:
    data = consortium.write_dataset(tmp_path / "dataset", consortium.make_dataset())
    run = tmp_path / "run"
    sets = " ".join(f"{n}={v}" for n, v in (consortium.ASSIGNMENTS | {"tuning.epochs": "1"}).items())
    config = RUN_CONFIG | {"vocabulary": str(data), "out": str(run), "hospitals": 4, "models": "finetune-freeze"}
    config |= {"set": sets, "rounds": 1, "timeout": 60.0} | more
    return run_federation(grid_of({h: HospitalConfig(data, h, run) for h in consortium.SIZES}, None), config)


def test_a_deployment_bounds_a_hospital_that_claims_everything_and_its_results_and_log_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="tempt.server")
    results = federate(tmp_path)
    (bound,) = [results["federation"]["seeds"]["42"]["bounded"]]
    assert bound == read_json(tmp_path / "run" / RESULTS)["federation"]["seeds"]["42"]["bounded"]
    assert list(bound) == ["8"] and set(bound["8"]) == {"train", "validation", "test"}
    assert bound["8"]["train"] == {"told": 10**9, "counted": 49}, "beside 51 of the others"
    assert "hospital 8 tells more than it counts for: training records 1,000,000,000, counted 49" in caplog.text
    model = results["models"]["finetune-freeze"]["seeds"]["42"]
    hospitals = model["hospitals"]
    assert hospitals["8"]["records"] == 10**9, "as it told"
    counts = {h: min(of["records"], bound["8"]["test"]["counted"]) for h, of in hospitals.items()}
    mean = sum(counts[h] * of["prauc"] for h, of in hospitals.items()) / sum(counts.values())
    assert model["record_mean"]["prauc"] == pytest.approx(mean)


def test_a_deployment_of_hospitals_within_the_share_says_nothing_of_a_bound(tmp_path: Path) -> None:
    results = federate(tmp_path, InProcessGrid)
    assert "bounded" not in results["federation"]["seeds"]["42"]
    assert "most_records" not in results["federation"]


def test_a_hospital_with_too_few_training_records_for_its_own_policy_was_said_to_tell_too_much() -> None:
    others = [Hospital(3, 1, 100, 12, 13), Hospital(8, 2, 90, 11, 12), Hospital(21, 3, 80, 10, 10)]
    own = Hospital(34, 4, 0, 19, 19, too_few=["train"])
    counts = counted([*others, own], None, LARGEST_SHARE)
    assert bounded([*others, own], counts) == {}
    assert counted([*others, Hospital(34, 4, 0, 10**6, 19)], None, LARGEST_SHARE)[34].validation == 25
