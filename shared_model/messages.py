"""What the server asks hospitals for: a dataclass for each message, whose fields are all the names that it has.

Both sides write and read a message's entries by them. Arrays and lists of codes travel beside the entries, by part and
name. `shared_model` knows no Flower: `server/exchange.py` makes its records of a message, and
`hospital_client/app.py` reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, TypeVar, cast, get_type_hints

from shared_model.errors import printable
from shared_model.federated_algorithm import UPDATE
from shared_model.settings import Settings
from shared_model.transport import Transport

Entry = bool | int | float | str | list[str]
Found = TypeVar("Found", bound="Request")
ENTRIES, TENSORS, CUT, VOCABULARY = "config", UPDATE, "cut", "vocabulary"
"""The records of a message: its entries, its tensors, and lists of codes."""
_ASKED = "asked."


@dataclass(frozen=True, kw_only=True)
class Request:
    """A message to a hospital.

    Attributes:
        kind: names it in the ledger.
        route: Flower's name of the kind.
        limit: seconds that the hospital's work may take; 0 for no limit.
    """

    kind: ClassVar[str]
    route: ClassVar[str]
    limit: float = 0.0

    def entries(self) -> dict[str, Entry]:
        """Its fields as they travel."""
        found: dict[str, Entry] = {}
        for name in _types(type(self)):  # type: ignore[arg-type]
            value = getattr(self, name)
            if isinstance(value, Mapping):
                found |= {f"{_ASKED}{key}": float(of) for key, of in value.items()}
            else:
                found[_key(name)] = value.model_dump_json() if isinstance(value, Settings) else value
        return found

    @classmethod
    def of(cls: type[Found], entries: Mapping[str, object]) -> Found:
        """What another side has written.

        Raises:
            ValueError: the first entry that is missing or of another type.
        """
        found: dict[str, Any] = {}
        for name, kind in _types(cls).items():  # type: ignore[arg-type]
            key, value = _key(name), entries.get(_key(name))
            if name == "asked":
                found[name] = {
                    key.removeprefix(_ASKED): _number(key, of) for key, of in entries.items() if key.startswith(_ASKED)
                }
            elif kind is float:
                found[name] = _number(key, value) if key in entries or name != "limit" else 0.0
            elif kind is Settings:
                found[name] = _settings(cast(str, _of_type(key, value, str)))
            elif kind == list[str]:
                words = cast(list[Any], _of_type(key, value, list))
                found[name] = [_of_type(key, word, str) for word in words]
            else:
                found[name] = _of_type(key, value, kind)
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class CountCodes(Request):
    """Which codes raw tables hold, and in how many stays.

    Attributes:
        minimum_count: stays below which no code is told.
        min_records: a hospital with fewer has no part in the vocabulary.
    """

    kind = "vocabulary_counts"
    route = "query.vocabulary_counts"
    minimum_count: int
    min_records: int


@dataclass(frozen=True, kw_only=True)
class CountRemaining(CountCodes):
    """What remains under a cut, which is the record `CUT` of the message."""

    kind = "vocabulary_remaining"
    route = "query.vocabulary_remaining"


@dataclass(frozen=True, kw_only=True)
class OfSeed(Request):
    """A message of one seed of a federation.

    Attributes:
        experiment: names what hospitals keep of this run, so that no other run's state is gone on with.
        vocabulary: the digest of that which all records are written in.
    """

    experiment: str
    seed: int
    settings: Settings
    vocabulary: str


@dataclass(frozen=True, kw_only=True)
class Hello(OfSeed):
    """Who is there, and with how many records; the vocabulary is the record `VOCABULARY` of the message."""

    kind = "hello"
    route = "query.hello"


@dataclass(frozen=True, kw_only=True)
class Pretrain(OfSeed):
    """An exchange of a round; the tensors to score and to begin with are the part `TENSORS` of the message.

    Attributes:
        train: whether to do what the algorithm asks for.
        score: whether to score the tensors that came, which is the last round's validation.
        exchange: of the round, from 0 on; `serial` counts them over all rounds, from 1 on.
        first_epoch: the first local epoch's number, from 1, over all rounds.
        epochs: local ones, of an exchange that trains.
        last_accepted: the serial of the last exchange of which this hospital's answer was taken, 0 for none.
        only_hospital: the federation has no other, and draws as the centralized run does.
        asked: the algorithm's own numbers.
    """

    kind = "pretrain"
    route = "train.pretrain"
    round: int
    serial: int
    exchange: int
    train: bool
    score: bool
    first_epoch: int
    epochs: int
    only_hospital: bool
    last_accepted: int
    algorithm: str
    keep_optimizer: bool
    bfloat16: bool
    changed_rows: bool
    asked: Mapping[str, float] = field(default_factory=dict)

    @property
    def transport(self) -> Transport:
        """How tensors are written, both ways."""
        return Transport(bfloat16=self.bfloat16, changed_rows=self.changed_rows)


@dataclass(frozen=True, kw_only=True)
class Tune(OfSeed):
    """Adapt the encoder that is the part `TENSORS` of the message by each of these methods, and measure."""

    kind = "tune"
    route = "train.tune"
    models: list[str]
    save_scores: bool


REQUESTS: tuple[type[Request], ...] = (CountCodes, CountRemaining, Hello, Pretrain, Tune)


@lru_cache
def _types(of: type[Request]) -> dict[str, Any]:
    """The types of a message's fields, by name."""
    hints = get_type_hints(of)
    return {each.name: hints[each.name] for each in dataclasses.fields(of)}


def _key(name: str) -> str:
    return name.replace("_", "-")


def _of_type(key: str, value: object, kind: type) -> object:
    if type(value) is not kind:
        raise ValueError(f"the entry '{key}' is {printable(value, 40)}, expected {kind.__name__}")
    return value


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"the entry '{key}' is {printable(value, 40)}, expected a number")
    return float(value)


@lru_cache(maxsize=1)
def _settings(text: str) -> Settings:
    return Settings.model_validate_json(text)
