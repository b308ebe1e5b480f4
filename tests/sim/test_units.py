"""A fit's files and what it leaves: metrics of its own scores, the last epoch without validation, trials."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import average_precision_score

from shared_model import checkpoint
from shared_model.errors import TemptError
from shared_model.fitting import PRETRAINING, seconds_of
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.recommendation import Fitted
from shared_model.settings import Settings
from sim.methods import method
from sim.units import FitUnit, RunPlan, context_of, fit_unit
from tests.sim import consortium

DATASET = consortium.make_dataset()
Make = Callable[..., FitUnit]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> FitUnit:
    """The pretraining of a run, done."""
    root = tmp_path_factory.mktemp("run")
    directory = consortium.write_dataset(root / "dataset", DATASET)
    plan = RunPlan(root / "run", directory, consortium.settings(), "cpu", 2, save_scores=True, hospitals=None)
    unit = FitUnit(plan, PRETRAINING, 42, WHOLE_CONSORTIUM)
    fit_unit(unit, lambda row: None)
    return unit


def unit_of(base: FitUnit, model: str, hospital: int, **more: Any) -> FitUnit:
    return FitUnit(base.plan, model, 42, hospital, **more)


def test_files_of_a_unit_are_its_seeds_models_and_hospitals() -> None:
    plan = RunPlan(Path("run"), Path("dataset"), Settings(), "cpu", 3, save_scores=False, hospitals=None)
    whole, own = FitUnit(plan, "full-train", 42, WHOLE_CONSORTIUM), FitUnit(plan, "tempt", 43, 8)
    trial = FitUnit(plan, "tempt", 43, 8, trial=True)
    assert [str(unit.files.tensors) for unit in (whole, own, trial)] == [
        "run/checkpoints/seed-42/full-train.safetensors",
        "run/checkpoints/seed-43/tempt/8.safetensors",
        "run/checkpoints/seed-43/tempt/8.trial.safetensors",
    ]
    assert str(own.files.result) == "run/checkpoints/seed-43/tempt/8.json"
    assert str(own.files.partial) == "run/checkpoints/seed-43/tempt/8.partial.safetensors"
    assert (whole.threads, own.threads) == (3, 1)
    assert whole.needs is None and own.needs == FitUnit(plan, PRETRAINING, 43, WHOLE_CONSORTIUM)


def test_unit_when_done_has_written_what_it_returns(base: FitUnit) -> None:
    unit = unit_of(base, "tempt", 8)
    rows: list[dict[str, Any]] = []
    assert unit.files.read() is None
    result = fit_unit(unit, rows.append)
    assert json.loads(unit.files.result.read_text()) == result == unit.files.read()
    assert result["history"] == rows
    assert (result["model"], result["seed"], result["hospital"]) == ("tempt", 42, 8)
    tensors, about = checkpoint.load(unit.files.tensors)
    assert about["best_epoch"] == result["best_epoch"] == max(rows, key=lambda row: row["score"])["epoch"]
    assert sorted(tensors)[-1] == "prompts"
    assert set(result["seconds"]) == {"fit", "evaluation"}
    assert sorted(path.name for path in unit.files.tensors.parent.iterdir()) == ["8.json", "8.safetensors"]
    assert unit.files.tensors.parent.stat().st_mode & 0o077 == 0


def test_unit_gives_the_tensors_of_its_method_on_its_hospitals_split(base: FitUnit) -> None:
    unit = unit_of(base, "tempt", 21)
    fit_unit(unit, lambda row: None)
    split = DATASET.split(42)
    fitted = method("tempt").fit(
        split.train.of_hospital(21), split.validation.of_hospital(21), context_of(DATASET.vocabulary, unit)
    )
    tensors, _ = checkpoint.load(unit.files.tensors)
    assert all(torch.equal(tensors[name], fitted.tensors[name]) for name in fitted.tensors)


@pytest.mark.parametrize(("model", "hospital"), [("finetune", 3), ("hospital-frequency", WHOLE_CONSORTIUM)])
def test_measured_metrics_are_those_of_the_saved_scores(base: FitUnit, model: str, hospital: int) -> None:
    result = fit_unit(unit_of(base, model, hospital), lambda row: None)
    test = DATASET.split(42).test
    whose = [hospital] if hospital else DATASET.records.hospitals
    assert list(result["hospitals"]) == [str(of) for of in whose]
    for of in whose:
        scores = base.plan.run / "scores" / model / "seed-42" / f"{of}.parquet"
        assert scores.parent.stat().st_mode & 0o077 == 0
        table = pq.read_table(scores).to_pylist()
        own = test.of_hospital(of)
        assert [row["patientunitstayid"] for row in table] == own.stay.tolist()
        assert [row["labels"] for row in table] == own.medications.lists()
        found = {"prauc": 0.0, "jaccard": 0.0, "f1": 0.0, "medications": 0.0}
        for row in table:
            true, above = set(row["labels"]), {m for m, score in enumerate(row["scores"]) if score > 0.3}
            hot = [int(m in true) for m in range(consortium.MEDICATIONS)]
            found["prauc"] += average_precision_score(hot, row["scores"]) / len(table)
            found["jaccard"] += len(true & above) / len(true | above) / len(table)
            found["f1"] += 2 * len(true & above) / (len(true) + len(above)) / len(table)
            found["medications"] += len(above) / len(table)
        assert result["hospitals"][str(of)] == pytest.approx(found | {"records": len(table)}, abs=1e-6)


def test_unit_of_a_hospital_without_validation_records_keeps_its_last_epoch(base: FitUnit) -> None:
    result = fit_unit(unit_of(base, "tempt", consortium.WITHOUT_VALIDATION), lambda row: None)
    assert result["selected"] == "last epoch, for want of a validation record"
    assert result["best_epoch"] == len(result["history"]) == base.plan.settings.tuning.epochs
    assert [row["score"] for row in result["history"]] == [None] * len(result["history"])
    assert result["hospitals"]["34"]["records"] == 1


def test_trial_scores_every_epoch_and_keeps_nothing(base: FitUnit) -> None:
    impatient = consortium.settings(tuning__epochs="9", tuning__patience="1")
    plan = RunPlan(base.plan.run, base.plan.dataset, impatient, "cpu", 1, save_scores=True, hospitals=None)
    unit = FitUnit(plan, "finetune-freeze", 42, 3, trial=True)
    result = fit_unit(unit, lambda row: None)
    assert [row["epoch"] for row in result["history"]] == list(range(1, 10))
    assert all(isinstance(row["score"], float) for row in result["history"])
    assert checkpoint.load(unit.files.tensors)[0] == {} and "hospitals" not in result
    assert unit.files.read() is not None
    assert FitUnit(plan, "finetune-freeze", 42, 3).files.read() is None


def test_unit_for_chosen_epochs_fits_for_so_many(base: FitUnit) -> None:
    result = fit_unit(unit_of(base, "finetune", 21, epochs=2), lambda row: None)
    assert [row["score"] for row in result["history"]] == [None, None] and result["best_epoch"] == 2


def test_unit_of_some_hospitals_learns_from_their_records_alone(base: FitUnit) -> None:
    plan = RunPlan(base.plan.run / "some", base.plan.dataset, base.plan.settings, "cpu", 1, False, hospitals=(3, 21))
    fit_unit(unit := FitUnit(plan, "frequency", 42, WHOLE_CONSORTIUM), lambda row: None)
    train = DATASET.of_hospitals([3, 21]).split(42).train
    tensors, _ = checkpoint.load(unit.files.tensors)
    assert torch.equal(tensors["rate"], train.medications.multi_hot(consortium.MEDICATIONS).double().mean(0))


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_result_of_a_unit_with_a_damaged_file_is_refused(base: FitUnit, suffix: str) -> None:
    unit = unit_of(base, "single-train", 3)
    fit_unit(unit, lambda row: None)
    path = unit.files.tensors.with_name(f"3{suffix}")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TemptError, match=f"single-train/3{suffix}") as caught:
        unit.files.read()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_unit_with_one_of_two_files_is_not_done(base: FitUnit, suffix: str) -> None:
    unit = unit_of(base, "single-train", 8)
    fit_unit(unit, lambda row: None)
    unit.files.tensors.with_name(f"8{suffix}").unlink()
    assert unit.files.read() is None


def test_unit_on_a_dataset_that_was_replaced_is_refused(base: FitUnit) -> None:
    plan = replace(base.plan, digest="of another dataset")
    with pytest.raises(TemptError, match="was replaced while the run was at work"):
        fit_unit(FitUnit(plan, "frequency", 42, 0), lambda row: None)


def test_fit_seconds_after_a_resumption_count_the_epochs_before_it() -> None:
    history = [{"seconds": 40.0}, {"seconds": 60.0}]
    assert seconds_of(time.monotonic() - 1, Fitted({}, history)) == 100.0
    assert seconds_of(time.monotonic() - 200, Fitted({}, history)) >= 200
