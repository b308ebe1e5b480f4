"""One fit in a run directory: its files, its metrics on test records, and what it leaves (Section 4.1.4).

A fit's result is two files: tensors (`.safetensors`), then what was measured (`.json`), which says that it is done.
While it runs, a long fit keeps its state in `.partial.safetensors`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, Discriminator, Tag
from torch import Tensor, nn

from shared_model import checkpoint
from shared_model.batching import TokenRows
from shared_model.errors import TemptError
from shared_model.file_forms import FitResult, ModelResult, RoundsResult, read_form
from shared_model.files import replacing, write_json
from shared_model.metric_names import MEASURED
from shared_model.metrics import record_metrics
from shared_model.pretrainings import pretraining, pretrainings
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.recommendation import Context, Fitted, Method, Recommended, gives_scores, needs_of, own_settings_of
from shared_model.records import RecordSet, Split
from shared_model.run_directory import seed_folder
from shared_model.settings import Settings

PRETRAINING = "pretraining"
"""Stands for a model's name where a fit is the pretraining that TEMPT adapts; see `pretraining_fit`."""


def _kind_of(result: Mapping[str, Any]) -> str:
    if result.get("rounds") is not None:
        return "rounds"
    return "model" if "hospitals" in result else "fit"  # trials and a pretraining in one place measure nothing


_RESULT = Annotated[
    Annotated[RoundsResult, Tag("rounds")] | Annotated[ModelResult, Tag("model")] | Annotated[FitResult, Tag("fit")],
    Discriminator(_kind_of),
]


class FitFiles(NamedTuple):
    """Where a fit of a run directory is kept."""

    tensors: Path
    result: Path
    partial: Path

    @staticmethod
    def of(run: Path, seed: int, model: str, hospital: int, *, trial: bool = False) -> FitFiles:
        folder = seed_folder(run, seed)
        stem = folder / model if hospital == WHOLE_CONSORTIUM else folder / model / str(hospital)
        name = f"{stem.name}{'.trial' if trial else ''}"
        return FitFiles(*(stem.with_name(name + kind) for kind in (".safetensors", ".json", ".partial.safetensors")))

    def read(self) -> dict[str, Any] | None:
        """What the fit left, or None if it is not done, or killed between its new tensors and their result.

        Raises:
            TemptError: a file of it is damaged.
        """
        if not self.result.exists() or not self.tensors.exists():
            return None
        tensors, _ = checkpoint.load(self.tensors)
        result = read_form(self.result, _RESULT, "delete it to compute it again")
        if result.get("digest") not in (None, checkpoint.digest_of(tensors)):  # None: of an earlier version
            return None
        self.partial.unlink(missing_ok=True)  # killed between both
        return result

    def keep(
        self, model: str, context: Context, fitted: Fitted, measured: Mapping[str, Any], began: float
    ) -> dict[str, Any]:
        """Write what a fit leaves, forget the state that it had on the way, and return its result.

        Args:
            began: when the fit did, by `time.monotonic`.
        """
        about: dict[str, Any] = {"model": model, "seed": context.seed, "hospital": context.hospital}
        about |= {"best_epoch": fitted.best_epoch} | fitted.about
        result: dict[str, Any] = (
            about | {"seconds": {"fit": seconds_of(began, fitted)}} | dict(measured) | {"history": fitted.history}
        )
        if context.stands_on is not None:
            result["stands_on"] = context.stands_on
        return self.keep_tensors(fitted.tensors, about, result)

    def keep_tensors(
        self, tensors: Mapping[str, Tensor], about: Mapping[str, Any], result: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write tensors, then the result that says that the fit is done, and of which tensors; return it."""
        content = {**result, "digest": checkpoint.digest_of(tensors)}
        checkpoint.save(self.tensors, tensors, about, durable=False)
        write_json(self.result, content, durable=False)
        self.partial.unlink(missing_ok=True)
        return content


def scores_file(run: Path, seed: int, model: str, hospital: int) -> Path:
    """Where `--save-scores` keeps a hospital's test records with labels and scores."""
    return run / "scores" / model / f"seed-{seed}" / f"{hospital}.parquet"


def pretraining_fit(name: str) -> str:
    """What a pretraining's fits are called in checkpoints, history and random streams: no method has such a name."""
    return PRETRAINING if name == "tempt" else f"{PRETRAINING}-{name}"


def pretraining_of(model: str) -> str | None:
    """The pretraining whose fits are called so; None where they are a method's."""
    return next((name for name in pretrainings() if pretraining_fit(name) == model), None)


def own_settings(methods: Mapping[str, Method]) -> dict[str, type[BaseModel]]:
    """The `Settings` of those of these methods that have some, and of the pretrainings that they adapt, by name."""
    needed = dict.fromkeys(name for method in methods.values() if (name := needs_of(method)) is not None)
    kinds = {pretraining_fit(name): pretraining(name).settings for name in needed}
    kinds |= {name: own_settings_of(method) for name, method in methods.items()}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def pretrained(context: Context, name: str, path: Path) -> Context:
    """The context with the part of a pretraining that methods read, out of its checkpoint.

    Raises:
        TemptError: the checkpoint is missing, damaged or of other settings, or no pretraining has that name.
    """
    key = (path, stamp_of(path), context.settings, context.rows, context.medications, context.device)
    return replace(context, part=_part(name, *key), stands_on=pretrained_digest(path))


def pretrained_digest(path: Path) -> str:
    """A digest of the tensors of a pretraining checkpoint: what a fit that adapts them stands on."""
    return _digest(path, stamp_of(path))


@lru_cache(maxsize=1)
def _digest(path: Path, stamp: tuple[int, ...]) -> str:
    return checkpoint.digest_of(checkpoint.load(path)[0])


def stamp_of(path: Path) -> tuple[int, ...]:
    """Tells a file from another one that took its name."""
    found = path.stat() if path.exists() else None
    return () if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1)
def _part(
    name: str,
    path: Path,
    stamp: tuple[int, ...],
    settings: Settings,
    rows: TokenRows,
    medications: int,
    device: torch.device,
) -> nn.Module:
    found = pretraining(name)
    tensors, _ = checkpoint.load(path, device)
    prefix = f"{found.reads}." if found.reads else ""
    own = {of.removeprefix(prefix): tensor for of, tensor in tensors.items() if of.startswith(prefix)}
    own_settings = settings.own(pretraining_fit(name), found.settings)
    context = Context(settings, rows, medications, 0, WHOLE_CONSORTIUM, device, own_settings)
    unused = torch.Generator().manual_seed(0)
    part = found.network(context, unused).get_submodule(found.reads).to(device)
    checkpoint.load_module(part, own, path)
    return part.eval()


def fit_and_evaluate(
    model: str, functions: Method, split: Split, context: Context, *, run: Path | None = None
) -> tuple[Fitted, dict[str, Any]]:
    """Fit a method to training records and measure it on each hospital's test records.

    Args:
        run: the run directory that keeps the scores, if they are to be kept.
    """
    began = time.monotonic()
    fitted = functions.fit(split.train, split.validation, context)
    fit, tuned = seconds_of(began, fitted), time.monotonic()
    hospitals = {}
    everyone = sorted({*split.train.hospitals, *split.validation.hospitals, *split.test.hospitals})
    for hospital in everyone if context.hospital == WHOLE_CONSORTIUM else [context.hospital]:
        scores = None if run is None else scores_file(run, context.seed, model, hospital)
        test = split.test.of_hospital(hospital)
        hospitals[str(hospital)] = _evaluate(functions, fitted.tensors, test, context, scores)
    evaluation = round(time.monotonic() - tuned, 3)
    measured: dict[str, Any] = {"hospitals": hospitals, "seconds": {"fit": fit, "evaluation": evaluation}}
    if not len(split.validation) and context.epochs is None and fitted.history:
        measured["selected"] = "last epoch, for want of a validation record"
    return fitted, measured


def seconds_of(began: float, fitted: Fitted) -> float:
    """How long a fit took; the epochs from before a resumption stand in its history alone."""
    in_history = float(sum(row["seconds"] for row in fitted.history))
    return round(max(time.monotonic() - began, in_history), 3)


def _evaluate(
    functions: Method, tensors: Mapping[str, Tensor], test: RecordSet, context: Context, scores: Path | None
) -> dict[str, float | None]:
    if not len(test):
        return {"records": 0} | dict.fromkeys(MEASURED, 0.0)
    answer = functions.answer(tensors, test, context)
    if (answer.scores is not None) != gives_scores(functions):
        raise TemptError(
            f"{functions.TITLE}: answers with{'out' if answer.scores is None else ''} probabilities, and its file's "
            "SCORES says otherwise"
        )
    if scores is not None:
        _write_scores(scores, test, answer)
    metrics = record_metrics(answer.scores, answer.chosen, test.medications.multi_hot(context.medications))
    return {"records": len(test), **metrics.means()}


def _write_scores(path: Path, test: RecordSet, answer: Recommended) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    columns = {
        "patientunitstayid": pa.array(test.stay.cpu().numpy(), pa.int64()),
        "labels": pa.array(test.medications.lists(), pa.list_(pa.int32())),
    }
    if answer.scores is None:  # what it chose instead, as the labels are written
        chosen = [row.nonzero().flatten().tolist() for row in answer.chosen.cpu()]
        columns["recommended"] = pa.array(chosen, pa.list_(pa.int32()))
    else:
        offsets = torch.arange(len(test) + 1, dtype=torch.int32) * answer.scores.shape[1]
        columns["scores"] = pa.ListArray.from_arrays(offsets.numpy(), answer.scores.float().cpu().numpy().ravel())
    table = pa.table(columns)
    with replacing(path, durable=False) as beside:
        pq.write_table(table, beside, compression="zstd")
