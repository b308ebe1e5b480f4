"""Losses below 0, and steep ones: what settings allow is taken from an honest hospital, and nothing beyond it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict

from hospital_client.app import HospitalConfig
from server import exchange, rounds
from server.federation_settings import FederationSettings
from server.plain_message import array_record, plain_message
from server.round_exchange import _checked
from server.validation import BadNumbers
from shared_model.fitting import PRETRAINING, FitFiles
from shared_model.pretrainings.tempt import least_loss
from sim.inprocess_grid import InProcessGrid
from tests.server.federations import initial_tensors
from tests.sim import consortium

SIZES = {3: 3, 8: 3, 21: 2}
"""2, 2 and 1 training records."""


def pretrain(folder: Path, sets: dict[str, str], sizes: dict[int, int] = SIZES, **federation: Any) -> dict[str, Any]:
    dataset = consortium.make_dataset(consortium.make_records(sizes))
    data = consortium.write_dataset(folder / "dataset", dataset)
    settings = consortium.settings(pretraining__patience="99", pretraining__learning_rate="0.03", **sets)
    plan = exchange.SeedPlan("x", 42, settings, FederationSettings(**federation), dataset.vocabulary, expected=3)
    grid = InProcessGrid({h: HospitalConfig(data, h, folder) for h in sizes}, None)
    hospitals, _ = exchange.greet(grid, plan)
    files = FitFiles.of(folder, 42, PRETRAINING, 0)
    return rounds.pretrain(grid, plan, hospitals, initial_tensors(settings, dataset, 42), files, lambda row: None)


STEEP = {"pretraining__contrastive_weight": "10000", "pretraining__temperature": "0.05"}
RUNS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "weighted": ({"pretraining__contrastive_weight": "30"}, {"rounds": 12}),
    "cold": ({"pretraining__temperature": "0.001"}, {"rounds": 12}),
    "control variates": (STEEP, {"rounds": 3, "strategy": "scaffold"}),
    "above 10^9": (STEEP | {"pretraining__contrastive_weight": "1e9"}, {"rounds": 2}),
}


@pytest.mark.parametrize("name", RUNS)
def test_no_honest_hospital_is_refused_for_its_loss(tmp_path: Path, name: str) -> None:
    """Eq. 9 can be negative: of two records it soon is, and then large where gamma is."""
    sets, federation = RUNS[name]
    result = pretrain(tmp_path, sets, **federation)
    assert {h: part["rejected"] for h, part in result["hospitals"].items()} == {"3": [], "8": [], "21": []}
    if name in ("weighted", "cold"):
        assert min(row["loss"] for row in result["history"]) < 0, "else this tests nothing"


def test_no_honest_hospital_is_refused_for_vectors_of_zeros(tmp_path: Path) -> None:
    """Where an encoder is narrow all hidden units of a projector are off for some records, and Eq. 10 has no cosine."""
    narrow, sizes = {"encoder__c": "3", "encoder__heads": "1"}, {3: 40, 8: 40, 21: 40}
    result = pretrain(tmp_path, narrow, sizes, rounds=3, strategy="scaffold")
    assert {h: part["rejected"] for h, part in result["hospitals"].items()} == {"3": [], "8": [], "21": []}


@pytest.mark.parametrize("below, taken", [(0.0, True), (0.02, False)])
def test_a_loss_is_taken_down_to_what_the_settings_allow(tmp_path: Path, below: float, taken: bool) -> None:
    dataset, settings = consortium.make_dataset(), consortium.settings()
    plan = exchange.SeedPlan("x", 42, settings, FederationSettings(), dataset.vocabulary)
    hospital = exchange.Hospital(8, 2, 2, 0, 1)
    files = FitFiles.of(tmp_path, 42, PRETRAINING, 0)
    state = rounds._Rounds(plan, [hospital], {"w": np.ones(2, np.float32)}, files)
    what = state.chosen.algorithm.ask(state.state, {}, 0)
    least = least_loss(settings.pretraining, 2)
    assert least == pytest.approx(-0.05, rel=0.01), "-4 gamma / tau"
    numbers = MetricRecord({"hospital": 8, "num-examples": 2, "loss": least * (1 + below)})
    reply = plain_message(
        RecordDict({"metrics": numbers, "arrays": array_record({"w": np.ones(2, np.float32)})}), "train"
    )
    if taken:
        assert _checked(state, what, reply, hospital, trains=True, scores=False).loss == least
    else:
        with pytest.raises(BadNumbers, match=r"loss is -0.05.*, expected at least -0.05"):
            _checked(state, what, reply, hospital, trains=True, scores=False)
