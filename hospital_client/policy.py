"""What the operator of a hospital lets a server ask for and learn: `policy.toml` in the hospital's own folder.

It binds a deployed hospital and no simulation, and is read at each message, so that an edit holds from the next one on.
A key that the file lacks has its default; so has every key where there is no file.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, create_model

from shared_model.adaptation import adaptation, adaptations
from shared_model.algorithms import algorithm, algorithms
from shared_model.errors import TemptError, printable
from shared_model.files import replacing
from shared_model.recommendation import own_settings_of
from shared_model.settings import Settings

FILE = "policy.toml"
_HEAD = """\
# What this hospital lets a server ask for and learn. Its operator may edit it; what is here holds from the next message
# on. A key that is missing has its default. Keys outside tables stand before the first [table].
"""
_TABLES = {
    "rounds": "What a round may ask for: [least, most].",
    "encoder": "Settings that are accepted: [least, most], or the values themselves.",
    "pretraining": "",
    "tuning": "",
    "evaluation": "",
}


class Refused(Exception):
    """What a server asked for is not what the policy allows; the text names the key and holds nothing of records."""

    def __init__(self, why: str) -> None:
        super().__init__(f"refused by policy: {why}")


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("expected [least, most], the smaller number first")
    return bounds


_Number = Annotated[float, Field(strict=True)]
_Range = Annotated[tuple[_Number, _Number], AfterValidator(_ascending)]
_SOME = Field(min_length=1)
_Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
_Least = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
_Switch = Annotated[bool, Field(strict=True)]


class _AcceptedRounds(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What a message of a round may hold beside settings."""

    local_epochs: _Range = Field((1, 20), description="passes over this hospital's training records in one round")


if TYPE_CHECKING:
    AcceptedRounds = _AcceptedRounds
else:  # and the numbers that the algorithms ask for
    _ASKED = {}
    for _name in algorithms():
        try:
            _asks = algorithm(_name).asks
        except TemptError:  # which is said where a message or an option names it
            continue
        for _number, _of in _asks.items():  # of two with one name what both accept
            (_least, _most), (_other, _another) = _of.accepted, _ASKED.get(_number, _of).accepted
            _ASKED[_number] = replace(_of, accepted=(max(_least, _other), min(_most, _another)))
    AcceptedRounds = create_model(
        "AcceptedRounds",
        __base__=_AcceptedRounds,
        **{name: (_Range, Field(of.accepted, description=of.description)) for name, of in _ASKED.items()},
    )


class AcceptedEncoder(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Section 3.2's."""

    c: _Range = Field((1, 300), description="width; both presets 300; wider ones hold codes and records apart")
    layers: _Range = Field((1, 6), description="both presets 2")
    heads: _Range = Field((1, 8), description="paper 2, released 4")
    activation: Annotated[tuple[Literal["relu", "gelu"], ...], _SOME] = Field(
        ("relu", "gelu"), description="paper relu, released gelu"
    )
    longest_set: _Range = Field((50, 200), description="both presets 100; short ones read single codes of a record")
    attention_dropout: _Range = Field((0.1, 0.6), description="both presets 0.1; less blurs less")
    dropout: _Range = Field((0.1, 0.6), description="paper 0.1, released 0.4; less blurs less")
    initialization: Annotated[tuple[Literal["xavier", "normal"], ...], _SOME] = Field(
        ("xavier", "normal"), description="paper xavier, released normal"
    )


class _AcceptedOptimization(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What pretraining and tuning have in common."""

    learning_rate: _Range = Field(
        (1e-5, 1e-2), description="both presets 0.0005; tiny ones keep a server's own weights"
    )
    batch_size: _Range = Field((8, 256), description="presets 64 and, tuning, 128; small ones part records")
    epochs: _Range = Field((1, 1000), description="both presets 30; it bounds rounds or this hospital's time")
    patience: _Range = Field((1, 1000), description="both presets 10; it bounds this hospital's time")
    output_bias: Annotated[tuple[Literal["rate", "zero"], ...], _SOME] = Field(
        ("rate", "zero"), description="paper rate, released zero"
    )
    least_steps: _Range = Field((0, 10_000), description="paper 100, released 0; it bounds this hospital's time")


class AcceptedPretraining(_AcceptedOptimization, frozen=True, extra="forbid"):
    """Section 3.3's."""

    batch_size: _Range = Field((16, 128), description="both presets 64; small ones part records")
    temperature: _Range = Field((0.05, 10), description="tau; both presets 0.8")
    contrastive_weight: _Range = Field((0, 1), description="gamma; both presets 0.01")
    mask_fraction: _Range = Field(
        (0.1, 0.5), description="both presets 0.15; little hides little, 1 makes labels of records"
    )
    mask_token_fraction: _Range = Field((0.8, 1), description="paper 1, released 0.8; 0 shows what is masked")
    random_code_fraction: _Range = Field((0, 0.2), description="paper 0, released 0.1")


class AcceptedTuning(_AcceptedOptimization, frozen=True, extra="forbid"):
    """Section 3.4's."""

    head_dropout: _Range = Field((0, 0.9), description="paper 0.5, released 0")
    prompts_per_modality: _Range = Field((0, 20), description="both presets 2")
    selection: Annotated[tuple[Literal["hospital"], ...], _SOME] = Field(
        ("hospital",), description="a federation has no other"
    )


class AcceptedEvaluation(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Section 4.1.4's."""

    threshold: _Range = Field((0.1, 0.9), description="both presets 0.3; a sweep from 0 to 1 lists medications")


class Policy(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """What a server may ask for and learn; the stage `training` of the settings is of no use at a hospital."""

    most_rounds: _Count = Field(
        600, description="different requests of rounds that are answered, in all; the same one again is free"
    )
    most_seeds: _Count = Field(5, description="different seeds that are answered, in all: each splits records anew")
    most_tunings: _Count = Field(
        10, description="different requests to tune that are answered, in all; the same one again is free"
    )
    least_training_records: _Least = Field(5, description="with fewer, this hospital trains in no round")
    least_validation_records: _Least = Field(
        5, description='with fewer, scores and the best epoch leave as "too few" and count as none'
    )
    least_test_records: _Least = Field(5, description='with fewer, test metrics leave as "too few" and count as none')
    medication_counts: _Switch = Field(
        False,
        description="whether it is told how many records have each medication; an agreement on a vocabulary has limits "
        "of its own (--minimum-count), and nothing else asks for such counts yet",
    )
    unmasked_sums: _Switch = Field(
        False,
        description="whether sums over records of this hospital alone leave as they are: now the mean gradient of the "
        "strategy scaffold",
    )
    rounds: AcceptedRounds = AcceptedRounds()
    encoder: AcceptedEncoder = AcceptedEncoder()
    pretraining: AcceptedPretraining = AcceptedPretraining()
    tuning: AcceptedTuning = AcceptedTuning()
    evaluation: AcceptedEvaluation = AcceptedEvaluation()

    def check_settings(self, settings: Settings) -> None:
        """Refuse settings that are not accepted.

        Raises:
            Refused: each that is not is named; the first with its value and what is accepted, and so is a second one.
                Of a method's own settings the default alone is accepted.
        """
        _check(
            (f"{stage}.{name}", value, allowed)
            for stage in ("encoder", "pretraining", "tuning", "evaluation")
            for name, allowed in getattr(self, stage)
            for value in [getattr(getattr(settings, stage), name)]
        )
        _check_own(settings)

    def check_round(self, asked: Mapping[str, float]) -> None:
        """Refuse a round's own numbers where they are not accepted.

        Raises:
            Refused: as for settings.
        """
        accepted = dict(self.rounds)
        _check((f"rounds.{name}", value, accepted[name]) for name, value in asked.items())

    def changed(self) -> list[str]:
        """The keys whose values are not the defaults, as `name = value`."""
        defaults = dict(_keys(Policy()))
        return [f"{name} = {_toml(value)}" for name, value in _keys(self) if value != defaults[name]]


def _check(asked: Iterable[tuple[str, Any, Any]]) -> None:
    beyond = {}
    for name, value, allowed in asked:
        if isinstance(value, str):
            if value not in allowed:
                beyond[name] = f"{name} is {printable(value, 40)}, accepted {' or '.join(allowed) or 'none'}"
        elif not allowed[0] <= value <= allowed[1]:
            beyond[name] = f"{name} is {value:g}, accepted {allowed[0]:g} to {allowed[1]:g}"
    if beyond:
        (first, *others), names = beyond.values(), list(beyond)
        # a server's operator sees 200 characters of an error
        raise Refused("; ".join([first, *others]) if len(names) < 3 else f"{first}; also {', '.join(names[1:])}")


def _check_own(settings: Settings) -> None:
    """Refuse what a method has for itself unless it is the default: no operator has looked at its file's bounds.

    Raises:
        Refused: a value is not the default, or there is no such method.
    """
    for method, values in settings.of_methods.items():
        kind = own_settings_of(adaptation(method)) if method in adaptations() else None
        if kind is None:
            raise Refused(f"{printable(method, 40)} is no method with settings of its own here")
        defaults = kind().model_dump(mode="json")
        for name in sorted(values.keys() | defaults.keys()):
            found, default = json.dumps(values.get(name)), json.dumps(defaults.get(name))
            if found != default:
                accepted = f"{default} alone" if name in defaults else "none"
                raise Refused(f"{printable(method, 40)}.{printable(name, 40)} is {found[:40]}, accepted {accepted}")


def read_policy(folder: Path) -> Policy:
    """The policy of a hospital's folder; the defaults where it has none.

    Raises:
        TemptError: the file can't be read, or holds what no policy has (all of it is named).
    """
    path = folder / FILE
    if not path.exists() and not path.is_symlink():
        return Policy()
    if not path.is_file():
        raise TemptError(f"{path}: is no file; expected a policy; delete it to have the defaults")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else printable(error, 200)
        raise TemptError(
            f"{path}: can't be read as TOML: {why}; correct it, or delete it to have the defaults"
        ) from None
    try:
        return Policy.model_validate(content)
    except ValidationError as error:
        mistakes = dict.fromkeys(_mistake(detail) for detail in error.errors())
        raise TemptError(f"{path}: {'; '.join(mistakes)}") from None


def keep_policy(folder: Path) -> Policy:
    """The policy of a hospital's folder, into which the defaults are written where it has none.

    Raises:
        TemptError: as `read_policy`; or the folder can't be written to.
    """
    policy, path = read_policy(folder), folder / FILE
    if not path.is_file():
        with replacing(path) as beside:
            beside.touch(mode=0o600)
            beside.write_text(text_of(policy), encoding="utf-8")
    return policy


def text_of(policy: Policy) -> str:
    """A policy as a file, with a comment a key."""
    lines = [_HEAD]
    for name, field in Policy.model_fields.items():
        value = getattr(policy, name)
        if isinstance(value, BaseModel):
            lines += ["", f"# {_TABLES[name]}"] if _TABLES[name] else [""]
            lines.append(f"[{name}]")
            for key, of in type(value).model_fields.items():
                lines += [f"# {of.description}", f"{key} = {_toml(getattr(value, key))}"]
        else:
            lines += [f"# {field.description}", f"{name} = {_toml(value)}"]
    return "\n".join(lines) + "\n"


def _keys(policy: Policy) -> Iterator[tuple[str, Any]]:
    """Every key of a policy by its name, with the table's before it, and its value."""
    for name, value in policy:
        if isinstance(value, BaseModel):
            yield from ((f"{name}.{key}", of) for key, of in value)
        else:
            yield name, value


def _toml(value: Any) -> str:
    return json.dumps(value)  # the same for whole numbers, decimals, switches, and lists of them or of words


def _mistake(detail: Any) -> str:
    name, (table, *key) = ".".join(str(part) for part in detail["loc"][:2]), detail["loc"][:2]
    if detail["type"] == "extra_forbidden":
        near = get_close_matches(name, [known for known, _ in _keys(Policy())], n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else "delete the line"
        return f"there is no key '{printable(name, 60)}'; {hint}"
    expected = str(detail["msg"]).removeprefix("Input should be ")
    if table in _TABLES:
        words = key and isinstance(getattr(getattr(Policy(), table), key[0])[0], str)
        expected = 'a list of words, such as ["relu"]' if words else "[least, most], two numbers in this order"
        expected = expected if key else f"a table, [{name}]"
    return f"{name} is {printable(detail['input'], 60)}, expected {expected}"
