"""A hospital's own part: prompts and head on the encoder that came in, and their test metrics (Section 3.4).

Everything that it makes stays in the hospital's folder, which has a run directory's layout; numbers alone go out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hospital_client.partition import Partition
from shared_model import checkpoint
from shared_model.adaptation import adaptation
from shared_model.fitting import PRETRAINING, FitFiles, fit_and_evaluate, pretrained_encoder
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.recommendation import Context
from shared_model.settings import Settings


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
    encoder_file = FitFiles.of(folder, seed, PRETRAINING, WHOLE_CONSORTIUM).tensors
    if not encoder_file.exists():
        encoder_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        checkpoint.save(encoder_file, shared, {"model": PRETRAINING, "seed": seed})
    split = partition.split(seed)
    results = {}
    for model in models:
        files = FitFiles.of(folder, seed, model, partition.hospital)
        result = files.read()
        if result is None:
            began = time.monotonic()
            files.tensors.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
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
            fitted, measured = fit_and_evaluate(model, adaptation(model), split.to(device), context, run=run)
            result = files.keep(model, context, fitted, measured, began)
        results[model] = result
    return results


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
