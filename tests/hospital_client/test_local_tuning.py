"""What a hospital's folder says of itself after its tuning: the models that `tempt recommend` answers from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hospital_client.local_tuning import describe, tune
from hospital_client.partition import Partition, read_partition
from shared_model.files import read_json
from shared_model.settings import Settings
from sim.recommend import recommend
from tests.server.federations import initial_tensors
from tests.sim import consortium

PATIENT = ([consortium.VOCABULARY.diagnoses[3]], [consortium.VOCABULARY.procedures[2]])


@pytest.fixture
def partition(tmp_path: Path) -> Partition:
    return read_partition(consortium.write_dataset(tmp_path / "data", consortium.make_dataset()), 8)


def tuned(folder: Path, partition: Partition, seed: int, settings: Settings, *models: str) -> None:
    shared = {
        name: torch.from_numpy(array)
        for name, array in initial_tensors(settings, consortium.make_dataset(), seed).items()
    }
    tune(partition, folder, shared, models, settings, seed, torch.device("cpu"), save_scores=False)
    describe(folder, partition, settings, seed, models)


def test_folder_answers_for_every_seed_of_a_federation(tmp_path: Path, partition: Partition) -> None:
    folder = tmp_path / "state"
    for seed in (43, 42):
        tuned(folder, partition, seed, consortium.settings(), "tempt", "finetune-freeze")
    assert read_json(folder / "config.json")["seeds"] == [42, 43]
    results = read_json(folder / "results.json")["models"]
    assert set(results) == {"tempt", "finetune-freeze"} and list(results["tempt"]["seeds"]) == ["42", "43"]
    answers = [recommend(folder, "tempt", seed, 8, *PATIENT) for seed in (42, 43, None)]
    assert answers[0] == answers[2] != answers[1]


def test_models_of_other_settings_are_not_told_as_this_federations(tmp_path: Path, partition: Partition) -> None:
    folder = tmp_path / "state"
    tuned(folder, partition, 42, consortium.settings(), "tempt")
    tuned(folder, partition, 43, consortium.settings(tuning__epochs="2"), "tempt")
    assert read_json(folder / "config.json")["seeds"] == [43]


def test_seed_whose_models_are_gone_is_not_told(tmp_path: Path, partition: Partition) -> None:
    folder = tmp_path / "state"
    tuned(folder, partition, 42, consortium.settings(), "tempt")
    (folder / "checkpoints" / "seed-42" / "tempt" / "8.safetensors").unlink()
    tuned(folder, partition, 43, consortium.settings(), "tempt")
    assert read_json(folder / "config.json")["seeds"] == [43]
