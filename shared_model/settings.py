"""Settings of every stage, with the paper's symbols, and the presets `paper` and `released`.

A stage takes its own model of this file, never the whole tree. Where the paper is silent the field says what was
chosen and why. What one method or pretraining alone knows stands in its file, as its own `Settings`; the tree holds its
values under the method's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator

from shared_model.errors import TemptError, unknown

Own = TypeVar("Own", bound=BaseModel)
MOST_EPOCHS = 100_000
"""Of a fit, and of patience; a fit of a day has some thousand. Other bounds are far beyond what trains at all, so that
what is mistyped is told at once and no fit lasts for ever."""


class EncoderSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The medical encoder of Section 3.2."""

    c: int = Field(300, ge=1, le=4096, description="embedding dimension and feed-forward width; Table 6")
    layers: int = Field(2, ge=1, le=24, description="K; Table 6")
    heads: int = Field(2, ge=1, le=64, description="A; Table 6")
    activation: Literal["relu", "gelu"] = Field("relu", description="Eq. 4")
    longest_set: int = Field(
        100, ge=1, le=100_000, description="codes of a set that are read; [CLS] and prompts come on top; Table 6"
    )
    attention_dropout: float = Field(0.1, ge=0, le=0.99, description="the paper is silent; the released code's")
    dropout: float = Field(
        0.1,
        ge=0,
        le=0.99,
        description="of a sublayer's output; the paper is silent; that of the attention, not chosen by validation",
    )
    initialization: Literal["xavier", "normal"] = Field(
        "xavier",
        description="the paper is silent; normal(0, 0.02) (released) starts with nearly constant representations and "
        "spends its first epochs on a plateau",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> EncoderSettings:
        if self.c % self.heads:
            raise ValueError(f"c={self.c} is no multiple of heads={self.heads}; Eq. 2 cuts c into equal heads")
        return self


class OptimizationSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Adam with early stopping on a validation score, shared by every trained model (Section 4.1.3)."""

    learning_rate: float = Field(5e-4, gt=0, le=1, description="Table 6")
    batch_size: int = Field(64, ge=1, le=65536, description="Table 6; the last partial batch is kept")
    epochs: int = Field(30, ge=1, le=MOST_EPOCHS, description="at most; the paper is silent, the released code's")
    patience: int = Field(
        10, ge=1, le=MOST_EPOCHS, description="epochs without a better validation score; the released code's"
    )
    output_bias: Literal["rate", "zero"] = Field(
        "rate",
        description="first bias of an output layer: the log-odds of a label's rate, or 0; the paper is silent; from 0 "
        "the encoder spends its first steps on what all records share and its representations collapse",
    )
    least_steps: int = Field(
        100,
        ge=0,
        le=1_000_000,
        description="steps that epochs and patience last at least: with few records an epoch is one step",
    )


class PretrainingSettings(OptimizationSettings, frozen=True, extra="forbid"):
    """Section 3.3: the two self-supervised tasks."""

    temperature: float = Field(0.8, gt=0, le=1e9, description="tau of Eq. 9; Table 6")
    contrastive_weight: float = Field(0.01, ge=0, le=1e9, description="gamma of Eq. 11; Table 6")
    mask_fraction: float = Field(
        0.15,
        gt=0,
        lt=1,
        description="codes masked in a set, at least one; Sec. 3.3.1 gives no number, the released code's",
    )
    mask_token_fraction: float = Field(
        1.0, ge=0, le=1, description="masked codes that become [MASK]; Sec. 3.3.1 knows no other"
    )
    random_code_fraction: float = Field(
        0.0, ge=0, le=1, description="masked codes that become a random one; the rest stay"
    )

    @model_validator(mode="after")
    def _fractions(self) -> PretrainingSettings:
        if self.mask_token_fraction + self.random_code_fraction > 1:
            raise ValueError(
                f"mask_token_fraction={self.mask_token_fraction} and random_code_fraction={self.random_code_fraction} "
                "exceed 1 together"
            )
        return self


class RecommendationSettings(OptimizationSettings, frozen=True, extra="forbid"):
    """What every model that recommends is trained with (Eq. 12-14)."""

    head_dropout: float = Field(0.0, ge=0, le=0.99, description="of MLP_r's input and middle; the paper is silent")


class TuningSettings(RecommendationSettings, frozen=True, extra="forbid"):
    """Section 3.4: a hospital's own prompts and head, or what an ablation tunes instead."""

    head_dropout: float = Field(
        0.5,
        ge=0,
        le=0.99,
        description="of MLP_r's input and middle; the paper is silent; without it a head of 540,000 weights overfits a "
        "hospital within three epochs; 0.5 was the best of five on validation",
    )
    prompts_per_modality: int = Field(2, ge=0, le=100, description="b; Table 6; 0 tunes the head alone")
    selection: Literal["hospital", "common"] = Field(
        "hospital", description="each hospital's best epoch, or one epoch for all by the mean over hospitals"
    )


class TrainingSettings(RecommendationSettings, frozen=True, extra="forbid"):
    """Full-Train and Single-Train (Section 4.1.2): the same network, trained on medications from the start.

    Without dropout of the head: with 0.5 an encoder that starts from nothing never leaves the labels' common rates
    (validation PRAUC of Full-Train on 12 synthetic hospitals 0.426 against 0.464).
    """


class EvaluationSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Section 4.1.4."""

    threshold: float = Field(
        0.3, ge=0, le=1, description="t; a medication is recommended strictly above it; Sec. 4.1.3"
    )


class Settings(BaseModel, frozen=True, extra="allow", allow_inf_nan=False):
    """Everything that a run is made with, but for data, seeds and machine.

    Beside the stages stand the values of methods that have settings of their own, as JSON has them.
    """

    __pydantic_extra__: dict[str, dict[str, JsonValue]]

    encoder: EncoderSettings = EncoderSettings()
    pretraining: PretrainingSettings = PretrainingSettings()
    tuning: TuningSettings = TuningSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @property
    def of_methods(self) -> dict[str, dict[str, JsonValue]]:
        """By method the values of its own settings, of those methods that have some."""
        return self.__pydantic_extra__

    def own(self, name: str, kind: type[Own] | None) -> Own | None:
        """The settings that a method or pretraining has for itself.

        Args:
            kind: its file's `Settings`, or None.

        Raises:
            TemptError: the values are not of this kind.
        """
        if kind is None:
            return None
        try:
            return kind.model_validate(self.of_methods.get(name, {}))
        except ValidationError as error:
            mistakes = "; ".join(_mistake(detail, name) for detail in error.errors())
            raise TemptError(f"settings {mistakes}; they are another version's, make the run again") from None


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {},
    "released": {
        "encoder": {
            "heads": 4,
            "activation": "gelu",
            "dropout": 0.4,
            "attention_dropout": 0.1,
            "initialization": "normal",
        },
        "pretraining": {
            "mask_token_fraction": 0.8,
            "random_code_fraction": 0.1,
            "output_bias": "zero",
            "least_steps": 0,
        },
        "tuning": {"batch_size": 128, "output_bias": "zero", "head_dropout": 0.0, "least_steps": 0},
        "training": {"output_bias": "zero", "least_steps": 0},
    },
}


def resolve(preset: str, assignments: Mapping[str, str], own: Mapping[str, type[BaseModel]] | None = None) -> Settings:
    """The settings of a preset with `--set` assignments such as `{"pretraining.epochs": "5"}` on top.

    Args:
        own: the `Settings` of those methods and pretrainings of the run that have some, by name.

    Raises:
        TemptError: an unknown preset or field (the nearest is named), or values out of type or bounds (all named).
    """
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    tree: dict[str, dict[str, Any]] = {stage: dict(values) for stage, values in PRESETS[preset].items()}
    own = own or {}
    known = [*_fields(), *(f"{name}.{field}" for name, kind in own.items() for field in kind.model_fields)]
    mistakes = [_no_such_field(name, value, known) for name, value in assignments.items() if name not in known]
    for name, value in assignments.items():
        if name in known:
            stage, field = name.split(".")
            tree.setdefault(stage, {})[field] = value
    for name, kind in own.items():
        try:
            tree[name] = kind.model_validate(tree.get(name, {})).model_dump(mode="json")
        except ValidationError as error:
            mistakes += [f"--set {_mistake(detail, name)}" for detail in error.errors()]
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        mistakes += [f"--set {_mistake(detail)}" for detail in error.errors()]
    if mistakes:
        raise TemptError("; ".join(mistakes))
    return settings


def _no_such_field(name: str, value: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
    return f"--set {name}={value}: no such field; {hint}"


def _fields() -> Iterator[str]:
    for stage, stage_field in Settings.model_fields.items():
        yield from (f"{stage}.{name}" for name in type(stage_field.default).model_fields)


def _mistake(detail: Mapping[str, Any], *before: str) -> str:
    place = ".".join(str(part) for part in (*before, *detail["loc"]))
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{place}={detail['input']}: {message}" if detail["type"] != "value_error" else f"{place}: {message}"
