"""The folder that docker-compose.yml mounts: a hospital's part holds nothing of another's."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from hospital_client.partition import read_partition
from shared_model.errors import TemptError
from sim.deploy_folder import main, make_folder
from tests.sim import consortium
from tests.sim.consortium import ROOT


def test_each_hospital_gets_its_own_records_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    assert main([str(tmp_path / "deploy"), "--data", str(data), "--hospitals", "3,8,21"]) == 0
    told = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert told[2:] == [
        f"export TEMPT_DEPLOY={tmp_path}/deploy",
        *("export HOSPITAL_1=3", "export HOSPITAL_2=8", "export HOSPITAL_3=21"),
        "docker compose up --build --detach",
    ]
    for hospital in (3, 8, 21):
        own = tmp_path / "deploy" / "partitions" / str(hospital)
        assert [path.name for path in (own / "hospitals").iterdir()] == [str(hospital)]
        found, expected = read_partition(own, hospital), read_partition(data, hospital)
        assert found.records.stay.tolist() == expected.records.stay.tolist()
        assert found.vocabulary == expected.vocabulary
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "deploy").rglob("*")}
    assert modes.pop(tmp_path / "deploy" / "keys" / "ca.key") == 0o600
    assert set(modes.values()) == {0o644, 0o755}, "the containers' user can read it"
    assert stat.S_IMODE((tmp_path / "deploy").stat().st_mode) == 0o700, "nobody else gets there"


def test_a_mistake_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = consortium.write_dataset(tmp_path / "data", consortium.make_dataset())
    for ids in ("3,8", "3,3,8", "3,8,x", "3,8,99"):
        assert main([str(tmp_path / "deploy"), "--data", str(data), "--hospitals", ids]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "deploy").exists()
    make_folder(tmp_path / "deploy", data, (3, 8, 21))
    with pytest.raises(TemptError, match="not empty"):
        make_folder(tmp_path / "deploy", data, (3, 8, 21))


def test_the_compose_file_names_the_made_up_hospitals_if_nothing_else_is_said() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for number, hospital in enumerate((101, 102, 103), 1):
        assert text.count(f"${{HOSPITAL_{number}:-{hospital}}}") == text.count(f"${{HOSPITAL_{number}") > 0
