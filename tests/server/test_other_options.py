"""A run of other options, or of other code, is neither given as this one's nor gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from server.app import run_federation
from server.launch import ServerPlace, launch
from server.run_config import RUN_CONFIG
from server.run_options import config_of
from shared_model.errors import TemptError
from shared_model.vocabulary import read_vocabulary, write_vocabulary
from sim.inprocess_grid import InProcessGrid
from tests.sim import consortium


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hospitals": 3}, "dataset.hospitals=2, this command 3"),
        ({"vocabulary": "other"}, "dataset.vocabulary="),
        ({"vocabulary": ""}, "agreement.min_records=None, this command 400"),
        ({"set": "pretraining.epochs=3"}, "settings.pretraining.epochs="),
        ({"strategy": "fedprox", "strategy-options": "proximal_mu=0.1"}, "federation.options.proximal_mu=None"),
        ({"quorum": 0.7}, "federation.quorum=0.5, this command 0.7"),
        ({"transport": "bfloat16"}, "federation.transport=float32"),
        ({"changed-rows": True}, "federation.changed_rows=False"),
        ({"largest-update": 5.0}, "federation.largest_update=10.0"),
        ({"fraction": 0.5}, "federation.fraction=1.0"),
        ({"local-epochs": 2}, "federation.local_epochs=1"),
        ({"local-optimizer": "keep"}, "federation.local_optimizer=reset"),
        ({"timeout": 9.0}, "federation.timeout="),
        ({"models": "finetune"}, "models="),
        ({"seeds": "42,43"}, "seeds="),
    ],
)
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_of_other_options_was_given_as_this_ones(
    tmp_path: Path, change: dict[str, str | int | float | bool], named: str, is_finished: bool
) -> None:
    """The release before compared settings, federation, models and seeds, and of a finished run alone."""
    vocabularies = {name: tmp_path / name for name in ("data", "other")}
    for folder, last in (("data", "A"), ("other", "B")):
        vocabularies[folder].mkdir()
        diagnoses = (*consortium.VOCABULARY.diagnoses[:-1], last)
        write_vocabulary(vocabularies[folder] / "vocabulary.json", replace(consortium.VOCABULARY, diagnoses=diagnoses))
    run, said = tmp_path / "run", list[str]()
    run.mkdir()
    config = {"vocabulary": str(vocabularies["data"]), "hospitals": 2, "timeout": 5.0}
    digest = read_vocabulary(vocabularies["data"] / "vocabulary.json").digest
    (run / "config.json").write_text(json.dumps(config_of(RUN_CONFIG | config, digest)))
    if is_finished:
        (run / "results.json").write_text('{"models": {}}')
    if change.get("vocabulary"):
        change = change | {"vocabulary": str(vocabularies["other"])}
    place = ServerPlace(None, run, "127.0.0.1", 8443, front=False)
    with pytest.raises(TemptError, match=f"the run has .*{named}") as refused:
        launch(place, config | change, said.append)
    assert len(str(refused.value).splitlines()) == 1 and said == []
    assert not (tmp_path / "run.server").exists(), "a folder was left beside another's run"
    if is_finished:
        assert launch(place, config, said.append) == {"models": {}}


def test_an_agreement_of_other_rules_was_given_as_this_ones(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = {"vocabulary": "", "hospitals": 2, "min-records": 50}
    about = config_of(RUN_CONFIG | config, "agreed on")
    (run / "config.json").write_text(json.dumps({name: about[name] for name in about if name != "code"}))
    (run / "results.json").write_text('{"models": {}}')
    place = ServerPlace(None, run, "127.0.0.1", 8443, front=False)
    assert launch(place, config, print) == {"models": {}}, "also of an earlier version, which kept no code"
    for name, value in (("minimum-count", 6), ("min-records", 51), ("top-medications", 9), ("top-procedures", 9)):
        with pytest.raises(TemptError, match=f"agreement.{name.replace('-', '_')}=[0-9]+, this command {value};"):
            launch(place, config | {name: value}, print)


def test_a_run_that_other_code_began_was_gone_on_with(tmp_path: Path) -> None:
    consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    run = tmp_path / "run"
    run.mkdir()
    config = {"vocabulary": str(tmp_path / "data"), "hospitals": 2}
    about = config_of(RUN_CONFIG | config, consortium.VOCABULARY.digest)
    assert not any(name.startswith("sim/") for name in about["code"]), "a server runs without it"
    place = ServerPlace(None, run, "127.0.0.1", 8443, front=False)
    for code, said in (
        (about["code"] | {"server/rounds.py": "other"}, "other code: server/rounds.py differs; go on with the code of"),
        (None, "begun by an earlier version, which did not keep what its code was; go on with it in that version"),
    ):
        kept = {name: value for name, value in about.items() if name != "code"} | ({"code": code} if code else {})
        (run / "config.json").write_text(json.dumps(kept))
        with pytest.raises(TemptError, match=said):
            launch(place, config, print)
        with pytest.raises(TemptError, match=said):
            run_federation(InProcessGrid({}, None), RUN_CONFIG | config | {"out": str(run)})
    assert not (tmp_path / "run.server" / "flower").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [({"device": "cuda"}, "device=cpu, this command cuda"), ({"save-scores": True}, "save_scores=")],
)
def test_a_flwr_run_of_other_options_or_records_was_gone_on_with(
    tmp_path: Path, change: dict[str, str | bool], named: str
) -> None:
    """Flower's simulation sees the dataset, so that another one with the same vocabulary is told."""
    data, run = consortium.write_dataset(tmp_path / "data", consortium.make_dataset()), tmp_path / "run"
    run.mkdir()
    config = RUN_CONFIG | {"data": str(data), "hospitals": 4, "out": str(run)}
    (run / "config.json").write_text(json.dumps(config_of(config, consortium.VOCABULARY.digest)))
    with pytest.raises(TemptError, match=f"the run has {named}"):
        run_federation(InProcessGrid({}, None), config | change)
    others = consortium.make_dataset(consortium.make_records(seed=8))
    other = consortium.write_dataset(tmp_path / "other", others)
    with pytest.raises(TemptError, match=r"the run has dataset.digest="):
        run_federation(InProcessGrid({}, None), config | {"data": str(other)})


@pytest.mark.parametrize(("before", "after"), [(None, 100), (100, None), (100, 50)])
def test_a_finished_run_of_another_bound_on_records_was_given_as_this_ones(
    tmp_path: Path, before: int | None, after: int | None
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_vocabulary(tmp_path / "vocabulary.json", consortium.VOCABULARY)
    config = {"vocabulary": str(tmp_path), "hospitals": 2}
    bounds = ({} if most is None else {"most-records": most} for most in (before, after))
    first, second = (config | bound for bound in bounds)
    (run / "config.json").write_text(json.dumps(config_of(RUN_CONFIG | first, consortium.VOCABULARY.digest)))
    (run / "results.json").write_text('{"models": {}}')
    place = ServerPlace(None, run, "127.0.0.1", 8443, front=False)
    assert launch(place, first, print) == {"models": {}}
    with pytest.raises(TemptError, match=f"federation.most_records={before}, this command {after};"):
        launch(place, second, print)
