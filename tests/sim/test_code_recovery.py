"""What an update tells of a hospital's codes: none that it lacks, and in time every one that is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from hospital_client.partition import Partition
from shared_model.batching import FIRST_DIAGNOSIS
from sim.code_recovery import main, recovered
from tests.sim import consortium


def partition(hospital: int) -> Partition:
    own = consortium.make_dataset().of_hospitals([hospital])
    return Partition(hospital, own.vocabulary, own.records, own.split_by_patient)


def test_no_code_is_named_that_the_hospital_lacks_and_after_some_epochs_none_that_is_shown_is_missed() -> None:
    train = partition(34).split(42).train
    has, moved = recovered(partition(34), consortium.settings(), 42, 1)
    rows = partition(34).rows
    expected = {FIRST_DIAGNOSIS + code for codes in train.diagnoses.lists() for code in codes}
    expected |= {rows.first_procedure + code for codes in train.procedures.lists() for code in codes}
    assert has == expected and len(has) < consortium.DIAGNOSES + consortium.PROCEDURES
    assert moved <= has and moved
    # a code alone in its set is always masked
    shown = {FIRST_DIAGNOSIS + code for codes in train.diagnoses.lists() if len(codes) > 1 for code in codes}
    shown |= {rows.first_procedure + code for codes in train.procedures.lists() if len(codes) > 1 for code in codes}
    assert shown < has
    assert recovered(partition(34), consortium.settings(), 42, 30) == (has, shown)


def test_command_prints_a_line_a_hospital_and_refuses_what_is_no_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    data = consortium.write_dataset(tmp_path / "data", consortium.make_dataset(consortium.make_records({3: 6})))
    assert main([str(data)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["3", "6"]
