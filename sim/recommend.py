"""The answer for one patient of one hospital, from a run directory alone (Section 3.5, Inference)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from shared_model import checkpoint
from shared_model.errors import TemptError
from shared_model.file_forms import RunConfig, RunResults, read_form
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.recommendation import Context, Method
from shared_model.records import CodeSets, RecordSet
from shared_model.results import RESULTS
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
    config = _config(run)
    settings = _settings(run, config)
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
    row = _probabilities(functions, unit.files.tensors, record, context_of(vocabulary, unit))
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
    return _settings(run, _config(run)).evaluation.threshold


def _config(run: Path) -> dict[str, Any]:
    return read_form(run / CONFIG, RunConfig, "not the config of a run of this version; make the run again")


def _settings(run: Path, config: Mapping[str, Any]) -> Settings:
    try:
        return Settings.model_validate(config["settings"])
    except ValidationError:
        raise TemptError(f"{run / CONFIG}: not the config of a run of this version; make the run again") from None


def _hospitals(run: Path, seed: int) -> list[int]:
    models = read_form(run / RESULTS, RunResults, "go on with the run with --resume, which writes it anew")["models"]
    seeds = [model["seeds"].get(str(seed), {}) for model in models.values()]
    return sorted({int(hospital) for of in seeds for hospital in of.get("hospitals", {})})


def _probabilities(functions: Method, path: Path, record: RecordSet, context: Context) -> Float[Tensor, " medications"]:
    """What the tensors of a file answer.

    Raises:
        TemptError: the file is damaged, or another model's.
    """
    tensors, _ = checkpoint.load(path)
    try:
        found = functions.probabilities(tensors, record, context)
    except (KeyError, RuntimeError, ValueError) as error:
        raise TemptError(f"{path}: not a checkpoint of this model and these settings ({error})") from None
    if found.shape != (1, context.medications):
        raise TemptError(
            f"{path}: knows {found.shape[-1]} medications, the run's vocabulary has {context.medications}; "
            "one of the two is another run's"
        )
    return found[0]
