"""A hospital's own part: prompts and head on the encoder that came in, and their test metrics (Section 3.4).

Everything that it makes stays in the hospital's folder, which has a run directory's layout; numbers alone go out.

    config.json, vocabulary.json, results.json    what the folder holds now, of all seeds
    checkpoints/seed-<s>/                         encoder, prompts and heads, and with config.json and vocabulary.json
                                                  all else that an answer needs
    tuning/<key>/                                 what is being made; whole, it takes the seed's place in one step

So a process that is ended at any moment leaves the models of the federation before, or the new ones.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hospital_client.partition import Partition
from shared_model import checkpoint
from shared_model.adaptation import adaptation
from shared_model.errors import TemptError
from shared_model.files import private_directory, read_json, take_place, write_json
from shared_model.fitting import (
    PRETRAINING,
    FitFiles,
    fit_and_evaluate,
    pretrained,
    scores_file,
)
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.recommendation import Context, needs_of, own_settings_of
from shared_model.records import records_digest
from shared_model.results import RESULTS, FitName, write_results
from shared_model.run_directory import CONFIG, VOCABULARY, seed_folder
from shared_model.settings import Settings
from shared_model.shipped_code import code_digest
from shared_model.vocabulary import write_vocabulary

_TUNING = "tuning"


def tune(
    partition: Partition,
    folder: Path,
    shared: Mapping[str, Tensor],
    models: Sequence[str],
    settings: Settings,
    seed: int,
    device: torch.device,
    *,
    save_scores: bool,
) -> dict[str, dict[str, Any]]:
    """Adapt the shared encoder by each method; what an earlier call has finished is read, not done again.

    Args:
        folder: the hospital's own, or the run directory of a simulation.

    Returns:
        each model's result, as its file in the folder holds it.

    Raises:
        TemptError: a file in the folder is damaged, or the disk is full.
    """
    functions = {model: adaptation(model) for model in models}  # names that are none make no file
    encoder_file = FitFiles.of(folder, seed, PRETRAINING, WHOLE_CONSORTIUM).tensors
    if not _holds(encoder_file, shared):
        private_directory(encoder_file.parent)
        checkpoint.save(encoder_file, shared, {"model": PRETRAINING, "seed": seed})
    basis = _basis(shared, settings, partition)
    split = partition.split(seed)
    results = {}
    for model in models:
        files = FitFiles.of(folder, seed, model, partition.hospital)
        result = files.read()
        lacks_scores = (
            save_scores and len(split.test) and not scores_file(folder, seed, model, partition.hospital).exists()
        )
        if result is None or result.get("basis") != basis or lacks_scores:
            began = time.monotonic()
            private_directory(files.tensors.parent)
            # of this basis alone: an older one's unfinished fit is not gone on with
            files = files._replace(partial=files.partial.with_name(f"{partition.hospital}.{basis}.partial.safetensors"))
            context = Context(
                settings=settings,
                rows=partition.rows,
                medications=len(partition.vocabulary.medications),
                seed=seed,
                hospital=partition.hospital,
                device=device,
                own=settings.own(model, own_settings_of(functions[model])),
                resume=files.partial,
            )
            if (needed := needs_of(functions[model])) is not None:
                context = pretrained(context, needed, encoder_file)
            run = folder if save_scores else None
            fitted, measured = fit_and_evaluate(model, functions[model], split.to(device), context, run=run)
            fitted = replace(fitted, about=fitted.about | {"basis": basis})
            result = files.keep(model, context, fitted, measured, began)
        results[model] = result
    return results


def tune_own(
    partition: Partition,
    folder: Path,
    shared: Mapping[str, Tensor],
    models: Sequence[str],
    settings: Settings,
    seed: int,
    device: torch.device,
    *,
    save_scores: bool,
    experiment: str,
) -> dict[str, dict[str, Any]]:
    """Tune in a folder that is this hospital's alone: what it holds of the seed answers until the new is whole.

    Args:
        experiment: names the federation.

    Returns:
        each model's result, as its file in the folder holds it.

    Raises:
        TemptError: a file in the folder is damaged, or the disk is full.
    """
    about = _about(partition, settings, models, experiment) | {"basis": _basis(shared, settings, partition)}
    work, place = folder / _TUNING, seed_folder(folder, seed)
    if work.is_symlink():  # what is there is removed at the end
        raise TemptError(f"{work}: is a link; expected the folder that a tuning makes there, remove the link")
    made_of = {name: about[name] for name in ("basis", "code", "torch")}
    key = hashlib.sha256(repr(sorted(made_of.items())).encode()).hexdigest()[:16]
    there, run = _read(place), work / key
    if all(there.get(name) == value for name, value in made_of.items()):
        results = tune(partition, folder, shared, models, settings, seed, device, save_scores=save_scores)
    else:
        for other in work.glob("*"):  # of a federation that never ended
            if other.name != key:
                shutil.rmtree(other, ignore_errors=True)
        results = tune(partition, run, shared, models, settings, seed, device, save_scores=save_scores)
        _tell_seed(seed_folder(run, seed), partition, about)
        (folder / RESULTS).unlink(missing_ok=True)  # of the models that go
        place.parent.mkdir(exist_ok=True, mode=0o700)
        for scores in (folder / "scores").glob(f"*/seed-{seed}/*.parquet"):  # of the models that go, too
            scores.unlink()
        take_place(seed_folder(run, seed), place)
    for scores in (run / "scores").rglob("*.parquet"):  # or what a killed process has left of the same models
        private_directory((folder / scores.relative_to(run)).parent)
        scores.replace(folder / scores.relative_to(run))
    describe(folder, partition, settings, seed, models, experiment=experiment, basis=about["basis"])
    shutil.rmtree(work, ignore_errors=True)
    return results


def describe(
    folder: Path,
    partition: Partition,
    settings: Settings,
    seed: int,
    models: Sequence[str],
    *,
    experiment: str = "",
    basis: str | None = None,
) -> None:
    """Write what a run directory says of itself, so that `tempt recommend` answers from the hospital's folder alone.

    It names this seed, and those whose models an earlier call of the same federation has made from the same records.
    """
    about = _about(partition, settings, models, experiment)
    _tell_seed(seed_folder(folder, seed), partition, about | ({} if basis is None else {"basis": basis}))
    seeds: list[int] = []
    done: dict[FitName, dict[str, Any]] = {}
    for number in _seeds(folder):
        there = _read(seed_folder(folder, number))
        if any(there.get(name) != value for name, value in about.items()):
            continue
        fits = {FitName(m, number, partition.hospital): m for m in models}
        found = {fit: FitFiles.of(folder, number, m, partition.hospital).read() for fit, m in fits.items()}
        if None not in found.values():
            seeds.append(number)
            done |= {fit: result for fit, result in found.items() if result is not None}
    config = about | {"seeds": seeds}
    if _read(folder) != config:  # results never stand beside the config of others
        (folder / RESULTS).unlink(missing_ok=True)
        (folder / VOCABULARY).unlink(missing_ok=True)
    write_json(folder / CONFIG, config)
    write_vocabulary(folder / VOCABULARY, partition.vocabulary)
    head = {"mode": "federated", "dataset": {"vocabulary": partition.vocabulary.digest, "hospitals": 1}}
    write_results(folder, head, done, {model: needs_of(adaptation(model)) for model in models}, seeds)


def _about(partition: Partition, settings: Settings, models: Sequence[str], experiment: str) -> dict[str, Any]:
    """What all seeds of a federation have in common at a hospital."""
    return {
        "format": 1,
        "mode": "federated",
        "settings": settings.model_dump(mode="json"),
        "models": list(models),
        "hospitals": [partition.hospital],
        "vocabulary": partition.vocabulary.digest,
        "records": _records_digest(partition),
        "experiment": experiment,
        "code": code_digest(),
        "torch": torch.__version__,
    }


def _tell_seed(folder: Path, partition: Partition, about: Mapping[str, Any]) -> None:
    """Write what an answer from a seed's models needs beside them."""
    write_vocabulary(folder / VOCABULARY, partition.vocabulary)
    write_json(folder / CONFIG, dict(about))


def _seeds(folder: Path) -> list[int]:
    """The seeds that a folder has models of."""
    names = [path.name.removeprefix("seed-") for path in (folder / "checkpoints").glob("seed-*")]
    return sorted(int(name) for name in names if name.isdecimal())


def _read(folder: Path) -> dict[str, Any]:
    """A folder's config; nothing if it is missing or damaged, as it is made anew then."""
    try:
        return read_json(folder / CONFIG)
    except TemptError:
        return {}


def _holds(path: Path, shared: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint has these tensors, among others perhaps."""
    if not path.exists():
        return False
    tensors, _ = checkpoint.load(path)
    return all(name in tensors and torch.equal(tensors[name], tensor.cpu()) for name, tensor in shared.items())


def _basis(shared: Mapping[str, Tensor], settings: Settings, partition: Partition) -> str:
    """A digest of what a result stands on: the encoder, the settings and the records."""
    digest = hashlib.sha256(settings.model_dump_json().encode())
    for name in sorted(shared):
        digest.update(name.encode() + shared[name].cpu().numpy().tobytes())
    digest.update(_records_digest(partition).encode())
    return digest.hexdigest()[:16]


def _records_digest(partition: Partition) -> str:
    return records_digest(partition.vocabulary, partition.records, split_by_patient=partition.split_by_patient)


def numbers(results: Mapping[str, Mapping[str, Any]], hospital: int) -> dict[str, float]:
    """The numbers that leave the hospital: `<model>.<metric>` and how long it took."""
    found: dict[str, float] = {}
    for model, result in results.items():
        for name, value in result["hospitals"][str(hospital)].items():
            if value is not None:  # as a system without scores has it
                found[f"{model}.{name}"] = float(value)
        found[f"{model}.best_epoch"] = float(result["best_epoch"])
        for name, value in result["seconds"].items():
            found[f"{model}.seconds.{name}"] = float(value)
    return found
