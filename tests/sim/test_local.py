"""`tempt simulate local`: each hospital pretrains by itself, and nothing of another reaches it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shared_model import checkpoint
from shared_model.batching import TokenRows
from shared_model.files import read_json
from shared_model.pretrainings.tempt import PretrainingNetwork, PretrainingTask
from shared_model.randomness import generator
from shared_model.training import train
from sim.cli import run as tempt
from sim.methods import method, method_names
from tests.sim import consortium
from tests.sim.command import mistake
from tests.sim.consortium import assert_same, assigned, fingerprint

MODELS = "single-train,finetune-freeze,tempt"


def arguments(mode: str, data: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--models", MODELS, "--seeds", "42", "--jobs", "1"]
    return ["simulate", mode, "--data", str(data), "--out", str(out), *fixed, *assigned(), *more]


@pytest.fixture(scope="module")
def local(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "run"
    assert tempt(arguments("local", data, out)) == 0
    return out


def test_each_hospital_has_an_encoder_of_its_own_records_alone(local: Path) -> None:
    dataset, settings = consortium.make_dataset(), consortium.settings()
    rows = TokenRows(consortium.DIAGNOSES, consortium.PROCEDURES)
    for hospital in consortium.SIZES:
        split = dataset.split(42).of_hospital(hospital)
        draws = generator(torch.device("cpu"), 42, "pretraining/initial", hospital)
        network = PretrainingNetwork(settings.encoder, rows, draws)
        task = PretrainingTask(network, split.train, split.validation, settings.pretraining, seed=42)
        train(task, settings.pretraining, seed=42, purpose="pretraining", hospital=hospital)
        found, _ = checkpoint.load(local / "checkpoints" / "seed-42" / "pretraining" / f"{hospital}.safetensors")
        assert [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, found[name])] == []
    assert not (local / "checkpoints" / "seed-42" / "pretraining.safetensors").exists()


def test_a_hospital_in_company_is_as_it_would_be_without_the_others(data: Path, local: Path, tmp_path: Path) -> None:
    assert tempt(arguments("local", data, tmp_path / "run", "--hospitals", "8")) == 0
    alone, company = (read_json(run / "results.json")["models"]["tempt"] for run in (tmp_path / "run", local))
    assert alone["seeds"]["42"]["hospitals"]["8"] == company["seeds"]["42"]["hospitals"]["8"]


def test_rows_without_pretraining_are_those_of_the_centralized_run(data: Path, local: Path, tmp_path: Path) -> None:
    assert tempt(arguments("centralized", data, tmp_path / "run")) == 0
    here, there = (read_json(run / "results.json") for run in (local, tmp_path / "run"))
    assert (here["mode"], there["mode"]) == ("local", "centralized")
    assert here["models"]["single-train"]["summary"] == there["models"]["single-train"]["summary"]
    for model in ("tempt", "finetune-freeze"):
        assert here["models"][model]["summary"] != there["models"][model]["summary"]
        assert here["models"][model]["seeds"]["42"]["seconds"]["pretraining"] > 0


def test_two_jobs_and_a_resumption_change_no_bit(data: Path, local: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert tempt(arguments("local", data, out, "--jobs", "2")) == 0
    (out / "checkpoints" / "seed-42" / "pretraining" / "21.json").unlink()
    (out / "checkpoints" / "seed-42" / "tempt" / "8.json").unlink()
    assert tempt(arguments("local", data, out, "--resume")) == 0
    assert_same(fingerprint(out), fingerprint(local))


def test_recommend_answers_with_the_hospitals_own_encoder(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, procedure = consortium.VOCABULARY.diagnoses[3], consortium.VOCABULARY.procedures[4]
    for model in ("tempt", "finetune-freeze"):
        patient = ["--hospital", "8", "--diagnosis", code, "--procedure", procedure]
        assert tempt(["recommend", str(local), "--model", model, *patient]) == 0
        assert "DRUG" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ each by itself


@pytest.mark.parametrize("model", [name for name in method_names() if method(name).SCOPE == "consortium"])
def test_model_that_is_fitted_on_all_hospitals_is_refused_by_name(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    line = mistake(
        capsys, ["simulate", "local", "--data", str(data), "--out", str(tmp_path / "run"), "--models", model]
    )
    assert line == (
        f"error: --models {model}: is fitted on the records of all hospitals, and in this mode each is by itself; "
        "run it with `tempt simulate centralized`"
    )
    assert list(tmp_path.iterdir()) == []


def test_models_without_a_choice_are_those_of_one_hospital(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert tempt(["simulate", "local", "--data", str(data), "--out", str(out), "--jobs", "1", *assigned()]) == 0
    found = list(read_json(out / "results.json")["models"])
    assert found == [name for name in method_names() if method(name).SCOPE == "hospital"]
    folder = out / "checkpoints" / "seed-42"
    assert {path.name for path in folder.iterdir()} == {"pretraining", *found}  # none of the whole consortium


def test_epoch_that_all_hospitals_choose_together_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = mistake(capsys, arguments("local", data, tmp_path / "run", "--set", "tuning.selection=common"))
    assert "tuning.selection=common" in line and "use tuning.selection=hospital" in line
    assert list(tmp_path.iterdir()) == []
