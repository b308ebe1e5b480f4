"""A hospital's own part: prompts and head on the encoder that came in, and their test metrics (Section 3.4).

Everything that it makes stays in the hospital's folder, which has a run directory's layout; numbers alone go out.
"""

from __future__ import annotations

import hashlib
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
from shared_model.files import private_directory, read_json, write_json
from shared_model.fitting import PRETRAINING, FitFiles, fit_and_evaluate, pretrained_encoder
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.recommendation import Context
from shared_model.records import records_digest
from shared_model.results import FitName, write_results
from shared_model.run_directory import CONFIG
from shared_model.settings import Settings
from shared_model.vocabulary import write_vocabulary


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
        if result is None or result.get("basis") != basis:
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
                encoder=pretrained_encoder(encoder_file, settings, partition.rows, device),
                resume=files.partial,
            )
            run = folder if save_scores else None
            fitted, measured = fit_and_evaluate(model, functions[model], split.to(device), context, run=run)
            fitted = replace(fitted, about=fitted.about | {"basis": basis})
            result = files.keep(model, context, fitted, measured, began)
        results[model] = result
    return results


def describe(folder: Path, partition: Partition, settings: Settings, seed: int, models: Sequence[str]) -> None:
    """Write what a run directory says of itself, so that `tempt recommend` answers from the hospital's folder alone.

    It names this seed, and those of earlier calls whose models stand on the same settings and vocabulary.
    """
    about: dict[str, Any] = {
        "format": 1,
        "mode": "federated",
        "settings": settings.model_dump(mode="json"),
        "models": list(models),
        "hospitals": [partition.hospital],
        "vocabulary": partition.vocabulary.digest,
    }
    before = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    seeds = {seed} | (set(before["seeds"]) if all(before.get(name) == about[name] for name in about) else set())
    done = {}
    for fit in (FitName(model, seed, partition.hospital) for seed in sorted(seeds) for model in models):
        if (result := FitFiles.of(folder, fit.seed, fit.model, fit.hospital).read()) is not None:
            done[fit] = result
    whole = [seed for seed in sorted(seeds) if sum(fit.seed == seed for fit in done) == len(models)]
    write_vocabulary(folder / "vocabulary.json", partition.vocabulary)
    write_json(folder / CONFIG, about | {"seeds": whole})
    head = {"mode": "federated", "dataset": {"vocabulary": partition.vocabulary.digest, "hospitals": 1}}
    write_results(folder, head, done, models, whole)


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
    split = partition.split_by_patient
    digest.update(records_digest(partition.vocabulary, partition.records, split_by_patient=split).encode())
    return digest.hexdigest()[:16]


def numbers(results: Mapping[str, Mapping[str, Any]], hospital: int) -> dict[str, float]:
    """The numbers that leave the hospital: `<model>.<metric>` and how long it took."""
    found: dict[str, float] = {}
    for model, result in results.items():
        for name, value in result["hospitals"][str(hospital)].items():
            found[f"{model}.{name}"] = float(value)
        found[f"{model}.best_epoch"] = float(result["best_epoch"])
        for name, value in result["seconds"].items():
            found[f"{model}.seconds.{name}"] = float(value)
    return found
