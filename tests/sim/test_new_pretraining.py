"""One new file and nothing else: a pretraining, and methods that need it, through contract, commands, table and files.

`tests/sim/new_pretrainings` is put on the packages' paths: a pretraining of another network and loss with settings of
its own, a baseline that needs it and answers with sets and no scores, one with buffers and a parameter that never has a
gradient, and an adaptation that answers with sets in a federation.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import shared_model.adaptation
import shared_model.pretrainings
import sim.baselines
import sim.methods
from shared_model import checkpoint, training
from shared_model.errors import TemptError
from shared_model.files import read_json
from sim.centralized import History
from sim.cli import run as tempt
from sim.report.picture import draw
from tests.sim import consortium, test_methods_contract
from tests.sim.command import mistake
from tests.sim.consortium import assert_same, assigned, command, environment, fingerprint

FOLDER = Path(__file__).parent / "new_pretrainings"
PACKAGES = {
    "shared_model.pretrainings": shared_model.pretrainings,
    "sim.baselines": sim.baselines,
    "shared_model.adaptation": shared_model.adaptation,
}
NEW = ("sets-6", "norm-7", "few-8")
MODELS = "sets-6,tempt,norm-7"
GAPS = "pretraining-gaps-5"
CONTRACT = [
    function
    for name, function in vars(test_methods_contract).items()
    if name.startswith("test_") and "name" in inspect.signature(function).parameters
]
PUT_THERE = "\n".join(
    f"import {name}\n{name}.__path__.append({str(FOLDER / name.rpartition('.')[2])!r})" for name in PACKAGES
)


def _forget() -> None:
    shared_model.pretrainings.pretrainings.cache_clear()
    shared_model.adaptation.adaptations.cache_clear()
    sim.methods._baselines.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def _put_there() -> Iterator[None]:
    for name, package in PACKAGES.items():
        package.__path__.append(str(FOLDER / name.rpartition(".")[2]))
    _forget()
    yield
    for name, package in PACKAGES.items():
        package.__path__.remove(str(FOLDER / name.rpartition(".")[2]))
        for path in (FOLDER / name.rpartition(".")[2]).glob("*.py"):
            sys.modules.pop(f"{name}.{path.stem}", None)
    _forget()


def arguments(mode: str, data: Path, out: Path, *more: str, models: str = MODELS, seeds: str = "42,43") -> list[str]:
    fixed = ["--data", str(data), "--out", str(out), "--seeds", seeds, "--jobs", "1", "--models", models]
    return ["simulate", mode, *fixed, *assigned(), *more]


OWN = ("--set", "sets-6.most=2", "--set", f"{GAPS}.epochs=4", "--set", "norm-7.momentum=0.3", "--save-scores")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("new") / "run"
    assert tempt(arguments("centralized", data, out, *OWN)) == 0
    return out


def rows(printed: str) -> dict[str, list[str]]:
    """The cells of a printed table by title, but for deviations."""
    body = printed.split("-" * 79)[1]
    return {line[:24].strip(): line[24:].split() for line in body.splitlines() if line[:24].strip()}


@pytest.mark.parametrize("function", CONTRACT, ids=lambda function: function.__name__)
@pytest.mark.parametrize("name", NEW)
def test_new_method_meets_the_contract(name: str, function: Any, tmp_path: Path) -> None:
    takes = {"name": name, "tmp_path": tmp_path}
    function(**{parameter: takes[parameter] for parameter in inspect.signature(function).parameters})


def test_each_pretraining_is_computed_once_a_seed_for_all_that_need_it(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    epochs = [(line["seed"], line["epoch"], line["hospital"]) for line in lines if line["model"] == GAPS]
    assert epochs == [(seed, epoch, 0) for seed in (42, 43) for epoch in range(1, 5)]
    assert {line["model"] for line in lines} == {"pretraining", GAPS, *MODELS.split(",")}
    for seed in ("seed-42", "seed-43"):
        folder = run / "checkpoints" / seed
        digests = {name: read_json(folder / f"{name}.json")["digest"] for name in ("pretraining", GAPS)}
        stands_on = {model: read_json(folder / model / "8.json")["stands_on"] for model in MODELS.split(",")}
        assert stands_on == {
            **{model: digests[GAPS] for model in ("sets-6", "norm-7")},
            "tempt": digests["pretraining"],
        }
        seconds = {
            name: read_json(run / "results.json")["models"][name]["seeds"][seed[5:]]["seconds"]
            for name in MODELS.split(",")
        }
        took = {name: read_json(folder / f"{name}.json")["seconds"]["fit"] for name in ("pretraining", GAPS)}
        assert {model: of["pretraining"] for model, of in seconds.items()} == {
            **dict.fromkeys(("sets-6", "norm-7"), took[GAPS]),
            "tempt": took["pretraining"],
        }
        assert all(set(of) == {"pretraining", "tuning", "evaluation"} for of in seconds.values())


def test_an_epoch_in_common_is_chosen_of_all_epochs_also_where_a_method_has_a_patience_of_its_own(
    data: Path, tmp_path: Path
) -> None:
    """The trials of a method of its own optimization had ended by patience, at the first hospital's of all."""
    common = ("--set", "tuning.selection=common", "--set", "sets-6.patience=1", "--set", "sets-6.epochs=5")
    assert tempt(arguments("centralized", data, tmp_path / "run", *common, models="sets-6", seeds="42")) == 0
    trials = sorted((tmp_path / "run" / "checkpoints" / "seed-42").rglob("*trial*.json"))
    assert {len(read_json(path)["history"]) for path in trials} == {5} and len(trials) == len(consortium.SIZES)


def test_a_method_whose_answers_are_not_what_its_file_says_ends_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sim.methods import method

    monkeypatch.setattr(method("sets-6"), "SCORES", True)
    assert tempt(arguments("centralized", data, tmp_path / "run", models="sets-6", seeds="42")) != 0
    assert "answers without probabilities, and its file's SCORES says otherwise" in capsys.readouterr().err


def test_tempts_bits_do_not_depend_on_another_pretraining_beside_it(data: Path, run: Path, tmp_path: Path) -> None:
    assert tempt(arguments("centralized", data, tmp_path / "run", "--save-scores", models="tempt")) == 0
    alone, beside = fingerprint(tmp_path / "run"), fingerprint(run)
    tensors = [name for name in alone if name.startswith(("checkpoints", "scores"))]
    assert len(tensors) > 10 and [name for name in tensors if alone[name] != beside[name]] == []


def test_a_system_without_scores_has_its_row_and_its_place_in_every_file(
    data: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tempt(arguments("centralized", data, run, *OWN, "--resume")) == 0
    printed = rows(capsys.readouterr().out)
    summary = read_json(run / "results.json")["models"]["sets-6"]["summary"]
    assert summary["prauc"] == {"mean": None, "std": None} and 0 < summary["jaccard"]["mean"] < 1
    jaccard, f1 = (f"{summary[name]['mean']:.4f}" for name in ("jaccard", "f1"))
    assert printed["Sets 6"] == ["-", "-", jaccard, "0.2844", f1, "0.4252", "-"]
    assert printed["TEMPT"][0] != "-" and printed["Norm 7"][-1] != "-"
    tests = read_json(run / "results.json")["models"]["sets-6"]["paired_t_test_of_tempt"]
    assert tests["prauc"] is None and 0 <= tests["jaccard"] <= 1
    of = read_json(run / "checkpoints" / "seed-42" / "sets-6" / "8.json")["hospitals"]["8"]
    assert of["prauc"] is None and of["medications"] == 2.0
    table = pq.read_table(run / "scores" / "sets-6" / "seed-42" / "8.parquet").to_pydict()
    assert set(table) == {"patientunitstayid", "labels", "recommended"}
    assert {len(chosen) for chosen in table["recommended"]} == {2}
    found = [len({*a} & {*b}) / len({*a} | {*b}) for a, b in zip(table["labels"], table["recommended"], strict=True)]
    assert of["jaccard"] == pytest.approx(sum(found) / len(found))


def test_picture_leaves_out_the_point_of_a_system_without_scores(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(read_json(run / "results.json"), tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_config_holds_the_settings_of_the_methods_of_the_run_and_resume_compares_them(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = read_json(run / "config.json")["settings"]
    assert settings["sets-6"]["most"] == 2 and settings["norm-7"] == {"momentum": 0.3}
    assert (settings[GAPS]["epochs"], settings[GAPS]["noise"]) == (4, 0.1)
    line = mistake(capsys, arguments("centralized", data, run, *OWN[2:], "--resume"))
    assert "the run has settings.sets-6.most=2, this command 3" in line
    assert tempt(arguments("centralized", data, tmp_path / "run", models="frequency", seeds="42")) == 0
    stages = ["encoder", "pretraining", "tuning", "training", "evaluation"]
    assert list(read_json(tmp_path / "run" / "config.json")["settings"]) == stages


@pytest.mark.parametrize(
    ("models", "assigned", "message"),
    [
        (MODELS, "sets-6.most=14", "--set sets-6.most=14: Input should be less than or equal to 13"),
        (MODELS, "sets-6.mots=1", "--set sets-6.mots=1: no such field; did you mean 'sets-6.most'?"),
        (MODELS, f"{GAPS}.noize=1", f"--set {GAPS}.noize=1: no such field; did you mean '{GAPS}.noise'?"),
        ("tempt", "sets-6.most=1", "--set sets-6.most: the run does not fit sets-6; name it in --models, or leave"),
        ("tempt", f"{GAPS}.noise=1", f"--set {GAPS}.noise=1: no such field; "),
    ],
)
def test_mistakes_in_a_new_methods_settings_are_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], models: str, assigned: str, message: str
) -> None:
    out = tmp_path / "run"
    line = mistake(capsys, arguments("centralized", data, out, "--set", assigned, models=models))
    assert line.startswith(f"error: {message}") and not out.exists()


def test_a_method_that_is_no_default_is_fitted_only_where_it_is_named() -> None:
    for mode in ("centralized", "local"):
        assert "sets-6" not in sim.methods.chosen([], mode) and "norm-7" in sim.methods.chosen([], mode)
    assert "few-8" in sim.methods.chosen([], "federated")
    assert sim.methods.chosen(["sets-6"]) == ["sets-6"]


def test_recommend_answers_from_each_new_method(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = consortium.VOCABULARY
    patient = ["--hospital", "8", "--diagnosis", vocabulary.diagnoses[3], "--procedure", vocabulary.procedures[4]]
    words = ["recommend", str(run), "--model", "sets-6", *patient]
    assert tempt([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer) == consortium.MEDICATIONS and {of["probability"] for of in answer} == {None}
    assert [of["recommended"] for of in answer] == [True] * 2 + [False] * (consortium.MEDICATIONS - 2)
    assert tempt(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [[str(of["medication"]), "-", "DRUG"] for of in answer[:2]]
    assert lines[3] == "2 of 13 medications are recommended; sets-6 gives no probabilities." and len(lines) == 5
    assert tempt(["recommend", str(run), "--model", "norm-7", *patient, "--json"]) == 0
    assert all(0 <= of["probability"] <= 1 for of in json.loads(capsys.readouterr().out))


def test_recommend_from_settings_that_the_method_no_longer_has_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("vocabulary.json", "results.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    config = read_json(run / "config.json")
    config["settings"]["sets-6"]["width"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    codes = consortium.VOCABULARY.diagnoses[3], consortium.VOCABULARY.procedures[4]
    words = ["--model", "sets-6", "--hospital", "8", "--diagnosis", codes[0], "--procedure", codes[1]]
    line = mistake(capsys, ["recommend", str(tmp_path), *words])
    assert line.startswith("error: settings sets-6.width=3: Extra inputs are not permitted")


def test_kept_tensors_of_a_method_with_buffers_are_those_of_training(run: Path) -> None:
    tensors, _ = checkpoint.load(run / "checkpoints" / "seed-42" / "norm-7" / "8.safetensors")
    best = read_json(run / "checkpoints" / "seed-42" / "norm-7" / "8.json")["best_epoch"]
    assert int(tensors["fresh.norm.num_batches_tracked"]) == 2 * best  # 23 training records in batches of 16
    assert bool(tensors["fresh.norm.running_mean"].any()) and "fresh.tower.weight" in tensors
    pretrained, _ = checkpoint.load(run / "checkpoints" / "seed-42" / f"{GAPS}.safetensors")
    moved = (tensors["codes.weight"] - pretrained["codes.weight"]).abs().max()
    assert 0 < float(moved) < 0.01  # it went on from there, by steps of 0.0005


@pytest.mark.parametrize("after", [2, 7, 12, 30])
def test_interrupted_run_goes_on_to_the_same_bits(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    out, lines, append = tmp_path / "run", 0, History.append
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)

    def interrupt(self: History, unit: Any, row: Any) -> None:
        nonlocal lines
        lines += 1
        if lines == after:
            raise KeyboardInterrupt
        append(self, unit, row)

    monkeypatch.setattr(History, "append", interrupt)
    assert tempt(arguments("centralized", data, out, *OWN)) == 130
    assert tempt(arguments("centralized", data, out, *OWN, "--resume")) == 0
    assert_same(fingerprint(out), fingerprint(run))


def test_local_hospitals_pretrain_by_themselves(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert tempt(arguments("local", data, out, *OWN, seeds="42")) == 0
    assert list(rows(capsys.readouterr().out)) == ["Sets 6", "TEMPT", "Norm 7"]
    folder = out / "checkpoints" / "seed-42"
    assert {path.name for path in folder.iterdir()} == {"pretraining", GAPS, *MODELS.split(",")}
    digests = {hospital: read_json(folder / GAPS / f"{hospital}.json")["digest"] for hospital in consortium.SIZES}
    assert len(set(digests.values())) == len(digests)
    for hospital, digest in digests.items():
        assert {read_json(folder / of / f"{hospital}.json")["stands_on"] for of in ("sets-6", "norm-7")} == {digest}
    assert tempt(arguments("local", data, out, *OWN, "--resume", seeds="42")) == 0
    vocabulary = consortium.VOCABULARY
    patient = ["--hospital", "8", "--diagnosis", vocabulary.diagnoses[3], "--procedure", vocabulary.procedures[4]]
    assert tempt(["recommend", str(out), "--model", "sets-6", *patient]) == 0


def test_federation_refuses_another_pretraining_in_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = mistake(capsys, arguments("federated", data, tmp_path / "run", models="tempt,norm-7"))
    assert line == (
        "error: --models norm-7: adapts the pretraining 'gaps-5', and a federation has 'tempt' alone; run it with "
        "`tempt simulate centralized` and show it with --beside"
    )


def test_federation_has_an_adaptation_without_scores(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = ("--beside", str(run), "--set", "few-8.most=4")
    assert tempt(arguments("federated", data, out, *more, models="few-8,tempt")) == 0
    assert rows(capsys.readouterr().out)["TEMPT (few-8)"][0] == "-"
    numbers = json.loads((out / "egress" / "8.jsonl").read_text().splitlines()[-1])["numbers"]
    assert "few-8.prauc" not in numbers and numbers["few-8.medications"] == 4 and numbers["tempt.prauc"] > 0
    model = read_json(out / "results.json")["models"]["few-8"]["seeds"]["42"]
    assert model["hospital_mean"]["prauc"] is None and model["hospital_mean"]["f1"] > 0


def test_a_method_that_needs_what_there_is_not_is_told_before_anything_runs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "methods").mkdir()
    text = (FOLDER / "baselines" / "norm_7.py").read_text().replace('NEEDS = "gaps-5"', 'NEEDS = "gabs-5"')
    (tmp_path / "methods" / "norm_9.py").write_text(text)
    monkeypatch.setattr(sim.baselines, "__path__", [*sim.baselines.__path__, str(tmp_path / "methods")])
    _forget()
    try:
        line = mistake(capsys, arguments("centralized", data, tmp_path / "run", models="norm-9"))
    finally:
        monkeypatch.undo()
        _forget()
        sys.modules.pop("sim.baselines.norm_9", None)
    assert line.startswith("error: norm-9: its file says NEEDS = 'gabs-5', and there is no such pretraining; known: ")
    assert not (tmp_path / "run").exists()


def worked_examples() -> list[str]:
    """The whole files that CONTRIBUTING shows: a method, and a pretraining."""
    text = (consortium.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n|^\n(?=\n?    ))+", text, re.M)
    return [textwrap.dedent(block) for block in blocks if block.lstrip().startswith('"""')]


def test_worked_examples_of_contributing_run_as_they_stand(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    method, pretraining = worked_examples()
    ablated = (Path(shared_model.adaptation.__path__[0]) / "finetune_freeze.py").read_text()
    ablated = ablated.replace('NEEDS = "tempt"', 'NEEDS = "no-contrast"').replace("(finetune-freeze)", "(no-contrast)")
    files = {
        ("sim.baselines", "most_common"): method,
        ("shared_model.pretrainings", "no_contrast"): pretraining,
        ("shared_model.adaptation", "frozen_no_contrast"): ablated,
    }
    for (package, name), text in files.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / f"{name}.py").write_text(text)
        monkeypatch.setattr(PACKAGES[package], "__path__", [*PACKAGES[package].__path__, str(tmp_path / package)])
    _forget()
    try:
        models, out = "most-common,frozen-no-contrast,finetune-freeze", tmp_path / "run"
        more = ("--set", "most-common.most=3", "--set", "pretraining.contrastive_weight=1")
        assert tempt(arguments("centralized", data, out, *more, models=models, seeds="42")) == 0
        printed = rows(capsys.readouterr().out)
    finally:
        monkeypatch.undo()
        _forget()
        for package, name in files:
            sys.modules.pop(f"{package}.{name}", None)
    assert printed["Most common"][0] == "-" and printed["TEMPT (no-contrast)"] != printed["TEMPT (finetune-freeze)"]
    own = read_json(out / "results.json")["models"]["most-common"]["seeds"]["42"]["hospitals"]
    assert {of["medications"] for of in own.values()} == {3.0}
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    losses = {
        of: [row["loss"] for row in lines if row["model"] == of] for of in ("pretraining", "pretraining-no-contrast")
    }
    # Eq. 9 of batches of 16 is about log(15) twice where nothing is learnt yet, and an L_mask is below 2 log 2
    assert max(losses["pretraining-no-contrast"]) < 1.4 < min(losses["pretraining"])


def test_an_unknown_pretraining_is_told_with_the_nearest() -> None:
    with pytest.raises(TemptError, match="unknown pretraining 'gaps'; did you mean 'gaps-5'"):
        shared_model.pretrainings.pretraining("gaps")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_new_pretrainings_that_are_killed_end_in_the_same_bits(
    data: Path, run: Path, tmp_path: Path, jobs: int
) -> None:
    """By SIGKILL, in the pretraining, in the middle of a fit and at its end; workers find the files, too."""
    out, folder = tmp_path / "run", tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, signal\n"
        "import shared_model.training as training\n"
        f"{PUT_THERE}\n"
        "training._CHECKPOINT_SECONDS = 0.0\n"
        "save, left = training._save, int(os.environ.get('KILL_AFTER', 10**9))\n"
        "def killed(*arguments):\n"
        "    global left\n"
        "    save(*arguments)\n"
        "    left -= 1\n"
        "    if not left:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "training._save = killed\n"
    )
    paths = {"PYTHONPATH": os.pathsep.join([str(folder), environment()["PYTHONPATH"]])}
    for kill_after in ("3", "9", ""):
        more = [*OWN, "--jobs", str(jobs), *(["--resume"] if out.exists() else [])]
        done = subprocess.run(
            command(*arguments("centralized", data, out, *more)),
            capture_output=True,
            text=True,
            env=environment() | paths | ({"KILL_AFTER": kill_after} if kill_after else {}),
            timeout=300,
        )
        expected = 0 if not kill_after else -signal.SIGKILL if jobs == 1 else 2  # 2: a worker was
        assert done.returncode == expected, done.stderr
    assert_same(fingerprint(out), fingerprint(run))


def test_tensors_that_methods_read_are_those_of_their_part_alone(run: Path) -> None:
    tensors, _ = checkpoint.load(run / "checkpoints" / "seed-42" / f"{GAPS}.safetensors")
    assert sorted(tensors) == ["codes.weight", "head.bias", "head.weight"]
    head, _ = checkpoint.load(run / "checkpoints" / "seed-42" / "sets-6" / "8.safetensors")
    assert sorted(head) == ["bias", "weight"] and not torch.equal(head["weight"], torch.zeros_like(head["weight"]))
