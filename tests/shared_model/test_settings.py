"""Presets, `--set`, and the mistakes that it names."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, Field, ValidationError

from shared_model.errors import TemptError
from shared_model.settings import PRESETS, EncoderSettings, PretrainingSettings, Settings, resolve


def mistake(assignments: dict[str, str], preset: str = "paper") -> str:
    with pytest.raises(TemptError) as error:
        resolve(preset, assignments)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_preset_paper_has_the_values_of_section_4_1_3() -> None:
    found = resolve("paper", {})
    assert found == Settings()
    encoder, pretraining, tuning = found.encoder, found.pretraining, found.tuning
    assert (encoder.c, encoder.layers, encoder.heads, encoder.activation, encoder.longest_set) == (
        300,
        2,
        2,
        "relu",
        100,
    )
    assert (pretraining.temperature, pretraining.contrastive_weight) == (0.8, 0.01)
    assert (pretraining.mask_token_fraction, pretraining.random_code_fraction) == (1.0, 0.0)
    assert (tuning.prompts_per_modality, tuning.selection) == (2, "hospital")
    for stage in (pretraining, tuning, found.training):
        assert (stage.learning_rate, stage.batch_size) == (5e-4, 64)
    assert found.evaluation.threshold == 0.3


def test_preset_released_has_the_released_codes_values() -> None:
    found = resolve("released", {})
    assert (found.encoder.heads, found.encoder.activation, found.encoder.initialization) == (4, "gelu", "normal")
    assert (found.encoder.dropout, found.encoder.attention_dropout) == (0.4, 0.1)
    assert (found.pretraining.mask_token_fraction, found.pretraining.random_code_fraction) == (0.8, 0.1)
    assert (found.pretraining.epochs, found.pretraining.patience) == (30, 10)
    assert (found.tuning.batch_size, found.pretraining.batch_size) == (128, 64)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_resolves_and_survives_its_own_json(preset: str) -> None:
    found = resolve(preset, {})
    assert Settings.model_validate_json(found.model_dump_json()) == found


def test_resolve_of_assignments_sets_fields_on_top_of_the_preset() -> None:
    found = resolve("released", {"pretraining.epochs": "5", "encoder.dropout": "0.2", "tuning.selection": "common"})
    assert (found.pretraining.epochs, found.encoder.dropout, found.tuning.selection) == (5, 0.2, "common")
    assert (found.encoder.heads, found.tuning.batch_size) == (4, 128), "the preset's other values stay"
    assert resolve("released", {}).encoder.dropout == 0.4, "the preset itself is not changed"


@pytest.mark.parametrize(
    "field, nearest",
    [
        ("pretraining.epoch", "pretraining.epochs"),
        ("tuning.promts_per_modality", "tuning.prompts_per_modality"),
        ("encoder.longestset", "encoder.longest_set"),
        ("pretraning.temperature", "pretraining.temperature"),
    ],
)
def test_resolve_of_an_unknown_field_names_the_nearest(field: str, nearest: str) -> None:
    assert mistake({field: "1"}) == f"--set {field}=1: no such field; did you mean '{nearest}'?"


@pytest.mark.parametrize("field", ["epochs", "encoder", "encoder."])
def test_resolve_of_a_field_that_is_no_stage_and_name_is_one_line(field: str) -> None:
    assert mistake({field: "1"}).startswith(f"--set {field}=1: no such field; did you mean '")


@pytest.mark.parametrize("field", ["", "a.b.c", "foo"])
def test_resolve_of_a_field_that_is_like_none_lists_all(field: str) -> None:
    found = mistake({field: "1"})
    assert found.startswith(f"--set {field}=1: no such field; known: encoder.c, ")
    assert "tuning.prompts_per_modality" in found and "\n" not in found


def test_resolve_of_an_unknown_preset_lists_the_known_and_names_the_nearest() -> None:
    assert mistake({}, "papper") == "unknown preset 'papper'; did you mean 'paper'? Known: paper, released"


@pytest.mark.parametrize(
    "field, value",
    [
        ("pretraining.epochs", "many"),
        ("pretraining.epochs", "2.5"),
        ("pretraining.epochs", "0"),
        ("pretraining.temperature", "0"),
        ("pretraining.temperature", "nan"),
        ("pretraining.contrastive_weight", "-0.1"),
        ("pretraining.contrastive_weight", "nan"),
        ("pretraining.mask_fraction", "1"),
        ("pretraining.mask_fraction", "0"),
        ("encoder.dropout", "1"),
        ("encoder.dropout", "-0.01"),
        ("encoder.activation", "tanh"),
        ("encoder.c", ""),
        ("tuning.prompts_per_modality", "-1"),
        ("tuning.batch_size", "0"),
        ("tuning.learning_rate", "0"),
        ("evaluation.threshold", "1.01"),
    ],
)
def test_resolve_of_a_value_out_of_type_or_bounds_names_field_and_value(field: str, value: str) -> None:
    assert f"{field}={value}: " in mistake({field: value})


@pytest.mark.parametrize("field", ["pretraining.temperature", "pretraining.contrastive_weight"])
def test_resolve_of_an_infinite_value_names_field_and_value(field: str) -> None:
    assert f"{field}=inf: " in mistake({field: "inf"})


def test_resolve_of_several_mistakes_names_all_at_once() -> None:
    message = mistake(
        {"pretraining.epochs": "many", "encoder.dropout": "7", "encoder.heads": "0", "tuning.patience": "3"}
    )
    assert all(f"{found}: " in message for found in ("pretraining.epochs=many", "encoder.dropout=7", "encoder.heads=0"))
    assert "tuning.patience" not in message


class Own(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Of a method alone."""

    strength: float = Field(1.0, gt=0)
    kinds: tuple[str, ...] = ("a",)


def test_settings_of_a_methods_own_stand_beside_the_stages_and_survive_json() -> None:
    found = resolve("released", {"my-method.strength": "0.5", "tuning.epochs": "7"}, {"my-method": Own})
    assert found.own("my-method", Own) == Own(strength=0.5) and found.tuning.epochs == 7
    assert found.model_dump(mode="json")["my-method"] == {"strength": 0.5, "kinds": ["a"]}
    again = Settings.model_validate_json(found.model_dump_json())
    assert again == found and again.own("my-method", Own) == Own(strength=0.5)
    assert found != resolve("released", {"tuning.epochs": "7"}, {"my-method": Own})


def test_settings_of_a_run_without_such_methods_are_written_as_before() -> None:
    stages = ["encoder", "pretraining", "tuning", "training", "evaluation"]
    assert list(resolve("paper", {}).model_dump()) == stages
    assert resolve("paper", {}).own("my-method", Own) == Own() and resolve("paper", {}).own("other", None) is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("my-method.strength", "-1", "--set my-method.strength=-1: Input should be greater than 0"),
        ("my-method.strengths", "1", "--set my-method.strengths=1: no such field; did you mean 'my-method.strength'?"),
        ("my-method.strength", "nan", "--set my-method.strength=nan: Input should be a finite number"),
    ],
)
def test_mistakes_in_a_methods_own_settings_are_told_as_others(field: str, value: str, message: str) -> None:
    with pytest.raises(TemptError) as caught:
        resolve("paper", {field: value}, {"my-method": Own})
    assert str(caught.value) == message


def test_own_settings_of_another_version_are_one_line() -> None:
    found = Settings.model_validate({"my-method": {"strength": 1.0, "depth": 3}})
    with pytest.raises(TemptError, match=r"settings my-method\.depth=3: Extra inputs are not permitted; they are"):
        found.own("my-method", Own)


def test_heads_that_do_not_divide_c_are_refused_and_both_are_named() -> None:
    """Eq. 2 needs c/A columns a head."""
    assert "c=300 is no multiple of heads=7" in mistake({"encoder.heads": "7"})
    assert EncoderSettings(c=21, heads=7).c == 21


def test_mask_fractions_above_1_together_are_refused_and_both_are_named() -> None:
    message = mistake({"pretraining.mask_token_fraction": "0.8", "pretraining.random_code_fraction": "0.3"})
    assert "mask_token_fraction=0.8 and random_code_fraction=0.3" in message
    assert PretrainingSettings(mask_token_fraction=0.8, random_code_fraction=0.2).random_code_fraction == 0.2


def test_settings_are_frozen_and_know_no_other_field() -> None:
    with pytest.raises(ValidationError):
        Settings().encoder.c = 5  # type: ignore[misc]
    with pytest.raises(ValidationError):
        EncoderSettings(width=5)  # type: ignore[call-arg]
