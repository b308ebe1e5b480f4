"""A hospital with raw tables answers for one cut and one vocabulary: no server counts the codes of its choice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from hospital_client.app import Place, make_app
from server.plain_message import plain_message
from server.told import Told
from server.vocabulary_agreement import agree
from shared_model.files import read_json
from shared_model.vocabulary import Vocabulary
from shared_model.vocabulary_rules import AgreementRules
from sim.inprocess_grid import InProcessGrid
from tests.hospital_client.raw_tables import write_tables
from tests.server.raw_consortium import LOOSE, Listening, RawConsortium, make_tables

RULES = AgreementRules(minimum_count=5, **LOOSE)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Hospital 3 with raw tables, in which 61 stays are."""
    raw = RawConsortium(tmp_path, make_tables(4))
    return Place(raw.raw[3], 3, tmp_path / "state", is_raw=True)


def agreed(place: Place, rules: AgreementRules = RULES) -> tuple[Vocabulary, Listening]:
    """What the hospital agrees on with itself, and all that it answered."""
    grid = Listening({3: place})
    return agree(grid, rules, Told(), timeout=None, expected=1, least=1).vocabulary, grid


def asked(place: Place, kind: str, *, records: dict[str, ConfigRecord] | None = None, **more: str | int) -> Message:
    config = ConfigRecord({"minimum-count": 1, "min-records": 1, "seed": 42} | more)
    message = plain_message(RecordDict({"config": config} | (records or {})), f"query.{kind}", 3, number=1)
    context = Context(run_id=0, node_id=3, node_config={}, state=RecordDict(), run_config={})
    return make_app(lambda context: place)(message, context)


def cut_of(vocabulary: Vocabulary, diagnoses: int) -> dict[str, ConfigRecord]:
    content = vocabulary.content() | {"diagnoses": list(vocabulary.diagnoses[:diagnoses])}
    return {"cut": ConfigRecord({name: content[name] for name in ("diagnoses", "procedures", "medications")})}


def greeted(place: Place, vocabulary: Vocabulary) -> Message:
    records = {"vocabulary": ConfigRecord({**vocabulary.content()})}
    return asked(place, "hello", records=records, vocabulary=vocabulary.digest)


def lines_of(place: Place) -> list[dict[str, Any]]:
    """The ledger, but for errors."""
    lines = [json.loads(line) for line in place.ledger().read_text().splitlines()]
    return [line for line in lines if "error" not in line["texts"]]


def test_a_server_that_invented_a_cut_was_told_how_many_stays_have_its_code(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary, _ = agreed(place)
    before = lines_of(place)
    for diagnoses in (1, 2):
        reply = asked(place, "vocabulary_remaining", records=cut_of(vocabulary, diagnoses))
        assert reply.has_error() and (reply.error.reason or "").startswith("TemptError at one_agreement.py:")
    assert lines_of(place) == before, "nothing left"
    refused = [record.getMessage() for record in caplog.records]
    assert len(refused) == 2 and all("\n" not in line for line in refused)
    assert f"another cut; delete {place.folder / 'agreement.json'} to allow a new agreement" in refused[0]

    (place.folder / "agreement.json").unlink()
    assert not asked(place, "vocabulary_remaining", records=cut_of(vocabulary, 1)).has_error()
    assert asked(place, "vocabulary_remaining", records=cut_of(vocabulary, 2)).has_error()


@pytest.mark.parametrize("other", [{"minimum-count": 7}, {"min-records": 9}])
def test_a_server_that_repeated_a_cut_with_other_limits_was_told_more_of_it(
    place: Place, other: dict[str, int]
) -> None:
    vocabulary, _ = agreed(place)
    (place.folder / "agreement.json").unlink()
    assert not asked(place, "vocabulary_remaining", records=cut_of(vocabulary, 9)).has_error()
    assert not asked(place, "vocabulary_remaining", records=cut_of(vocabulary, 9)).has_error()
    assert asked(place, "vocabulary_remaining", records=cut_of(vocabulary, 9), **other).has_error()


def test_a_server_that_invented_a_vocabulary_was_told_how_many_records_have_its_code(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary, _ = agreed(place)
    assert not greeted(place, vocabulary).has_error()
    one = replace(vocabulary, diagnoses=vocabulary.diagnoses[:1])
    assert greeted(place, one).has_error()
    assert f"another vocabulary; delete {place.folder / 'agreement.json'} to allow a new agreement" in caplog.text
    assert not (place.folder / "prepared" / one.digest).exists(), "so no round is answered under it either"
    assert not greeted(place, vocabulary).has_error()


def test_an_agreement_that_is_repeated_is_answered_again_in_the_same_words(place: Place) -> None:
    first, heard = agreed(place)
    kept = (place.folder / "agreement.json").read_bytes()
    again, heard_again = agreed(place)
    assert first == again and (place.folder / "agreement.json").read_bytes() == kept
    assert [line["digest"] for line in lines_of(place)[:2]] == [line["digest"] for line in lines_of(place)[2:]]
    assert len(heard.replies) == len(heard_again.replies) == 2
    for seed in (42, 43):  # of one federation
        records = {"vocabulary": ConfigRecord({**first.content()})}
        assert not asked(place, "hello", records=records, vocabulary=first.digest, seed=seed).has_error()


def test_counts_of_tables_that_had_changed_were_told_beside_those_before(place: Place, tmp_path: Path) -> None:
    assert not asked(place, "vocabulary_counts").has_error()
    assert not asked(place, "vocabulary_counts", **{"minimum-count": 9}).has_error(), "a server may want fewer codes"
    changed = make_tables(5, {3: 61})
    assert asked(replace(place, partition=write_tables(tmp_path / "new", changed)), "vocabulary_counts").has_error()
    assert not asked(place, "vocabulary_counts").has_error()


def test_the_ledger_did_not_tell_what_was_asked(place: Place) -> None:
    vocabulary, _ = agreed(place)
    greeted(place, vocabulary)
    counts, remaining, hello = lines_of(place)
    kept = read_json(place.folder / "agreement.json")
    sizes = {name: len(getattr(vocabulary, name)) for name in ("diagnoses", "procedures", "medications")}
    assert "asked" not in counts
    assert remaining["asked"] == {name: kept["cut"][name] for name in (*sizes, "digest")}
    assert hello["asked"] == kept["vocabulary"] == sizes | {"digest": vocabulary.digest}
    assert counts["digest"] == kept["counts of 5"]["digest"]


# ------------------------------------------------------------------------------------------------ few records


def test_fewer_records_than_the_minimum_were_counted_for_the_server(place: Place) -> None:
    vocabulary, _ = agreed(place)
    records = {}
    for minimum in (1, 1000):
        (place.folder / "agreement.json").unlink()
        own = replace(place, minimum_count=minimum)
        reply = asked(own, "vocabulary_remaining", records=cut_of(vocabulary, 99))
        records[minimum] = reply.content.metric_records["metrics"]["records"]
    assert records == {1: 28, 1000: 0}


def test_a_hospital_with_fewer_records_than_its_minimum_is_left_out_of_an_agreement(tmp_path: Path) -> None:
    raw = RawConsortium(tmp_path, make_tables(4))
    places = {h: Place(own, h, tmp_path / "own" / str(h), is_raw=True) for h, own in raw.raw.items()}
    places[21] = replace(places[21], minimum_count=1000)
    rules = AgreementRules(minimum_count=1, **LOOSE)
    found = agree(InProcessGrid(places, None), rules, Told(), timeout=None, expected=3, least=2)
    assert found.left_out == {"hospital 21": "0 records, expected at least 1"} and found.records[21] == 0


def test_fewer_records_than_the_minimum_were_told_by_a_greeting_or_a_round(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary, _ = agreed(place)
    place = replace(place, minimum_count=1000)
    assert greeted(place, vocabulary).has_error()
    assert "records under this vocabulary, fewer than the minimum of 1000" in caplog.text
    assert not (place.folder / "prepared" / vocabulary.digest).exists(), "so no round is answered under it either"
    assert [line["kind"] for line in lines_of(place)] == ["vocabulary_counts", "vocabulary_remaining"]
