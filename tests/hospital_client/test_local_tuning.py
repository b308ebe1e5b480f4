"""What a hospital's folder says of itself after its tuning: the models that `tempt recommend` answers from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hospital_client import local_tuning
from hospital_client.local_tuning import describe, tune, tune_own
from hospital_client.partition import Partition, read_partition
from shared_model import files
from shared_model.errors import TemptError
from shared_model.files import read_json, write_json
from shared_model.recommendation import Context
from shared_model.settings import Settings
from shared_model.vocabulary import read_vocabulary, write_vocabulary
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


# ------------------------------------------------------------------------------------------------ cut off


class Killed(BaseException):
    """A process that ends where it stands."""


@contextmanager
def killed_before(step: int) -> Iterator[list[str]]:
    """The process ends before it gives a name to, or removes, the `step`-th file or folder; all such steps so far."""
    steps: list[str] = []
    with pytest.MonkeyPatch.context() as patched:
        for owner, names in ((Path, ("replace", "rename", "unlink")), (shutil, ("rmtree",)), (files, ("_exchange",))):
            for name in names:
                patched.setattr(owner, name, counted(getattr(owner, name), step, steps))
        yield steps


def counted(do: Any, step: int, steps: list[str]) -> Any:
    def done(*arguments: Any, **named: Any) -> Any:
        steps.append(" ".join(str(argument) for argument in arguments))
        if len(steps) >= step:
            raise Killed
        return do(*arguments, **named)

    return done


@pytest.fixture
def fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same fit is done once in a test."""
    known: dict[tuple[Any, ...], Any] = {}
    fit = local_tuning.fit_and_evaluate

    def remembered(model: str, functions: Any, split: Any, context: Context, *, run: Path | None = None) -> Any:
        key = (model, context.stands_on, context.settings.model_dump_json())
        if key not in known:
            known[key] = fit(model, functions, split, context, run=run)
        return known[key]

    monkeypatch.setattr(local_tuning, "fit_and_evaluate", remembered)


MODELS = ("tempt", "finetune-freeze")


@cache
def encoder_of(seed: int) -> dict[str, torch.Tensor]:
    initial = initial_tensors(consortium.settings(), consortium.make_dataset(), seed)
    return {name: torch.from_numpy(array) for name, array in initial.items()}


def federation(folder: Path, partition: Partition, encoder: int, settings: Settings, name: str) -> None:
    """The hospital tunes seed 42 on the encoder of a federation."""
    shared = encoder_of(encoder)
    cpu = torch.device("cpu")
    tune_own(partition, folder, shared, MODELS, settings, 42, cpu, save_scores=False, experiment=name)


def as_of_an_earlier_version(folder: Path, seed: int) -> None:
    """Make a hospital's folder what the version before wrote."""
    for name in ("config.json", "vocabulary.json"):
        (folder / "checkpoints" / f"seed-{seed}" / name).unlink()
    for path in folder.glob("checkpoints/*/*/8.json"):
        write_json(path, {k: v for k, v in read_json(path).items() if k not in ("digest", "stands_on")})
    config = {k: v for k, v in read_json(folder / "config.json").items() if k not in NEW_IN_CONFIG}
    write_json(folder / "config.json", config)


NEW_IN_CONFIG = ("records", "experiment", "code", "torch")


def answers(folder: Path, partition: Partition) -> dict[str, Any]:
    """What the folder answers, or the one line that it is refused with, of each model."""
    found: dict[str, Any] = {}
    patient = ([partition.vocabulary.diagnoses[3]], [partition.vocabulary.procedures[2]])
    for model in MODELS:
        try:
            answer = recommend(folder, model, 42, 8, *patient)
            found[model] = [(of.medication, of.probability, of.recommended) for of in answer]
        except TemptError as refused:
            assert len(str(refused).splitlines()) == 1
            found[model] = "refused"
    return found


@pytest.mark.parametrize("change", ["everything", "encoder of an earlier version"])
def test_a_hospital_that_was_cut_off_answered_from_old_heads_on_a_new_encoder(
    tmp_path: Path, partition: Partition, fitted_once: None, change: str
) -> None:
    """At every step at which the process may end it answers as before, or as after; nothing in between."""
    before, after = tmp_path / "before", tmp_path / "after"
    settings, new_settings = consortium.settings(), consortium.settings()
    new = partition
    if change == "everything":
        new_settings = consortium.settings(evaluation__threshold="0.2", tuning__epochs="2")
        turned = replace(partition.vocabulary, medications=tuple(10_000 + m for m in partition.vocabulary.medications))
        new = replace(partition, vocabulary=turned)
    federation(before, partition, 42, settings, "one")
    if change != "everything":
        as_of_an_earlier_version(before, 42)
    shutil.copytree(before, after)
    with killed_before(10**9) as steps:
        federation(after, new, 99, new_settings, "two")
    old, whole = answers(before, partition), answers(after, new)
    assert "refused" not in [*old.values(), *whole.values()]
    assert all(old[model] != whole[model] for model in MODELS)
    seen = set()
    for step in range(1, len(steps) + 1):
        folder = tmp_path / f"at-{step}"
        shutil.copytree(before, folder)
        with killed_before(step), pytest.raises(Killed):
            federation(folder, new, 99, new_settings, "two")
        found = answers(folder, new)
        assert found in (old, whole), steps[step - 1]
        seen.add(str(found))
        config = read_json(folder / "config.json")
        if (folder / "results.json").exists():
            results = read_json(folder / "results.json")
            assert results["dataset"]["vocabulary"] == config["vocabulary"], steps[step - 1]
            told = results["models"]["tempt"]["seeds"]["42"]["hospitals"]
            assert told == read_json(folder / "checkpoints/seed-42/tempt/8.json")["hospitals"], steps[step - 1]
        if (folder / "vocabulary.json").exists():
            assert read_vocabulary(folder / "vocabulary.json").digest == config["vocabulary"], steps[step - 1]
        if step % 4 == 0:
            federation(folder, new, 99, new_settings, "two")
            assert answers(folder, new) == whole and not (folder / "tuning").exists()
    assert seen == {str(old), str(whole)}


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ("encoder", "pretraining.safetensors is newer than"),
        ("heads", "8.safetensors is not what results.json tells of"),
        ("vocabulary", "vocabulary.json is not the one that its models were made with"),
        ("config", "results.json lacks seed 43, which config.json names"),
    ],
)
def test_a_mixture_that_the_version_before_has_left_was_answered_from(
    tmp_path: Path, partition: Partition, fitted_once: None, later: str, said: str
) -> None:
    """It wrote the encoder, heads, vocabulary, config and results in this order, each in the place of the old."""
    folder, other = tmp_path / "state", tmp_path / "other"
    for encoder, place in ((42, folder), (99, other)):
        federation(place, partition, encoder, consortium.settings(), "one")
        as_of_an_earlier_version(place, 42)
    assert "refused" not in answers(folder, partition).values(), "what is whole still answers"
    seed = "checkpoints/seed-42"
    if later in ("encoder", "heads"):
        shutil.copyfile(other / seed / "pretraining.safetensors", folder / seed / "pretraining.safetensors")
    if later == "heads":
        shutil.rmtree(folder / seed / "tempt")
        shutil.copytree(other / seed / "tempt", folder / seed / "tempt", copy_function=shutil.copyfile)
    if later == "vocabulary":
        turned = replace(consortium.VOCABULARY, diagnoses=tuple(f"{d}0" for d in consortium.VOCABULARY.diagnoses))
        write_vocabulary(folder / "vocabulary.json", turned)
    if later == "config":
        write_json(folder / "config.json", read_json(folder / "config.json") | {"seeds": [43]})
    with pytest.raises(TemptError, match=f"new and old files are mixed, .*{said}") as refused:
        recommend(folder, "tempt", None, 8, *PATIENT)
    assert str(refused.value).endswith("let the hospital take part again with `tempt hospital launch`")
    federation(folder, partition, 99, consortium.settings(), "one")
    assert answers(folder, partition) == answers(other, partition)


def test_models_that_other_code_had_made_were_told_as_this_ones(
    tmp_path: Path, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done is not done again, but by the same code and PyTorch alone."""
    done: list[str] = []
    fit = local_tuning.fit_and_evaluate

    def counting(model: str, *arguments: Any, **named: Any) -> Any:
        done.append(model)
        return fit(model, *arguments, **named)

    monkeypatch.setattr(local_tuning, "fit_and_evaluate", counting)
    for _ in range(2):
        federation(tmp_path, partition, 42, consortium.settings(), "one")
    assert done == list(MODELS)
    monkeypatch.setattr(local_tuning, "code_digest", lambda: "other")
    for _ in range(2):
        federation(tmp_path, partition, 42, consortium.settings(), "one")
    assert done == [*MODELS, *MODELS]
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    federation(tmp_path, partition, 42, consortium.settings(), "one")
    assert done == [*MODELS, *MODELS, *MODELS]


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


def test_scores_of_a_hospital_that_was_cut_off_behind_its_new_models_were_lost(
    tmp_path: Path, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tunes() -> None:
        cpu = torch.device("cpu")
        tune_own(
            partition, tmp_path / "s", encoder_of(42), MODELS, consortium.settings(), 42, cpu, save_scores=True,
            experiment="one",
        )  # fmt: skip

    take_place = local_tuning.take_place

    def killed(*places: Path) -> None:
        take_place(*places)
        raise Killed

    monkeypatch.setattr(local_tuning, "take_place", killed)
    with pytest.raises(Killed):
        tunes()
    monkeypatch.setattr(local_tuning, "take_place", take_place)
    tunes()
    assert sorted(path.parts[-3] for path in (tmp_path / "s" / "scores").rglob("8.parquet")) == sorted(MODELS)


def test_scores_of_one_tuning_stood_beside_models_of_another(
    tmp_path: Path, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    settings, dataset = consortium.settings(), consortium.make_dataset()

    def tuned(seed: int, *, save_scores: bool = True) -> None:
        shared = {n: torch.from_numpy(a) for n, a in initial_tensors(settings, dataset, seed).items()}
        models, device = ["finetune-freeze"], torch.device("cpu")
        asked = {"save_scores": save_scores, "experiment": f"of-{seed}"}
        tune_own(partition, tmp_path, shared, models, settings, 42, device, **asked)

    def found() -> tuple[bytes, list[bytes]]:
        model = tmp_path / "checkpoints" / "seed-42" / "finetune-freeze" / f"{partition.hospital}.safetensors"
        return model.read_bytes(), [path.read_bytes() for path in sorted((tmp_path / "scores").rglob("*.parquet"))]

    def killed(*_: Any) -> None:
        raise Killed

    tuned(1)
    first = found()
    with monkeypatch.context() as patched:
        patched.setattr(local_tuning, "take_place", killed)
        with pytest.raises(Killed):
            tuned(2)
    assert found()[0] == first[0] and found()[1] in ([], first[1]), "of the old models, or none"
    tuned(2)
    second = found()
    assert second[0] != first[0] and len(second[1]) == 1 and second[1] != first[1]
    tuned(3, save_scores=False)
    assert found()[0] != second[0] and found()[1] == [], "an older federation's scores stayed"
    tuned(3)
    assert len(found()[1]) == 1, "they were asked for, and none came"
