"""A run asked for from Python: the results of the command, with nothing parsed and nothing printed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hospital_client.preparation_options import PreparationOptions
from server.federation_settings import FederationSettings
from shared_model.errors import TemptError
from shared_model.files import read_json
from sim.cli import run as tempt
from sim.listener import Listener
from sim.methods import Mode
from sim.request import Request, resolved
from sim.runs import run
from tests.sim import consortium
from tests.sim.command import Capture, mistake, unchanged
from tests.sim.consortium import assert_same, assigned, fingerprint

MODELS = ("tempt", "finetune-freeze")
ROUNDS = FederationSettings(strategy="fedprox", options={"proximal_mu": 0.1}, rounds=2, fraction=0.5)


def asked(mode: Mode, data: Path, out: Path) -> Request:
    return Request(
        mode,
        data=data,
        out=out,
        models=MODELS,
        settings=consortium.ASSIGNMENTS,
        seeds=(43, 42),
        hospitals=(34, 8, 3),  # in any order
        save_scores=True,
        jobs=1,
        federation=ROUNDS if mode == "federated" else None,
    )


def typed(mode: Mode, data: Path, out: Path) -> list[str]:
    words = ["simulate", mode, "--data", str(data), "--out", str(out), "--models", ",".join(MODELS), *assigned()]
    words += ["--seeds", "43,42", "--hospitals", "3,8,34", "--save-scores", "--jobs", "1"]
    rounds = ["--strategy", "fedprox", "--strategy-option", "proximal_mu=0.1", "--rounds", "2", "--fraction", "0.5"]
    return words + (rounds if mode == "federated" else [])


@pytest.fixture(scope="module")
def centralized(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command's."""
    out = tmp_path_factory.mktemp("centralized") / "run"
    assert tempt(typed("centralized", data, out)) == 0
    return out


@pytest.mark.parametrize("mode", ["centralized", "local", "federated"])
def test_run_leaves_and_returns_what_the_command_leaves_and_prints_nothing(
    data: Path, tmp_path: Path, capsys: Capture, mode: Mode
) -> None:
    assert tempt(typed(mode, data, tmp_path / "typed")) == 0
    capsys.readouterr()
    results = run(asked(mode, data, tmp_path / "asked"))
    assert capsys.readouterr() == ("", "")
    here, there = (
        {name: content for name, content in fingerprint(tmp_path / out).items() if not name.startswith("egress/")}
        for out in ("asked", "typed")  # a ledger tells of seconds
    )
    assert_same(here, there)
    assert (results.run, results.beside) == (tmp_path / "asked", ())
    found, expected = read_json(tmp_path / "asked" / "results.json"), read_json(tmp_path / "typed" / "results.json")
    assert results.content == found
    assert found["versions"] == expected["versions"] and found["models"].keys() == set(MODELS)
    assert (found["command"], expected["command"][0]) == ([], "tempt")


WITHOUT_A_COMMAND_LINE = """
import json
import sys
from pathlib import Path

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("typer", "click", "rich") or name in ("sim.cli", "sim.command", "sim.commands"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
from sim.request import Request
from sim.runs import run

if __name__ == "__main__":
    data, out, settings, models = sys.argv[1:]
    run(
        Request(
            "centralized", data=Path(data), out=Path(out), models=tuple(models.split(",")),
            settings=json.loads(settings), seeds=(43, 42), hospitals=(3, 8, 34), save_scores=True, jobs=2,
        )
    )
"""


def test_script_that_has_no_command_line_at_all_finds_the_same_with_two_jobs(
    data: Path, centralized: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_A_COMMAND_LINE)
    out, settings = tmp_path / "run", consortium.ASSIGNMENTS
    words = [sys.executable, script, data, out, json.dumps(settings), ",".join(MODELS)]
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, env=consortium.environment(), timeout=300, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_same(fingerprint(out), fingerprint(centralized))


def test_listener_hears_of_every_fit_and_epoch(data: Path, tmp_path: Path) -> None:
    class Recorder(Listener):
        def __init__(self) -> None:
            self.begun: list[tuple[int, int]] = []
            self.epochs: list[tuple[str, int]] = []
            self.fits: list[str] = []

        def begin(self, total: int, done: int) -> None:
            self.begun.append((total, done))

        def epoch(self, label: str, row: Mapping[str, Any]) -> None:
            self.epochs.append((label, row["epoch"]))

        def advance(self, label: str) -> None:
            self.fits.append(label)

    request = replace(asked("centralized", data, tmp_path / "run"), models=("finetune-freeze",), seeds=(42,))
    heard, again = Recorder(), Recorder()
    run(request, heard)
    fits = ["pretraining, seed 42", *(f"finetune-freeze of hospital {hospital}, seed 42" for hospital in (3, 8, 34))]
    assert (heard.begun, heard.fits) == ([(4, 0)], fits)
    assert heard.epochs[:2] == [("pretraining, seed 42", 1), ("pretraining, seed 42", 2)]
    run(replace(request, resume=True), again)
    assert (again.begun, again.epochs, again.fits) == ([(4, 4)], [], [])


def test_run_goes_on_replaces_and_refuses_as_it_is_asked_to(data: Path, centralized: Path, tmp_path: Path) -> None:
    first = replace(asked("centralized", data, tmp_path / "run"), models=("tempt",), seeds=(42,))
    run(first)
    before = fingerprint(tmp_path / "run")
    with unchanged(tmp_path / "run"):
        for other, words in (
            (first, "not empty"),
            (replace(first, resume=True, force=True), "--resume and --force"),
            (replace(first, resume=True, seeds=(43,)), r"the run has seeds=\[42\], this command \[43\]"),
            (replace(first, resume=True, hospitals=(3, 8)), "the run has dataset.digest="),
            (replace(first, threads=2), "--threads 2: more than --jobs 1"),
            (replace(first, force=True, data=tmp_path / "run" / "dataset"), "would delete"),
            (replace(first, force=True, beside=(centralized,)), "stands on other records or seeds"),
            (replace(first, preparation=PreparationOptions(top_medications=7)), "go with raw tables"),
            (replace(first, settings={"tuning.epoch": "5"}), "did you mean 'tuning.epochs'"),
        ):
            with pytest.raises(TemptError, match=words):
                run(other)
    (tmp_path / "run" / "checkpoints" / "seed-42" / "tempt" / "8.json").unlink()
    (tmp_path / "run" / "vocabulary.json").unlink()
    run(replace(first, resume=True))
    assert_same(fingerprint(tmp_path / "run"), before)
    run(replace(first, force=True, seeds=(43,)))
    assert read_json(tmp_path / "run" / "config.json")["seeds"] == [43]


def test_federation_has_its_rounds_in_its_config_and_runs_beside_in_their_order(
    data: Path, centralized: Path, tmp_path: Path
) -> None:
    run(asked("local", data, tmp_path / "local"))
    request = asked("federated", data, tmp_path / "federated")
    results = run(replace(request, beside=(tmp_path / "local", centralized)))
    assert [content["mode"] for content in (*results.beside, results.content)] == ["local", "centralized", "federated"]
    config = read_json(tmp_path / "federated" / "config.json")
    assert (config["federation"], config["engine"]) == (ROUNDS.model_dump(), "inprocess")
    other = ROUNDS.model_copy(update={"quorum": 1.0})
    with pytest.raises(TemptError, match=r"the run has federation\.quorum=0\.5, this command 1\.0"):
        run(replace(request, federation=other, resume=True))


# ------------------------------------------------------------------------------------------------ what is decided


def test_what_a_request_leaves_open_is_decided(data: Path) -> None:
    open_ = resolved(Request("local", hospitals=(21, 8), device="cpu", threads=2000))
    assert (open_.run, open_.dataset) == (Path("runs/local"), Path("runs/local/dataset"))
    assert (open_.hospitals, open_.jobs, open_.federation) == ((8, 21), 2000, None)
    assert {"full-train", "tempt"} & set(open_.models) == {"tempt"}
    named = resolved(Request("federated", data=data, out=Path("run")))
    assert (named.run, named.dataset, named.preparation) == (Path("run"), data, None)
    assert named.federation == FederationSettings()
    assert resolved(Request("federated", federation=ROUNDS)).federation == ROUNDS


@pytest.mark.parametrize(
    ("raw", "chosen", "least"),
    [(None, {}, 50), (None, {"top_medications": 7}, 50), (None, {"min_records": 400}, 400), ("raw", {}, 400)],
)
def test_fewer_records_are_enough_for_the_small_consortium_alone_unless_said(
    tmp_path: Path, raw: str | None, chosen: dict[str, Any], least: int
) -> None:
    preparation = PreparationOptions(**chosen)
    (tmp_path / "raw").mkdir()
    found = resolved(Request("local", data=tmp_path / raw if raw else None, preparation=preparation)).preparation
    assert found == PreparationOptions(**(chosen | {"min_records": least}))


def test_request_that_contradicts_itself_can_not_be_made() -> None:
    with pytest.raises(TemptError, match="unknown mode 'centralised'; did you mean 'centralized'"):
        Request("centralised")  # type: ignore[arg-type]
    for more in ({"federation": ROUNDS}, {"engine": "ray"}, {"ray_address": "auto"}):
        with pytest.raises(TemptError, match="mode=local: has no federation, engine or ray_address"):
            Request("local", **more)  # type: ignore[arg-type]


def test_a_run_whose_dataset_was_named_is_not_gone_on_with_without_it(
    data: Path, tmp_path: Path, capsys: Capture
) -> None:
    run(asked("centralized", data, tmp_path / "run"))
    words = ["simulate", "centralized", "--out", str(tmp_path / "run"), "--resume"]
    assert f"the run was begun with --data {data}, this command has none; resume with the same" in mistake(
        capsys, words
    )


def test_a_place_that_is_not_there_is_told_as_what_was_expected_there(tmp_path: Path, capsys: Capture) -> None:
    words = ["simulate", "local", "--data", str(tmp_path / "no dataset"), "--out", str(tmp_path / "run")]
    line = mistake(capsys, words)
    assert line.endswith("no such directory; expected raw eICU tables, or a dataset of `tempt prepare`")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "more",
    [
        {"seeds": ()},
        {"seeds": (42, 42)},
        {"seeds": (-1,)},
        {"seeds": (42.0,)},
        {"hospitals": ()},
        {"hospitals": (3, 3)},
        {"hospitals": (0,)},
        {"threads": 0},
        {"jobs": 0},
        {"jobs": True},
    ],
)
def test_numbers_that_the_command_refuses_were_taken_from_python(more: dict[str, Any]) -> None:
    """Runs of nothing, results of a key 42.0, torch's own error."""
    ((name, _),) = more.items()
    with pytest.raises(TemptError, match=f"^{name}=.*: expected "):
        Request("local", **more)


def test_places_may_be_text_and_a_strategy_that_lacks_an_option_is_refused_before_anything_is_made(
    data: Path, tmp_path: Path
) -> None:
    request = Request("federated", data=str(data), out=str(tmp_path / "run"))  # type: ignore[arg-type]
    assert resolved(request).run == tmp_path / "run" and resolved(request).dataset == data
    with pytest.raises(TemptError, match="strategy 'fedprox' needs proximal_mu"):
        run(replace(request, federation=FederationSettings(strategy="fedprox")))
    assert not (tmp_path / "run").exists()
