"""Whole centralized runs: what they leave, and the same bits with any number of jobs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shared_model import checkpoint
from shared_model.files import read_json
from sim.cli import run as tempt
from sim.methods import method_names
from tests.sim import consortium
from tests.sim.consortium import assert_same, assigned, fingerprint

MODELS = ",".join(method_names())


def arguments(data: Path, out: Path, *more: str, jobs: int = 1, models: str = MODELS, **sets: str) -> list[str]:
    chosen = assigned({name.replace("__", "."): value for name, value in sets.items()})
    fixed = ["--models", models, "--seeds", "42,43", "--save-scores", "--jobs", str(jobs)]
    return ["simulate", "centralized", "--data", str(data), "--out", str(out), *fixed, *chosen, *more]


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every method that nothing disturbed, in one process."""
    out = tmp_path_factory.mktemp("reference") / "run"
    assert tempt(arguments(data, out)) == 0
    return out


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


# ------------------------------------------------------------------------------------------------ results


def test_run_when_done_holds_what_the_design_lists(reference: Path) -> None:
    results = read_json(reference / "results.json")
    assert list(results["models"]) == method_names()
    assert results["mode"] == "centralized" and results["format"] == 1
    assert results["dataset"]["records"] == sum(consortium.SIZES.values())
    assert set(results["dataset"]["split_digests"]) == {"42", "43"}
    for name, of in results["models"].items():
        assert list(of["seeds"]) == ["42", "43"]
        for seed in of["seeds"].values():
            assert list(seed["hospitals"]) == [str(hospital) for hospital in consortium.SIZES]
            counted = [own["prauc"] for own in seed["hospitals"].values()]
            assert seed["hospital_mean"]["prauc"] == pytest.approx(sum(counted) / len(counted))
        assert ("paired_t_test_of_tempt" in of) == (name != "tempt")
    tuned = results["models"]["tempt"]["seeds"]["42"]
    assert tuned["last_epoch_for_want_of_validation_records"] == [consortium.WITHOUT_VALIDATION]
    assert reference.stat().st_mode & 0o777 == 0o700
    assert list(reference.rglob("*.partial.safetensors")) == list(reference.rglob(".writing-*")) == []


def test_run_with_two_jobs_gives_the_same_bits_as_with_one(data: Path, reference: Path, tmp_path: Path) -> None:
    assert tempt(arguments(data, tmp_path / "run", jobs=2)) == 0
    assert_same(fingerprint(tmp_path / "run"), fingerprint(reference))


def test_seeds_and_hospitals_alone_give_the_same_bits_as_in_company(
    data: Path, reference: Path, tmp_path: Path
) -> None:
    """A seed is a run of its own; a hospital's own network is the same whoever else takes part."""
    alone = [part if part != "42,43" else "43" for part in arguments(data, tmp_path / "run", models="tempt")]
    assert tempt(alone) == 0
    own = arguments(data, tmp_path / "own", "--hospitals", "8,21", models="single-train")
    assert tempt(own) == 0
    both = fingerprint(reference)
    for run in ("run", "own"):
        found = {k: v for k, v in fingerprint(tmp_path / run).items() if k.startswith(("checkpoints", "scores"))}
        assert found and [name for name in found if both[name] != found[name]] == []


# ------------------------------------------------------------------------------------------------ selection=common


@pytest.fixture(scope="module")
def common(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("common") / "run"
    models = "frequency,finetune-freeze,tempt"
    assert tempt(arguments(data, out, models=models, tuning__selection="common", tuning__epochs="6")) == 0
    return out


@pytest.mark.parametrize("model", ["tempt", "finetune-freeze"])
@pytest.mark.parametrize("seed", [42, 43])
def test_common_selection_fits_every_hospital_for_the_epoch_of_the_best_mean(
    common: Path, model: str, seed: int
) -> None:
    folder = common / "checkpoints" / f"seed-{seed}" / model
    trials = {h: [row["score"] for row in read_json(folder / f"{h}.trial.json")["history"]] for h in consortium.SIZES}
    assert trials.pop(consortium.WITHOUT_VALIDATION) == [None] * 6
    means = [sum(scores[epoch] for scores in trials.values()) / len(trials) for epoch in range(6)]
    best = means.index(max(means)) + 1
    for hospital in consortium.SIZES:
        result = read_json(folder / f"{hospital}.json")
        assert result["best_epoch"] == len(result["history"]) == best
        assert checkpoint.load(folder / f"{hospital}.safetensors")[1]["best_epoch"] == best


def test_common_selection_when_resumed_changes_no_bit(data: Path, common: Path, tmp_path: Path) -> None:
    """After its end, and after tuned hospitals were done but one."""
    expected = fingerprint(common)
    models = "frequency,finetune-freeze,tempt"
    for lost in ([], ["tempt/8.json"], ["tempt/21.json", "tempt/8.trial.json"]):
        run = tmp_path / f"run-{len(lost)}"
        shutil.copytree(common, run)
        for name in lost:
            (run / "checkpoints" / "seed-42" / name).unlink()
        more = {"tuning__selection": "common", "tuning__epochs": "6"}
        assert tempt(arguments(data, run, "--resume", models=models, **more)) == 0
        assert_same(fingerprint(run), expected)


def test_common_selection_when_resumed_fits_nothing_again(data: Path, common: Path, tmp_path: Path) -> None:
    shutil.copytree(common, tmp_path / "run")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*.*")}
    models = "frequency,finetune-freeze,tempt"
    more = {"tuning__selection": "common", "tuning__epochs": "6"}
    assert tempt(arguments(data, tmp_path / "run", "--resume", models=models, **more)) == 0
    assert [path.name for path, time in times.items() if path.stat().st_mtime_ns != time] == []


def test_common_selection_never_reports_more_fits_than_there_are(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sim.display._LINE_SECONDS", 0.0)
    more = {"tuning__selection": "common", "tuning__epochs": "2"}
    assert tempt(arguments(data, tmp_path / "run", models="tempt", **more)) == 0
    counts = [tuple(map(int, pair)) for pair in re.findall(r"^\[(\d+)/(\d+)\]", capsys.readouterr().err, re.M)]
    assert counts[-1][0] == counts[-1][1]
    assert all(done <= total for done, total in counts)
