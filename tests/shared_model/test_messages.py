"""Messages: what one side writes the other reads, and what is missing or of another type is refused by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest

from shared_model.messages import REQUESTS, CountCodes, CountRemaining, Hello, Pretrain, Request, Tune
from shared_model.settings import Settings

OF_SEED: dict[str, Any] = {
    "experiment": "ab-1",
    "seed": 42,
    "settings": Settings(),
    "vocabulary": "f" * 64,
    "limit": 1.5,
}
EXCHANGE: dict[str, Any] = {
    **{
        "round": 3,
        "serial": 6,
        "exchange": 1,
        "first_epoch": 5,
        "epochs": 2,
        "last_accepted": 4,
        "algorithm": "fedprox",
    },
    **{"train": True, "score": False, "only_hospital": False, "keep_optimizer": True},
    **{"bfloat16": True, "changed_rows": False, "asked": {"proximal_mu": 0.5}},
}
MESSAGES: list[Request] = [
    CountCodes(minimum_count=5, min_records=1),
    CountRemaining(minimum_count=5, min_records=1, limit=30.0),
    Hello(**OF_SEED),
    Pretrain(**OF_SEED, **EXCHANGE),
    Tune(**OF_SEED, models=["tempt", "finetune"], save_scores=True),
]


def test_every_kind_is_tried_here() -> None:
    assert [type(message) for message in MESSAGES] == list(REQUESTS)
    assert len({kind.kind for kind in REQUESTS}) == len(REQUESTS)
    assert all(kind.route in (f"query.{kind.kind}", f"train.{kind.kind}") for kind in REQUESTS)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.kind)
def test_what_is_written_is_read(message: Request) -> None:
    entries = message.entries()
    assert type(message).of(entries) == message
    assert all(type(value) in (bool, int, float, str, list) for value in entries.values()), "what Flower's records hold"


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.kind)
def test_each_entry_that_is_missing_or_of_another_type_is_named(message: Request) -> None:
    entries = message.entries()
    for key in entries:
        if key != "limit" and not key.startswith("asked."):
            with pytest.raises(ValueError, match=f"the entry '{key}' is None, expected"):
                type(message).of({name: value for name, value in entries.items() if name != key})
        wrong = {"1": 1} if isinstance(entries[key], str) else "1"
        with pytest.raises(ValueError, match=f"the entry '{key}' is .*, expected"):
            type(message).of(entries | {key: wrong})


def test_switches_are_no_numbers_and_numbers_no_switches() -> None:
    entries = MESSAGES[3].entries()
    for key, wrong in (("round", True), ("train", 1), ("asked.proximal_mu", False), ("limit", True), ("seed", 1.0)):
        with pytest.raises(ValueError, match=f"the entry '{key}' is {wrong}, expected"):
            Pretrain.of(entries | {key: wrong})
    assert Pretrain.of(entries | {"asked.proximal_mu": 1}).asked == {"proximal_mu": 1.0}, "a whole number is one"
    with pytest.raises(ValueError, match="the entry 'models' is 7, expected str"):
        Tune.of(MESSAGES[4].entries() | {"models": ["tempt", 7]})


def test_a_message_without_a_limit_has_none_and_other_entries_say_nothing() -> None:
    entries = Hello(**OF_SEED).entries()
    del entries["limit"]
    assert Hello.of(entries | {"more": 1}).limit == 0


def test_fields_are_of_types_that_can_be_read() -> None:
    """A field of another type would be taken without a look at what is in it."""
    for kind in REQUESTS:
        hints = get_type_hints(kind)
        for each in fields(kind):
            found = hints[each.name]
            assert found in (bool, int, float, str, Settings, list[str]) or get_args(found) == (str, float), each
