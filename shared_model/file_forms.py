"""The forms of the JSON files that commands read: what has another one is its owner's to mend, and not our defect.

A form names what is read, and lets a file hold more: later versions write more, and older ones wrote less.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from shared_model.errors import TemptError, printable
from shared_model.files import read_json
from shared_model.metric_names import MEASURED, METRICS

Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Id = Annotated[str, Field(pattern=r"^[0-9]{1,19}$")]
"""A hospital's id or a seed, of up to 63 bits."""
Node = Annotated[int, Field(ge=0, lt=2**64)]
"""Flower's number for a hospital."""
Number = Annotated[float | None, Field(allow_inf_nan=False)]


class Form(BaseModel):
    """What of a file is read; types as they stand, so that "3" is no number."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


if TYPE_CHECKING:
    HospitalMetrics = Form
else:  # what a model reached on a hospital's test records
    HospitalMetrics = create_model(
        "HospitalMetrics", __base__=Form, records=(Count, ...), **dict.fromkeys(MEASURED, (Number, ...))
    )


class HistoryRow(Form):
    """An epoch or a round."""

    epoch: Count
    seconds: float


class FitResult(Form):
    """What a fit leaves beside its tensors, `checkpoints/**.json`."""

    seconds: dict[str, float]
    history: list[HistoryRow]
    best_epoch: Count


class ModelResult(FitResult):
    """The same of a model that recommends."""

    hospital: Count
    hospitals: dict[Id, HospitalMetrics]


class RoundsPart(Form):
    """A hospital's part in a federated pretraining."""

    taken: list[Count]
    missed: Count
    rejected: list[str]
    bytes_to_hospital: Count
    bytes_from_hospital: Count


class RoundsResult(FitResult):
    """What a federated pretraining leaves."""

    rounds: Count
    hospitals: dict[Id, RoundsPart]


class _RunDataset(Form):
    vocabulary: str | None = None


class ComparedConfig(Form):
    """`config.json` of a run directory, as far as a command that goes on with it reads it by name."""

    dataset: _RunDataset | None = None
    code: dict[str, str] = {}


class SeedConfig(Form):
    """`config.json` beside a hospital's models of a seed, as far as an answer for a patient needs it."""

    settings: dict[str, Any]
    models: list[str]
    mode: str
    dataset: _RunDataset | None = None
    vocabulary: str | None = None
    hospitals: list[Integer] | None = None


class RunConfig(SeedConfig):
    """The same of a run directory or of a hospital's folder."""

    seeds: list[Integer]


class _Summary(Form):
    mean: Number
    std: Number = None


if TYPE_CHECKING:
    _Means = Form
    _Summaries = Form
else:
    _Means, _Summaries = (
        create_model(name, __base__=Form, **dict.fromkeys(METRICS, (kind, ...)))
        for name, kind in (("_Means", Number), ("_Summaries", _Summary))
    )


class _Seed(Form):
    hospitals: dict[Id, HospitalMetrics]
    hospital_mean: _Means


class _Model(Form):
    seeds: dict[Id, _Seed]
    summary: _Summaries


class RunResults(Form):
    """`results.json` of a run directory."""

    models: dict[str, _Model]


class _Splits(Form):
    split_digests: dict[Id, str] = {}


class RunResultsBeside(RunResults):
    """The same of a run whose rows stand beside another's."""

    mode: str
    dataset: _Splits


class _DatasetOptions(Form):
    split_by_patient: bool = False


class AboutDataset(Form):
    """`dataset.json` of a dataset directory."""

    options: _DatasetOptions = _DatasetOptions()
    sources: dict[str, str] = {}
    digest: str = ""


def read_form(path: Path, form: Any, mend: str) -> dict[str, Any]:
    """A JSON file's object, once it is of a form.

    Args:
        form: a `Form`, or another type that pydantic knows.
        mend: what is to be done about a file that is not.

    Raises:
        TemptError: the file is missing, can't be read, or is of another form; the first place is named.
    """
    content = read_json(path, mend)
    try:
        TypeAdapter(form).validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the object"
        raise TemptError(f"{path}: {printable(place, 100)}: {printable(first['msg'], 200)}; {mend}") from None
    return content
