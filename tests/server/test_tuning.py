"""What hospitals told of their tuning: kept at once, asked for again only where it is missing, waited for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from hospital_client.app import HospitalConfig
from server import exchange, rounds, tuning
from server.federation import Federation
from server.federation_settings import FederationSettings
from shared_model.errors import TooFewHospitals
from shared_model.files import read_json, write_json
from sim.inprocess_grid import InProcessGrid
from tests.server.federations import Clock
from tests.sim import consortium

DATASET, SETTINGS = consortium.make_dataset(), consortium.settings(pretraining__epochs="2")


class Forgetful(InProcessGrid):
    """Keeps the messages it is asked to send; loses so many of each hospital's replies about its tuning.

    Args:
        away: hospitals that are not there.
    """

    def __init__(self, data: Path, run: Path, away: set[int] = frozenset(), lost: Mapping[int, int] | None = None):  # type: ignore[assignment]
        super().__init__(
            {h: HospitalConfig(data, h, run / f"hospital-{h}") for h in consortium.SIZES if h not in away}, None
        )
        self._lost = dict(lost or {})
        self.tuned: list[int] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            if reply.metadata.group_id == "tune":
                hospital = reply.metadata.src_node_id
                self.tuned.append(hospital)
                self._lost[hospital] = self._lost.get(hospital, 0) - 1
                if self._lost[hospital] >= 0:
                    continue
            yield reply


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return consortium.write_dataset(tmp_path_factory.mktemp("data") / "dataset", DATASET)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in (exchange, rounds, tuning):
        monkeypatch.setattr(module, "time", found)
    return found


def seed(run: Path, grid: Forgetful, least: int = 2) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """Each hospital's result of a whole federation, and what is told about it."""
    federation = FederationSettings(timeout=60.0)
    whole = Federation(
        run / "run", DATASET.vocabulary, SETTINGS, federation, ("finetune-freeze",), False, 4, least, keeps_told=True
    )
    results, about = whole.seed(grid, 42, on_round=lambda fit, row: None, on_done=lambda label: None)
    return {fit.hospital: result for fit, result in results.items() if fit.hospital}, about


def test_a_hospital_that_is_away_at_a_resumption_does_not_lose_the_metrics_that_it_told(
    data: Path, tmp_path: Path
) -> None:
    whole, _ = seed(tmp_path, Forgetful(data, tmp_path))
    resumed = Forgetful(data, tmp_path, away={8})
    assert seed(tmp_path, resumed)[0] == whole and sorted(whole) == sorted(consortium.SIZES)
    assert resumed.tuned == []


def test_at_a_resumption_only_hospitals_whose_metrics_are_missing_tune(data: Path, tmp_path: Path) -> None:
    first, about = seed(tmp_path, Forgetful(data, tmp_path, lost={8: 99}))
    assert sorted(first) == [3, 21, 34] and about["not_tuned"] == {"8": "no reply"}
    assert seed(tmp_path, Forgetful(data, tmp_path, away={8}))[1]["not_tuned"] == {"8": "it is not there"}
    resumed = Forgetful(data, tmp_path)
    assert sorted(seed(tmp_path, resumed)[0]) == [3, 8, 21, 34] and resumed.tuned == [8]


@pytest.mark.parametrize("other", [{"experiment": "another"}, {"encoder": "another"}, {"numbers": {}}])
def test_metrics_of_another_experiment_or_encoder_are_asked_for_again(
    data: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    whole, _ = seed(tmp_path, Forgetful(data, tmp_path))
    path = tmp_path / "run" / "told" / "seed-42" / "8.json"
    write_json(path, read_json(path) | other)
    resumed = Forgetful(data, tmp_path)
    assert seed(tmp_path, resumed)[0][8]["hospitals"] == whole[8]["hospitals"] and resumed.tuned == [8]


def test_tuning_below_the_quorum_waits_for_hospitals_that_did_not_answer(data: Path, tmp_path: Path) -> None:
    grid = Forgetful(data, tmp_path, lost={8: 1, 34: 1})
    found, about = seed(tmp_path, grid, least=4)
    assert sorted(found) == [3, 8, 21, 34] and about["not_tuned"] == {}
    assert grid.tuned == [3, 8, 21, 34, 8, 34], "who has answered is not asked again"


def test_waiting_for_a_tuning_that_never_comes_ends(data: Path, tmp_path: Path) -> None:
    grid = Forgetful(data, tmp_path, lost={8: 99})
    with pytest.raises(TooFewHospitals, match="tuning: 3 hospitals of 4, expected at least 4; hospital 8: no reply"):
        seed(tmp_path, grid, least=4)
    assert 1 < grid.tuned.count(8) < 10
