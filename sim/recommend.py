"""The answer for one patient of one hospital, from a run directory alone (Section 3.5, Inference)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from shared_model import checkpoint
from shared_model.errors import TemptError
from shared_model.file_forms import ModelResult, RunConfig, RunResults, SeedConfig, read_form
from shared_model.fitting import PRETRAINING, FitFiles, pretrained_digest
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.recommendation import Context, Method, Recommended
from shared_model.records import CodeSets, RecordSet
from shared_model.results import RESULTS
from shared_model.run_directory import CONFIG, VOCABULARY, seed_folder
from shared_model.settings import Settings
from shared_model.vocabulary import Vocabulary, read_vocabulary
from shared_model.vocabulary_rules import nameless
from sim.centralized import some
from sim.methods import method
from sim.units import FitUnit, RunPlan, context_of


@dataclass(frozen=True)
class Recommendation:
    """A medication with its probability, which not every model gives, and whether it is recommended."""

    medication: int
    name: str
    probability: float | None
    recommended: bool


class _Source(NamedTuple):
    """What answers for a seed of a run.

    Attributes:
        hospitals: those whose patients it answers for.
        is_hospitals: it is a hospital's own folder, not a run's.
    """

    config: dict[str, Any]
    settings: Settings
    vocabulary: Vocabulary
    seed: int
    hospitals: list[int]
    is_hospitals: bool


def recommend(
    run: Path, model: str, seed: int | None, hospital: int, diagnoses: Sequence[str], procedures: Sequence[str]
) -> list[Recommendation]:
    """Every medication for a patient with these codes, the most probable first, or those that are recommended.

    Args:
        seed: of the run's seeds; the first if None.

    Raises:
        TemptError: the run lacks the model, seed or hospital, or the vocabulary a code (the nearest is named); or its
            files are of different runs.
    """
    functions = method(model)
    source = _source(run, seed)
    config, settings, vocabulary, seed = source.config, source.settings, source.vocabulary, source.seed
    if model not in config["models"]:
        raise TemptError(f"{run}: the run has no model '{model}'; it has {', '.join(config['models'])}")
    if hospital not in source.hospitals:
        raise TemptError(f"{run}: the run has no hospital {hospital}; it has {some(source.hospitals)}")
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
    plan = RunPlan(run, run, settings, "cpu", threads=1, save_scores=False, hospitals=None, pretrains_locally=alone)
    whose = WHOLE_CONSORTIUM if functions.SCOPE == "consortium" else hospital
    unit = FitUnit(plan, model, seed, whose)
    if unit.needs is not None and not unit.needs.files.tensors.exists():
        raise TemptError(
            f"{unit.needs.files.tensors}: no such checkpoint; the run is not complete, go on with --resume"
        )
    if config["mode"] == "federated" and not unit.files.tensors.exists():
        raise TemptError(
            f"{run}: does not hold what hospital {hospital} tuned, which never leaves it; name the hospital's --state"
        )
    tensors, _ = checkpoint.load(unit.files.tensors)
    _check_whole(run, source, unit, tensors)
    found = _answer(functions, unit.files.tensors, tensors, record, context_of(vocabulary, unit))
    scores = [None] * len(vocabulary.medications) if found.scores is None else found.scores[0].tolist()
    answer = [
        Recommendation(code, name if name.isprintable() else nameless(code), probability, recommended)
        for code, name, probability, recommended in zip(
            vocabulary.medications, vocabulary.medication_names, scores, found.chosen[0].tolist(), strict=True
        )
    ]
    if found.scores is None:
        return sorted(answer, key=lambda answered: (not answered.recommended, answered.medication))
    return sorted(answer, key=lambda answered: (-(answered.probability or 0.0), answered.medication))


def threshold_of(run: Path, seed: int | None = None) -> float:
    """The probability above which the run recommends."""
    return _source(run, seed).settings.evaluation.threshold


def _source(run: Path, seed: int | None) -> _Source:
    """The config and vocabulary of a seed's models.

    Raises:
        TemptError: there is no run, it is not complete or lacks the seed, or the vocabulary is another run's.
    """
    if not (run / CONFIG).is_file():
        raise TemptError(f"{run}: is no run directory; name the --out of `tempt simulate`, or a hospital's --state")
    config = _config(run)
    settings = _settings(run, config)
    seeds: list[int] = config["seeds"]
    if not seeds:
        raise TemptError(f"{run}: has no seed whose models are whole; let it be finished first")
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise TemptError(f"{run}: the run has no seed {seed}; it has {', '.join(str(s) for s in seeds)}")
    place, own = run, seed_folder(run, seed)
    if (own / CONFIG).is_file():  # a hospital's: whatever stands above is perhaps of other models than the seed's
        place, config = own, _config(own, SeedConfig)
        settings = _settings(own, config)
    vocabulary = read_vocabulary(place / VOCABULARY)
    digest = config.get("vocabulary") or (config.get("dataset") or {}).get("vocabulary")
    if digest not in (None, vocabulary.digest):
        raise _mixture(run, f"{place / VOCABULARY} is not the one that its models were made with", config)
    is_hospitals = "vocabulary" in config
    hospitals = config["hospitals"] if place == own else _hospitals(run, config, seed)
    return _Source(config, settings, vocabulary, seed, hospitals, is_hospitals)


def _config(place: Path, form: type[SeedConfig] = RunConfig) -> dict[str, Any]:
    return read_form(place / CONFIG, form, "not the config of a run of this version; make the run again")


def _settings(place: Path, config: Mapping[str, Any]) -> Settings:
    try:
        return Settings.model_validate(config["settings"])
    except (KeyError, ValidationError):
        raise TemptError(f"{place / CONFIG}: not the config of a run of this version; make the run again") from None


def _hospitals(run: Path, config: Mapping[str, Any], seed: int) -> list[int]:
    if "vocabulary" in config and not (run / RESULTS).exists():  # a hospital's, before other models come
        return [int(hospital) for hospital in config["hospitals"]]
    models = read_form(run / RESULTS, RunResults, "go on with the run with --resume, which writes it anew")["models"]
    try:
        known = {int(hospital) for model in models.values() for hospital in model["seeds"][str(seed)]["hospitals"]}
    except KeyError:
        raise _mixture(run, f"{RESULTS} lacks seed {seed}, which {CONFIG} names", config) from None
    return sorted(known)


def _answer(
    functions: Method, path: Path, tensors: Mapping[str, Tensor], record: RecordSet, context: Context
) -> Recommended:
    """What the tensors of a file answer for one record.

    Raises:
        TemptError: the file is another model's.
    """
    try:
        found = functions.answer(tensors, record, context)
    except (KeyError, RuntimeError, ValueError) as error:
        raise TemptError(
            f"{path}: not a checkpoint of this model and these settings ({error}); delete it and go on with --resume"
        ) from None
    if found.chosen.shape != (1, context.medications):
        raise TemptError(
            f"{path}: knows {found.chosen.shape[-1]} medications, the run's vocabulary has {context.medications}; "
            "one of the two is another run's, go on with this run with --resume"
        )
    return found


def _check_whole(run: Path, source: _Source, unit: FitUnit, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that another result or another encoder than those in the run belongs to.

    Raises:
        TemptError: files of the run are of different fits.
    """
    files, config = unit.files, source.config
    result = read_form(files.result, ModelResult, "go on with --resume, which makes it again")
    if result.get("digest") not in (None, checkpoint.digest_of(tensors)):
        raise _mixture(run, f"{files.tensors} and {files.result.name} beside it are of different fits", config)
    needed = unit.needs.files.tensors if unit.needs is not None else None
    if needed is None:
        return
    if result.get("stands_on") not in (None, pretrained_digest(needed)):
        raise _mixture(run, f"{files.tensors} was not tuned on {needed.name} beside it", config)
    if "basis" in config and result.get("basis") != config["basis"]:
        raise _mixture(run, f"{files.tensors} is of another tuning than {CONFIG} beside it", config)
    if "stands_on" not in result and source.is_hospitals:
        _check_older(run, source, unit, result)


def _check_older(run: Path, source: _Source, unit: FitUnit, result: Mapping[str, Any]) -> None:
    """The same for a hospital's folder of an earlier version, which wrote the encoder first and the results last."""
    files, encoder = unit.files, FitFiles.of(run, unit.seed, PRETRAINING, WHOLE_CONSORTIUM).tensors
    if encoder.stat().st_mtime_ns > files.tensors.stat().st_mtime_ns:
        raise _mixture(run, f"{encoder} is newer than {files.tensors}", source.config)
    if not (run / RESULTS).exists():  # it goes before other models come
        return
    models = read_form(run / RESULTS, RunResults, "let the hospital take part again")["models"]
    told = models.get(unit.model, {}).get("seeds", {}).get(str(unit.seed), {})
    if told.get("hospitals") != result["hospitals"]:
        raise _mixture(run, f"{files.tensors} is not what {RESULTS} tells of", source.config)


def _mixture(run: Path, what: str, config: Mapping[str, Any]) -> TemptError:
    remedy = (
        "let the hospital take part again with `tempt hospital launch`"
        if "vocabulary" in config
        else "go on with --resume, or make the run again"
    )
    return TemptError(f"{run}: new and old files are mixed, so nothing is recommended: {what}; {remedy}")
