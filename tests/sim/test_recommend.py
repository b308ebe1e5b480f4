"""The answer for one patient is what the run's evaluation gave; what it can't answer is one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from shared_model import checkpoint
from shared_model.errors import TemptError
from shared_model.files import read_json
from shared_model.fitting import PRETRAINING, FitFiles
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.recommendation import Context, Recommended, above_threshold
from shared_model.vocabulary import write_vocabulary
from sim.cli import run as tempt
from sim.recommend import recommend
from tests.sim import consortium
from tests.sim.consortium import VOCABULARY, tree

DATASET = consortium.make_dataset()
MODELS = "tempt,full-train,finetune-freeze,hospital-frequency"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recommend")
    data = consortium.write_dataset(root / "dataset", DATASET)
    arguments = ["--data", str(data), "--out", str(root / "run"), "--models", MODELS, "--seeds", "42,43"]
    assert tempt(["simulate", "centralized", *arguments, "--save-scores", "--jobs", "1", *consortium.assigned()]) == 0
    return root / "run"


def codes_of(stay: int) -> tuple[list[str], list[str]]:
    place = DATASET.records.stay.tolist().index(stay)
    diagnoses, procedures = (of.lists()[place] for of in (DATASET.records.diagnoses, DATASET.records.procedures))
    return [VOCABULARY.diagnoses[i] for i in diagnoses], [VOCABULARY.procedures[i] for i in procedures]


@pytest.mark.parametrize("model", MODELS.split(","))
@pytest.mark.parametrize(("seed", "hospital"), [(42, 8), (43, 3), (42, 34)])
def test_recommend_for_a_test_record_gives_its_saved_scores(run: Path, model: str, seed: int, hospital: int) -> None:
    row = pq.read_table(run / "scores" / model / f"seed-{seed}" / f"{hospital}.parquet").to_pylist()[0]
    answer = recommend(run, model, seed, hospital, *codes_of(row["patientunitstayid"]))
    found = {of.medication: of.probability for of in answer}
    assert found == pytest.approx(dict(zip(VOCABULARY.medications, row["scores"], strict=True)), abs=1e-6)
    assert [of.probability for of in answer] == sorted(found.values(), reverse=True)
    assert all(of.recommended == (of.probability > 0.3) for of in answer)
    assert {of.medication: of.name for of in answer} == dict(
        zip(VOCABULARY.medications, VOCABULARY.medication_names, strict=True)
    )


def test_recommend_without_a_seed_takes_the_runs_first(run: Path) -> None:
    codes = [VOCABULARY.diagnoses[3]], [VOCABULARY.procedures[5]]
    assert recommend(run, "tempt", None, 8, *codes) == recommend(run, "tempt", 42, 8, *codes)
    assert recommend(run, "tempt", None, 8, *codes) != recommend(run, "tempt", 43, 8, *codes)


def test_recommend_with_codes_twice_in_any_order_or_with_blanks_answers_the_same(run: Path) -> None:
    d, p = VOCABULARY.diagnoses, VOCABULARY.procedures
    expected = recommend(run, "tempt", 42, 8, [d[1], d[7]], [p[2]])
    assert recommend(run, "tempt", 42, 8, [f" {d[7]} ", d[1], d[7]], [p[2], p[2]]) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "temptt"}, r"unknown model 'temptt'; did you mean 'tempt'\?"),
        ({"model": "finetune"}, "the run has no model 'finetune'; it has"),
        ({"seed": 44}, "the run has no seed 44; it has 42, 43"),
        ({"hospital": 9}, "the run has no hospital 9; it has 3, 8, 21, 34"),
        ({"diagnoses": ["103.9, X31"]}, "no code '103.9, X31'; the nearest is '103.9, X13'"),
        ({"procedures": ["area|group|treatment 5"]}, r"procedures: .*; the nearest is 'area\|group\|treatment [01]5'"),
        ({"diagnoses": []}, "--diagnosis: none given"),
        ({"procedures": []}, "--procedure: none given"),
    ],
)
def test_recommend_for_what_the_run_lacks_is_one_line(run: Path, change: dict[str, object], message: str) -> None:
    values: dict[str, object] = {
        "model": "tempt",
        "seed": 42,
        "hospital": 8,
        "diagnoses": [VOCABULARY.diagnoses[0]],
        "procedures": [VOCABULARY.procedures[0]],
    }
    before = tree(run)
    with pytest.raises(TemptError, match=message) as caught:
        recommend(run, **(values | change))  # type: ignore[arg-type]
    assert len(str(caught.value).splitlines()) == 1
    assert tree(run) == before


def command(run: Path, *more: str) -> list[str]:
    codes = ["--diagnosis", VOCABULARY.diagnoses[0], "--procedure", VOCABULARY.procedures[0]]
    return ["recommend", str(run), "--hospital", "8", *codes, *more]


def test_recommend_on_the_command_line_prints_names_and_probabilities(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tempt(command(run, "--json")) == 0
    answer = json.loads(capsys.readouterr().out)
    expected = recommend(run, "tempt", 42, 8, [VOCABULARY.diagnoses[0]], [VOCABULARY.procedures[0]])
    assert [(of["medication"], of["name"], of["probability"], of["recommended"]) for of in answer] == [
        (of.medication, of.name, of.probability, of.recommended) for of in expected
    ]
    assert tempt(command(run)) == 0
    out = capsys.readouterr().out
    recommended = [of for of in expected if of.recommended]
    assert f"{len(recommended)} of {len(expected)} medications are above the threshold" in out
    assert all(line in out for line in (f"{of.probability:.3f}  {of.name}" for of in recommended))
    assert "not for clinical use" in out
    assert max(map(len, out.splitlines())) <= 80


def test_recommend_from_a_place_that_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tempt(command(tmp_path / "none")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "none" in line


def test_recommend_from_a_run_that_is_not_complete_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "vocabulary.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    assert tempt(command(tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "results.json" in line


def test_recommend_from_a_damaged_checkpoint_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "seed-43" / "tempt" / "8.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert tempt(command(run, "--seed", "43")) == 2
    finally:
        path.write_bytes(content)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(path) in line


def test_recommend_printed_a_name_that_gives_orders_to_the_terminal(run: Path, tmp_path: Path) -> None:
    """A hospital's vocabulary came from a server, in a file that `--vocabulary` named there."""
    named = replace(VOCABULARY, medication_names=("A\x1b[2J", *VOCABULARY.medication_names[1:]))
    shutil.copytree(run, tmp_path / "run")
    write_vocabulary(tmp_path / "run" / "vocabulary.json", named)
    answer = recommend(tmp_path / "run", "tempt", 42, 8, [VOCABULARY.diagnoses[3]], [VOCABULARY.procedures[5]])
    names = {of.medication: of.name for of in answer}
    assert names[VOCABULARY.medications[0]] == f"HICL {VOCABULARY.medications[0]}"
    assert names[VOCABULARY.medications[1]] == VOCABULARY.medication_names[1]


def test_recommend_of_a_probability_at_the_threshold_is_not_above_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the metrics count it: float32's 0.3 is a double above 0.3."""

    def at_threshold(tensors: object, records: object, context: Context) -> Recommended:
        return above_threshold(torch.full((1, len(VOCABULARY.medications)), 0.3), context)

    stub = SimpleNamespace(SCOPE="hospital", answer=at_threshold)
    monkeypatch.setattr("sim.recommend.method", lambda name: stub)
    answer = recommend(run, "tempt", 42, 8, [VOCABULARY.diagnoses[3]], [VOCABULARY.procedures[5]])
    assert not any(of.recommended for of in answer)


def test_recommend_from_a_run_of_another_version_is_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"encoder": {"depth": 2}}}))
    with pytest.raises(TemptError, match="not the config of a run of this version"):
        recommend(tmp_path, "tempt", 42, 8, ["a"], ["b"])


def test_recommend_answered_from_a_head_on_another_encoder(run: Path, tmp_path: Path) -> None:
    """The pretraining was computed again with other bits, as after a damaged file on a GPU; --resume mends it."""
    shutil.copytree(run, tmp_path / "run")
    codes = [VOCABULARY.diagnoses[3]], [VOCABULARY.procedures[5]]
    files = FitFiles.of(tmp_path / "run", 42, PRETRAINING, WHOLE_CONSORTIUM)
    tensors, about = checkpoint.load(files.tensors)
    files.keep_tensors({name: tensor * 0.9 for name, tensor in tensors.items()}, about, read_json(files.result))
    with pytest.raises(TemptError, match=r"new and old files are mixed, .*8.safetensors was not tuned on pretraining"):
        recommend(tmp_path / "run", "tempt", 42, 8, *codes)
    for model, seed in (("full-train", 42), ("tempt", 43)):  # which stand on none, or on another
        assert recommend(tmp_path / "run", model, seed, 8, *codes) == recommend(run, model, seed, 8, *codes)
    arguments = ["--data", str(run.parent / "dataset"), "--out", str(tmp_path / "run"), "--models", MODELS, "--resume"]
    arguments += ["--seeds", "42,43", "--save-scores", "--jobs", "1", *consortium.assigned()]
    assert tempt(["simulate", "centralized", *arguments]) == 0
    assert recommend(tmp_path / "run", "tempt", 42, 8, *codes) != recommend(run, "tempt", 42, 8, *codes)
    assert recommend(tmp_path / "run", "tempt", 43, 8, *codes) == recommend(run, "tempt", 43, 8, *codes)


def test_recommend_answered_with_another_runs_vocabulary(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    other = replace(VOCABULARY, diagnoses=(*VOCABULARY.diagnoses[:-1], "Z99"))
    write_vocabulary(tmp_path / "run" / "vocabulary.json", other)
    with pytest.raises(TemptError, match=r"vocabulary.json is not the one .*; go on with --resume, or make the run"):
        recommend(tmp_path / "run", "tempt", 42, 8, ["Z99"], [VOCABULARY.procedures[5]])
