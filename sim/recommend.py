"""The answer for one patient of one hospital, from a run directory alone (Section 3.5, Inference)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from shared_model import checkpoint
from shared_model.errors import TemptError
from shared_model.files import read_json
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.records import CodeSets, RecordSet
from shared_model.run_directory import CONFIG
from shared_model.settings import Settings
from shared_model.vocabulary import read_vocabulary
from shared_model.vocabulary_rules import nameless
from sim.centralized import some
from sim.methods import adapts, method
from sim.units import FitUnit, Plan, context_of


@dataclass(frozen=True)
class Recommendation:
    """A medication with its probability, and whether that is above the threshold."""

    medication: int
    name: str
    probability: float
    recommended: bool


def recommend(
    run: Path, model: str, seed: int | None, hospital: int, diagnoses: Sequence[str], procedures: Sequence[str]
) -> list[Recommendation]:
    """Every medication for a patient with these codes, the most probable first.

    Args:
        seed: of the run's seeds; the first if None.

    Raises:
        TemptError: the run lacks the model, seed or hospital, or the vocabulary a code (the nearest is named).
    """
    if not (run / CONFIG).is_file():
        raise TemptError(f"{run}: is no run directory; name the --out of `tempt simulate`, or a hospital's --state")
    config = read_json(run / CONFIG)
    try:
        settings = Settings.model_validate(config["settings"])
    except (KeyError, ValidationError):
        raise TemptError(f"{run / CONFIG}: not the config of a run of this version; make the run again") from None
    vocabulary = read_vocabulary(run / "vocabulary.json")
    functions = method(model)
    if model not in config["models"]:
        raise TemptError(f"{run}: the run has no model '{model}'; it has {', '.join(config['models'])}")
    seed = config["seeds"][0] if seed is None else seed
    if seed not in config["seeds"]:
        raise TemptError(f"{run}: the run has no seed {seed}; it has {', '.join(str(s) for s in config['seeds'])}")
    known = _hospitals(run, seed)
    if hospital not in known:
        raise TemptError(f"{run}: the run has no hospital {hospital}; it has {some(known)}")
    if not diagnoses or not procedures:
        missing = "--procedure" if diagnoses else "--diagnosis"
        raise TemptError(f"{missing}: none given; a record has at least one diagnosis and one procedure")
    record = RecordSet(
        hospital=torch.tensor([hospital]),
        stay=torch.tensor([0]),
        patient=torch.tensor([0]),
        diagnoses=CodeSets.of([sorted({vocabulary.position("diagnoses", code) for code in diagnoses})]),
        procedures=CodeSets.of([sorted({vocabulary.position("procedures", code) for code in procedures})]),
        medications=CodeSets.of([[]]),
    )
    alone = config["mode"] == "local"
    plan = Plan(run, run, settings, "cpu", threads=1, save_scores=False, hospitals=None, alone=alone)
    whose = WHOLE_CONSORTIUM if functions.SCOPE == "consortium" else hospital
    unit = FitUnit(plan, model, seed, whose)
    if adapts(model) and unit.needs is not None and not unit.needs.files.tensors.exists():
        raise TemptError(
            f"{unit.needs.files.tensors}: no such checkpoint; the run is not complete, go on with --resume"
        )
    if config["mode"] == "federated" and not unit.files.tensors.exists():
        raise TemptError(
            f"{run}: does not hold what hospital {hospital} tuned, which never leaves it; name the hospital's --state"
        )
    tensors, _ = checkpoint.load(unit.files.tensors)
    row = functions.probabilities(tensors, record, context_of(vocabulary, unit))[0]
    above = (row > settings.evaluation.threshold).tolist()  # as the metrics compare, in float32
    answer = [
        Recommendation(code, name if name.isprintable() else nameless(code), probability, recommended)
        for code, name, probability, recommended in zip(
            vocabulary.medications, vocabulary.medication_names, row.tolist(), above, strict=True
        )
    ]
    return sorted(answer, key=lambda answered: (-answered.probability, answered.medication))


def threshold_of(run: Path) -> float:
    """The probability above which the run recommends."""
    return Settings.model_validate(read_json(run / CONFIG)["settings"]).evaluation.threshold


def _hospitals(run: Path, seed: int) -> list[int]:
    models = read_json(run / "results.json")["models"]
    return sorted({int(hospital) for model in models.values() for hospital in model["seeds"][str(seed)]["hospitals"]})
