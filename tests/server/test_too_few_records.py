"""Hospitals whose policies have too few records: their scores and metrics are missing, counted as none, and named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hospital_client.app import HospitalConfig
from server import exchange, rounds, tuning
from server.app import run_federation
from server.federation_settings import FederationSettings
from server.run_config import RUN_CONFIG
from server.told import StatusFile
from shared_model.files import read_json
from sim.cli import run as tempt
from sim.inprocess_grid import InProcessGrid
from tests.hospital_client.policies import write_policy
from tests.server.federations import Clock, initial_tensors
from tests.server.test_rounds import Made, rising, run, step
from tests.sim import consortium

SIZES = {3: 53, 8: 29, 21: 60, 34: 4}  # 42/5/6, 23/2/4, 48/6/6, 3/0/1
DATASET = consortium.make_dataset(consortium.make_records(SIZES))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return consortium.write_dataset(tmp_path_factory.mktemp("data") / "dataset", DATASET)


class Heard(StatusFile):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def federated(data: Path, root: Path, hospitals: list[int], **more: Any) -> tuple[dict[str, Any], list[str]]:
    """A federation of deployed hospitals with default policies: `results.json`, and what the operator was told."""
    sets = " ".join(f"{name}={value}" for name, value in consortium.ASSIGNMENTS.items())
    config = RUN_CONFIG | {"out": str(root / "run"), "vocabulary": str(data), "hospitals": len(hospitals), "set": sets}
    places = {h: HospitalConfig(data, h, root / f"hospital-{h}", deployed=True) for h in hospitals}
    told = Heard()
    with pytest.MonkeyPatch.context() as patched:
        for module in (exchange, rounds, tuning):
            patched.setattr(module, "time", Clock())
        found = run_federation(InProcessGrid(places, None), config | {"models": "finetune-freeze"} | more, told)
    return found, told.lines


def test_metrics_of_too_few_records_are_missing_and_the_rest_is_as_without_them(data: Path, tmp_path: Path) -> None:
    found, lines = federated(data, tmp_path, list(SIZES))
    about, model = found["federation"]["seeds"]["42"], found["models"]["finetune-freeze"]
    assert about["too_few_records"] == {"8": ["validation", "test"], "34": ["train", "validation", "test"]}
    assert about["left_out"] == about["not_tuned"] == {}
    assert all(part["rejected"] == [] and part["missed"] == 0 for part in about["hospitals"].values())
    assert [about["hospitals"][h]["taken"] for h in ("3", "8", "21", "34")] == [[1, 2], [1, 2], [1, 2], []]
    assert "hello: hospital 34 has too few records by its policy, counted as none: train, validation, test" in lines
    seed = model["seeds"]["42"]
    assert sorted(seed["hospitals"]) == ["21", "3"]
    assert seed["too_few_test_records"] == [8, 34] and seed["hospitals_measured"] == 2
    assert model["summary"]["f1"]["mean"] == pytest.approx(sum(h["f1"] for h in seed["hospitals"].values()) / 2)

    for h in SIZES:
        write_policy(tmp_path / "all" / f"hospital-{h}")
    whole, _ = federated(data, tmp_path / "all", list(SIZES))
    assert whole["federation"]["seeds"]["42"]["too_few_records"] == {"34": ["validation"]}, "it has none"
    assert sorted(whole["models"]["finetune-freeze"]["seeds"]["42"]["hospitals"], key=int) == ["3", "8", "21", "34"]


def test_at_a_resumption_kept_metrics_of_too_few_records_are_not_asked_for_again(data: Path, tmp_path: Path) -> None:
    first, _ = federated(data, tmp_path, [3, 8])
    assert read_json(tmp_path / "run" / "told" / "seed-42" / "8.json")["numbers"].keys() == {
        *("least-validation", "least-test"),
        *("finetune-freeze.seconds.fit", "finetune-freeze.seconds.evaluation"),
    }
    (tmp_path / "run" / "results.json").unlink()
    again, lines = federated(data, tmp_path, [3, 8])
    assert again == first and "tuning: the metrics of 2 hospitals are kept from before" in lines


def test_where_all_have_too_few_the_last_round_is_taken_and_no_metric_is_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, lines = federated(data, tmp_path, [8], seeds="42,43")
    assert found["federation"]["seeds"]["42"]["best_round"] == 2
    assert read_json(tmp_path / "run" / "checkpoints" / "seed-42" / "pretraining.json")["selected"].startswith("last")
    assert found["models"]["finetune-freeze"]["summary"]["prauc"] == {"mean": None, "std": None}
    assert not any("rejected" in line for line in lines)
    printed(found, tmp_path, monkeypatch)
    assert capsys.readouterr().out.splitlines()[0] == "finetune-freeze: no metrics (of 0 of 1 hospitals)"


def printed(found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `tempt server launch` prints of these results."""
    monkeypatch.setattr("server.launch.launch", lambda place, config, say: found)
    out = ["--out", str(tmp_path / "run"), "--vocabulary", str(tmp_path)]
    assert tempt(["server", "launch", "--insecure", *out, "--hospitals", "1"]) == 0


def test_the_printed_table_says_how_many_hospitals_stand_for_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = federated(data, tmp_path, [3, 8], models="tempt,finetune-freeze", seeds="42,43")
    printed(found, tmp_path, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": prauc 0.")[0] for line in lines[:2]] == ["tempt", "finetune-freeze"]
    assert all(line.endswith(" (of 1 of 2 hospitals)") for line in lines[:2]), lines


def test_a_policy_that_changes_while_a_run_is_at_work_costs_the_score_and_no_quorum(tmp_path: Path) -> None:
    """Hospital 3 has most validation records, and tells from the second message on that they are too few."""

    class Fewer(Made):
        def _answer(self, message: Any) -> Any:
            reply = super()._answer(message)
            metrics = reply.content.metric_records["metrics"]
            if metrics["hospital"] == 3 and "score-sum" in metrics:
                del metrics["score-sum"]
                metrics["least-validation"] = 9
            return reply

    result = run(tmp_path, Fewer(step, rising), quorum=1.0)
    assert [row["score"] for row in result["history"]] == pytest.approx([0.1, 0.2, 0.3]), "of hospital 8 alone"
    assert all(part["rejected"] == [] for part in result["hospitals"].values())


@pytest.mark.parametrize("least", [0, -1, 2.5, "many"])
def test_a_least_number_that_is_none_is_the_hospitals_rejection(least: Any) -> None:
    with pytest.raises(exchange.Rejected, match="least-test is"):
        exchange.least_of({"least-test": least}, "test")
    assert exchange.least_of({}, "test") == 0


def test_a_policy_that_is_loosened_while_a_run_is_at_work_left_the_hospital_out(tmp_path: Path, data: Path) -> None:
    """It was greeted with too few test records, and tells metrics of them at the end: they count as none still."""
    dataset, settings = consortium.make_dataset(), consortium.settings()
    plan = exchange.SeedPlan("x", 42, settings, FederationSettings(), dataset.vocabulary)
    whole = consortium.write_dataset(tmp_path / "dataset", dataset)
    grid = InProcessGrid({h: HospitalConfig(whole, h, tmp_path / str(h)) for h in consortium.SIZES}, None)
    there, _ = exchange.greet(grid, plan)
    hospitals = [replace(h, test=0, too_few=("test",)) if h.hospital == 8 else h for h in there]
    shared = initial_tensors(settings, dataset, 42)
    numbers, without = tuning.tune(
        grid, plan, hospitals, shared, ["finetune-freeze"], save_scores=False, on_hospital=lambda label: None
    )
    assert without == {} and sorted(numbers) == sorted(consortium.SIZES)
    assert "least-test" in numbers[8] and not any("prauc" in name for name in numbers[8])
    assert "finetune-freeze.prauc" in numbers[3]
