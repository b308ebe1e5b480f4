"""A federation that begins with raw tables: the same bits as on prepared records, resumed with its vocabulary."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hospital_client.app import HospitalConfig
from hospital_client.partition import read_partition
from hospital_client.preparation import prepare
from hospital_client.preparation_options import PreparationOptions
from server import federation as phases
from server.app import run_federation
from server.run_config import RUN_CONFIG
from shared_model import checkpoint
from shared_model.errors import TemptError
from shared_model.files import read_json
from shared_model.vocabulary import Vocabulary, read_vocabulary
from sim.inprocess_grid import InProcessGrid
from tests.hospital_client.policies import write_policy
from tests.hospital_client.raw_tables import write_tables
from tests.server.raw_consortium import Listening, RawConsortium, agreed, make_tables, records_under, secrets
from tests.sim import consortium


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> RawConsortium:
    return RawConsortium(tmp_path_factory.mktemp("consortium"), make_tables(4))


def places_of(raw: RawConsortium, folder: Path) -> dict[int, HospitalConfig]:
    return {h: replace(place, folder=write_policy(folder / str(h))) for h, place in raw.places().items()}


def federation(run: Path, **more: Any) -> dict[str, Any]:
    sets = " ".join(f"{name}={value}" for name, value in consortium.ASSIGNMENTS.items())
    rules = {"minimum-count": 1, "min-records": 10, "top-medications": 9, "top-procedures": 11}
    return RUN_CONFIG | {"out": str(run), "hospitals": 3, "models": "tempt", "set": sets} | rules | more


@pytest.fixture(scope="module")
def heard(raw: RawConsortium, tmp_path_factory: pytest.TempPathFactory) -> tuple[Listening, Path]:
    """A federation from raw tables: every reply, and its run directory."""
    run = tmp_path_factory.mktemp("agreed") / "run"
    grid = Listening(places_of(raw, run.parent))
    run_federation(grid, federation(run))
    return grid, run


def test_a_federation_from_raw_tables_gives_the_bits_of_one_on_prepared_records(
    raw: RawConsortium, heard: tuple[Listening, Path], tmp_path: Path
) -> None:
    options = PreparationOptions(min_records=10, top_medications=9, top_procedures=11)
    prepare(raw.all, tmp_path / "dataset", options)
    places = {
        h: HospitalConfig(tmp_path / "dataset", h, write_policy(tmp_path / str(h)), deployed=True) for h in raw.raw
    }
    expected = run_federation(
        InProcessGrid(places, None), federation(tmp_path / "run", vocabulary=str(tmp_path / "dataset"))
    )
    run = heard[1]
    found = read_json(run / "results.json")
    assert (run / "vocabulary.json").read_bytes() == (tmp_path / "dataset" / "vocabulary.json").read_bytes()
    assert found["models"]["tempt"]["summary"] == expected["models"]["tempt"]["summary"]
    for name in ("run/checkpoints/seed-42/pretraining", *(f"{h}/checkpoints/seed-42/tempt/{h}" for h in raw.raw)):
        one, other = (checkpoint.load(root / f"{name}.safetensors")[0] for root in (run.parent, tmp_path))
        assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one), name
    assert found["federation"]["agreement"]["left_out"] == {}
    assert "agreement" not in expected["federation"]


def test_raw_tables_are_prepared_under_a_vocabulary_that_is_given_too(
    raw: RawConsortium, heard: tuple[Listening, Path], tmp_path: Path
) -> None:
    grid = Listening(places_of(raw, tmp_path))
    found = run_federation(grid, federation(tmp_path / "run", vocabulary=str(heard[1])))
    assert sorted(found["models"]["tempt"]["seeds"]["42"]["hospitals"]) == ["21", "3", "8"]
    assert {kind for kind, _, _ in grid.replies} == {"hello", "pretrain", "tune"}
    one, other = (
        checkpoint.load(run / "checkpoints/seed-42/pretraining.safetensors")[0] for run in (heard[1], tmp_path / "run")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_outside_the_agreement_no_code_and_no_stay_leaves(raw: RawConsortium, heard: tuple[Listening, Path]) -> None:
    grid, _ = heard
    kinds = Counter(kind for kind, _, _ in grid.replies)
    assert kinds == {"vocabulary_counts": 3, "vocabulary_remaining": 3, "hello": 3, "pretrain": 9, "tune": 3}
    for kind, hospital, reply in grid.replies:
        # every code counts as one that must not be told, where it is not the agreement that tells it
        minimum = 1 if kind.startswith("vocabulary_") else 10**9
        assert secrets(reply.content, raw.own[hospital], minimum) == [], kind


def test_a_run_that_is_resumed_keeps_its_vocabulary_and_asks_nobody_again(
    raw: RawConsortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = places_of(raw, tmp_path)

    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(phases.rounds, "pretrain", killed)
        with pytest.raises(Killed):
            run_federation(InProcessGrid(places, None), federation(tmp_path / "run"))
    before = (tmp_path / "run" / "vocabulary.json").read_bytes()
    prepared = [p.folder / "prepared" for p in places.values()]
    inodes = [path.stat().st_ino for folder in prepared for path in folder.rglob("records.parquet")]
    assert len(inodes) == 3
    with pytest.raises(TemptError, match=r"agreement.minimum_count=1, this command 2; resume with the same options"):
        run_federation(InProcessGrid(places, None), federation(tmp_path / "run", **{"minimum-count": 2}))
    grid = Listening(places)
    content = run_federation(grid, federation(tmp_path / "run"))
    assert {kind for kind, _, _ in grid.replies} == {"hello", "pretrain", "tune"}
    assert (tmp_path / "run" / "vocabulary.json").read_bytes() == before
    assert sorted(content["federation"]["agreement"]["records"]) == ["21", "3", "8"]
    assert [path.stat().st_ino for folder in prepared for path in folder.rglob("records.parquet")] == inodes


def test_a_hospital_with_too_few_records_is_not_let_in(raw: RawConsortium, tmp_path: Path) -> None:
    places = places_of(raw, tmp_path)
    records = agreed(raw.places(), top_medications=9, top_procedures=11).records
    least = sorted(records.values())[1]
    content = run_federation(InProcessGrid(places, None), federation(tmp_path / "run", **{"min-records": least}))
    left_out = content["federation"]["agreement"]["left_out"]
    assert list(left_out) == ["hospital 21"] and f"expected at least {least}" in left_out["hospital 21"]
    assert sorted(content["models"]["tempt"]["seeds"]["42"]["hospitals"]) == ["3", "8"]
    assert f"expected at least {least}" in content["federation"]["seeds"]["42"]["left_out"]["node 21"]


# ------------------------------------------------------------------------------------------------ at a hospital


def test_records_are_prepared_anew_only_where_vocabulary_or_tables_changed(raw: RawConsortium, tmp_path: Path) -> None:
    vocabulary = agreed(raw.places(), 2).vocabulary
    own = write_tables(tmp_path / "raw", raw.own[3])
    place = HospitalConfig(own, 3, tmp_path / "state", is_raw=True)

    def greeted(vocabulary: Vocabulary) -> tuple[int, float]:
        records_under(vocabulary, {3: place}, 1)
        path = tmp_path / "state" / "prepared" / vocabulary.digest / "hospitals/3/records.parquet"
        return path.stat().st_ino, len(read_partition(path.parents[2], 3).records)

    first = greeted(vocabulary)
    assert greeted(vocabulary) == first
    (tmp_path / "state" / "prepared" / vocabulary.digest / "vocabulary.json").write_text("half")
    again = greeted(vocabulary)
    assert again[0] != first[0] and again[1] == first[1], "what is damaged is made again"
    fewer = {name: rows if name == "patient" else rows[: len(rows) // 2] for name, rows in raw.own[3].items()}
    write_tables(tmp_path / "raw", fewer)
    (tmp_path / "state" / "agreement.json").unlink()  # another number of records is told then
    assert greeted(vocabulary)[1] < first[1]
    renamed = replace(vocabulary, medication_names=("A", *vocabulary.medication_names[1:]))
    greeted(renamed)
    assert read_vocabulary(tmp_path / "state" / "prepared" / vocabulary.digest / "vocabulary.json") == renamed


def test_raw_tables_of_others_are_refused(raw: RawConsortium, tmp_path: Path) -> None:
    with pytest.raises(
        TemptError, match=r"patient.csv: holds stays of hospital 8, 21, expected hospital 3's own alone"
    ):
        agreed({3: HospitalConfig(raw.all, 3, tmp_path, is_raw=True)})
