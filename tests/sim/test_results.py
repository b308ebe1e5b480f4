"""Results from numbers made by hand: means over hospitals and records, deviations, the t-test, and the table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from shared_model.fitting import PRETRAINING
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.results import write_results
from shared_model.settings import Settings
from sim.methods import method, method_names, needs
from sim.results import table
from sim.units import FitUnit, RunPlan

ABOUT = {"mode": "centralized", "dataset": {"hospitals": 3, "records": 99}}
PLAN = RunPlan(Path("run"), Path("dataset"), Settings(), "cpu", 1, save_scores=False, hospitals=None)


def measured(prauc: float, records: int = 2) -> dict[str, float]:
    return {"records": records, "prauc": prauc, "jaccard": prauc / 2, "f1": prauc / 4, "medications": 7.0}


def fits(model: str, seed: int, by_hospital: dict[int, dict[str, float]], **more: Any) -> dict[FitUnit, dict[str, Any]]:
    """A fit of the whole consortium for a baseline, a fit a hospital for an adaptation."""
    if method(model).SCOPE == "consortium":
        hospitals = {str(hospital): of for hospital, of in by_hospital.items()}
        seconds = {"fit": 5.0, "evaluation": 0.5}
        return {
            FitUnit(PLAN, model, seed, WHOLE_CONSORTIUM): {"hospital": 0, "hospitals": hospitals, "seconds": seconds}
        }
    return {
        FitUnit(PLAN, model, seed, hospital): {
            "hospital": hospital,
            "hospitals": {str(hospital): of},
            "seconds": {"fit": 1.25, "evaluation": 0.25},
        }
        | more.get(f"of_{hospital}", {})
        for hospital, of in by_hospital.items()
    }


def rows(*models: str) -> dict[str, str | None]:
    return {name: needs(name) for name in models}


def pretraining(seed: int) -> dict[FitUnit, dict[str, Any]]:
    return {FitUnit(PLAN, PRETRAINING, seed, WHOLE_CONSORTIUM): {"hospital": 0, "seconds": {"fit": 60.0}}}


def results_of(tmp_path: Path, tempt: list[float], frequency: list[float]) -> dict[str, Any]:
    """Two models whose hospital means are given, a seed each."""
    done: dict[FitUnit, dict[str, Any]] = {}
    seeds = [42 + i for i in range(len(tempt))]
    for seed, ours, theirs in zip(seeds, tempt, frequency, strict=True):
        done |= pretraining(seed) | fits("tempt", seed, {3: measured(ours)})
        done |= fits("frequency", seed, {3: measured(theirs)})
    return write_results(tmp_path, ABOUT, done, rows("frequency", "tempt"), seeds)


def test_results_of_a_seed_are_means_over_hospitals_and_over_records(tmp_path: Path) -> None:
    hospitals = {10: measured(0.4, 1), 9: measured(0.8, 3), 21: measured(0.0, 0)}
    done = pretraining(42) | fits("tempt", 42, hospitals, of_10={"selected": "last epoch"})
    content = write_results(tmp_path, ABOUT, done, rows("tempt"), [42])
    seed = content["models"]["tempt"]["seeds"]["42"]
    assert list(seed["hospitals"]) == ["9", "10", "21"]
    assert seed["hospitals"]["10"] == measured(0.4, 1)
    # hospital 21 has no test record and does not count
    assert seed["hospital_mean"] == pytest.approx({"prauc": 0.6, "jaccard": 0.3, "f1": 0.15})
    assert seed["record_mean"] == pytest.approx({"prauc": 0.7, "jaccard": 0.35, "f1": 0.175})
    assert seed["seconds"] == {"pretraining": 60.0, "tuning": 3.75, "evaluation": 0.75}
    assert seed["last_epoch_for_want_of_validation_records"] == [10]
    assert content["models"]["tempt"]["summary"]["prauc"] == {"mean": pytest.approx(0.6), "std": None}
    assert "paired_t_test_of_tempt" not in content["models"]["tempt"]
    assert json.loads((tmp_path / "results.json").read_text()) == content
    assert content["format"] == 1 and content["mode"] == "centralized"


def test_results_of_a_baseline_have_no_pretraining(tmp_path: Path) -> None:
    done = fits("frequency", 42, {3: measured(0.5), 8: measured(0.7)})
    seed = write_results(tmp_path, ABOUT, done, rows("frequency"), [42])["models"]["frequency"]["seeds"]["42"]
    assert seed["seconds"] == {"training": 5.0, "evaluation": 0.5}
    assert "last_epoch_for_want_of_validation_records" not in seed


def test_summary_of_seeds_divides_by_one_less(tmp_path: Path) -> None:
    content = results_of(tmp_path, [0.5, 0.6, 0.8], [0.4, 0.4, 0.4])
    summary = content["models"]["tempt"]["summary"]
    assert summary["prauc"]["mean"] == pytest.approx(1.9 / 3)
    # squared distances from 0.6333: 0.017778, 0.001111, 0.027778; their sum over 2
    assert summary["prauc"]["std"] == pytest.approx(math.sqrt(0.046667 / 2), abs=1e-5)
    assert summary["jaccard"]["mean"] == pytest.approx(1.9 / 6)
    assert content["models"]["frequency"]["summary"]["prauc"]["std"] == pytest.approx(0, abs=1e-12)


def test_t_test_is_paired_and_two_sided(tmp_path: Path) -> None:
    ours, theirs = [0.50, 0.60, 0.80], [0.45, 0.58, 0.70]
    content = results_of(tmp_path, ours, theirs)
    found = content["models"]["frequency"]["paired_t_test_of_tempt"]
    # differences 0.05, 0.02, 0.10; with 2 degrees of freedom p = 1 - |t| / sqrt(t^2 + 2)
    mean, deviation = 0.17 / 3, math.sqrt((0.0129 - 0.17**2 / 3) / 2)
    t = mean / (deviation / math.sqrt(3))
    assert found["prauc"] == pytest.approx(1 - t / math.sqrt(t**2 + 2), rel=1e-9)
    assert found["prauc"] == pytest.approx(float(ttest_rel(ours, theirs).pvalue), rel=1e-9)
    assert set(found) == {"prauc", "jaccard", "f1"}
    assert "paired_t_test_of_tempt" not in content["models"]["tempt"]
    worse = results_of(tmp_path, theirs, ours)["models"]["frequency"]["paired_t_test_of_tempt"]
    assert worse["prauc"] == pytest.approx(found["prauc"], rel=1e-9)


@pytest.mark.parametrize("difference", [0.0, 0.1])
def test_t_test_of_equal_differences_is_undefined(tmp_path: Path, difference: float) -> None:
    theirs = [0.3, 0.35, 0.41]
    content = results_of(tmp_path, [x + difference for x in theirs], theirs)
    assert content["models"]["frequency"]["paired_t_test_of_tempt"]["prauc"] is None


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_table_when_printed_fits_80_columns(tmp_path: Path, seeds: int) -> None:
    done: dict[FitUnit, dict[str, Any]] = {}
    for seed in range(seeds):
        done |= pretraining(seed)
        for place, name in enumerate(method_names()):
            done |= fits(name, seed, {3: measured(0.5 + 0.01 * place + 0.003 * seed * seed * (place + 1) % 0.4)})
    content = write_results(tmp_path, ABOUT, done, rows(*method_names()), list(range(seeds)))
    lines = table(content)
    assert max(map(len, lines)) <= 80
    for name in method_names():
        (line,) = [line for line in lines if line.startswith(f"{method(name).TITLE:24}")]
        assert f"{content['models'][name]['summary']['prauc']['mean']:8.4f}" in line
        assert all(f"{mean:.4f}" in line for mean, _ in method(name).PAPER.values())
        assert line.endswith(" -") == (seeds == 1 or name == "tempt")
    assert sum("±" in line for line in lines) == (0 if seeds == 1 else len(method_names()))
    assert any(f"over {seeds} seed" in line for line in lines)


def test_table_of_hand_made_numbers_line_by_line(tmp_path: Path) -> None:
    done = pretraining(42) | fits("tempt", 42, {3: measured(0.5)}) | fits("frequency", 42, {3: measured(0.25)})
    lines = table(write_results(tmp_path, ABOUT, done, rows("frequency", "tempt"), [42]))
    assert [line.split() for line in lines if line.startswith(("Freq", "TEMPT"))] == [
        ["Frequency", "0.2500", "-", "0.1250", "-", "0.0625", "-", "-"],
        ["TEMPT", "0.5000", "0.5468", "0.2500", "0.3318", "0.1250", "0.4790", "-"],
    ]


def test_table_says_when_p_is_below_a_thousandth(tmp_path: Path) -> None:
    content = results_of(tmp_path, [0.5, 0.6, 0.7, 0.8, 0.9], [0.1001, 0.2, 0.3, 0.4, 0.5])
    (line,) = [line for line in table(content) if line.startswith("Frequency")]
    assert line.endswith(" <0.001")
