"""A hospital with raw tables answers for one cut and one vocabulary: no server counts the codes of its choice."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from hospital_client.app import HospitalConfig, make_app
from hospital_client.check import look
from hospital_client.launch import HospitalPlace, launch
from hospital_client.one_agreement import sizes_and_digest
from server import exchange
from server.exchange import content_of
from server.federation_settings import FederationSettings
from server.plain_message import plain_message
from server.told import StatusFile
from server.vocabulary_agreement import agree
from shared_model.errors import TemptError
from shared_model.files import read_json, write_json
from shared_model.messages import Pretrain, Tune
from shared_model.settings import Settings
from shared_model.vocabulary import Vocabulary
from shared_model.vocabulary_rules import AgreementRules
from sim.inprocess_grid import InProcessGrid
from tests.hospital_client.policies import write_policy
from tests.hospital_client.raw_tables import write_tables
from tests.server.raw_consortium import LOOSE, Listening, RawConsortium, make_tables
from tests.sim import consortium

RULES = AgreementRules(minimum_count=5, **LOOSE)


@pytest.fixture
def place(tmp_path: Path) -> HospitalConfig:
    """Hospital 3 with raw tables, in which 61 stays are."""
    raw = RawConsortium(tmp_path, make_tables(4))
    return HospitalConfig(raw.raw[3], 3, tmp_path / "state", is_raw=True)


def agreed(place: HospitalConfig, rules: AgreementRules = RULES) -> tuple[Vocabulary, Listening]:
    """What the hospital agrees on with itself, and all that it answered."""
    grid = Listening({3: place})
    return agree(grid, rules, StatusFile(), timeout=None, expected=1, least=1).vocabulary, grid


def asked(
    place: HospitalConfig, kind: str, *, records: dict[str, ConfigRecord] | None = None, **more: str | int
) -> Message:
    fixed = {"minimum-count": 1, "min-records": 1, "seed": 42, "experiment": "x", "vocabulary": "f" * 64}
    config = ConfigRecord({**fixed, "settings": consortium.settings().model_dump_json()} | more)
    message = plain_message(RecordDict({"config": config} | (records or {})), f"query.{kind}", 3, number=1)
    context = Context(run_id=0, node_id=3, node_config={}, state=RecordDict(), run_config={})
    return make_app(lambda context: place)(message, context)


def cut_of(vocabulary: Vocabulary, diagnoses: int) -> dict[str, ConfigRecord]:
    content = vocabulary.content() | {"diagnoses": list(vocabulary.diagnoses[:diagnoses])}
    return {"cut": ConfigRecord({name: content[name] for name in ("diagnoses", "procedures", "medications")})}


def greeted(place: HospitalConfig, vocabulary: Vocabulary, seed: int = 42) -> Message:
    records = {"vocabulary": ConfigRecord({**vocabulary.content()})}
    return asked(place, "hello", records=records, vocabulary=vocabulary.digest, seed=seed)


def lonely(folder: Path, *diagnoses: str, common: int = 59) -> HospitalConfig:
    """Hospital 7: stays with diagnosis A, then one for each word, with a diagnosis a letter."""
    sets = ["A"] * common + list(diagnoses)
    stays = range(1, len(sets) + 1)
    tables = {
        "patient": [(stay, 7, f"p{stay}") for stay in stays],
        "diagnosis": [(stay, code, 1) for stay, codes in zip(stays, sets, strict=True) for code in codes],
        "treatment": [(stay, "t", 1) for stay in stays],
        "medication": [(stay, 5, "D", "No") for stay in stays],
    }
    return HospitalConfig(write_tables(folder / "raw", tables), 7, folder / "state", is_raw=True)


def tiny(diagnoses: list[str]) -> Vocabulary:
    return Vocabulary(tuple(diagnoses), ("t",), (5,), ("D",))


def number_of(reply: Message) -> int | None:
    """How many records a greeting told; None if it was refused."""
    if reply.has_error():
        return None
    return sum(int(str(reply.content.metric_records["metrics"][part])) for part in ("train", "validation", "test"))


def diagnoses_of(reply: Message) -> list[str]:
    return list(map(str, reply.content.config_records["codes"]["diagnoses"]))  # type: ignore[arg-type]


def assert_refused_round(place: HospitalConfig, kind: str, vocabulary: Vocabulary) -> None:
    common: dict[str, Any] = {"vocabulary": vocabulary.digest, "experiment": "x", "seed": 42, "settings": Settings()}
    exchange = {
        "round": 1,
        "serial": 1,
        "exchange": 0,
        "first_epoch": 1,
        "epochs": 1,
        "last_accepted": 0,
        "algorithm": "fedavg",
    }
    switches = dict.fromkeys(("train", "score", "only_hospital", "keep_optimizer", "bfloat16", "changed_rows"), False)
    request = (
        Tune(**common, models=["tempt"], save_scores=False)
        if kind == Tune.kind
        else Pretrain(**common, **exchange, **switches)  # type: ignore[arg-type]
    )
    message = plain_message(content_of(request, {}), request.route, 3, number=1)
    reply = make_app(lambda context: place)(message, Context(0, 3, {}, RecordDict(), {}))
    assert reply.has_error() and (reply.error.reason or "").startswith("TemptError at one_agreement.py:")


def lines_of(place: HospitalConfig) -> list[dict[str, Any]]:
    """The ledger, but for errors."""
    lines = [json.loads(line) for line in place.ledger().read_text().splitlines()]
    return [line for line in lines if "error" not in line["texts"]]


def test_a_server_that_invented_a_cut_was_told_how_many_stays_have_its_code(
    place: HospitalConfig, caplog: pytest.LogCaptureFixture
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
    place: HospitalConfig, other: dict[str, int]
) -> None:
    vocabulary, _ = agreed(place)
    (place.folder / "agreement.json").unlink()
    assert not asked(place, "vocabulary_remaining", records=cut_of(vocabulary, 9)).has_error()
    assert not asked(place, "vocabulary_remaining", records=cut_of(vocabulary, 9)).has_error()
    assert asked(place, "vocabulary_remaining", records=cut_of(vocabulary, 9), **other).has_error()


def test_a_server_that_invented_a_vocabulary_was_told_how_many_records_have_its_code(
    place: HospitalConfig, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary, _ = agreed(place)
    assert not greeted(place, vocabulary).has_error()
    one = replace(vocabulary, diagnoses=vocabulary.diagnoses[:1])
    assert greeted(place, one).has_error()
    assert f"another vocabulary; delete {place.folder / 'agreement.json'} to allow a new agreement" in caplog.text
    assert not (place.folder / "prepared" / one.digest).exists(), "so no round is answered under it either"
    assert not greeted(place, vocabulary).has_error()


def test_an_agreement_that_is_repeated_is_answered_again_in_the_same_words(place: HospitalConfig) -> None:
    first, heard = agreed(place)
    kept = (place.folder / "agreement.json").read_bytes()
    again, heard_again = agreed(place)
    assert first == again and (place.folder / "agreement.json").read_bytes() == kept
    assert [line["digest"] for line in lines_of(place)[:2]] == [line["digest"] for line in lines_of(place)[2:]]
    assert len(heard.replies) == len(heard_again.replies) == 2
    for seed in (42, 43):  # of one federation
        records = {"vocabulary": ConfigRecord({**first.content()})}
        assert not asked(place, "hello", records=records, vocabulary=first.digest, seed=seed).has_error()


def test_counts_of_tables_that_had_changed_were_told_beside_those_before(place: HospitalConfig, tmp_path: Path) -> None:
    assert not asked(place, "vocabulary_counts").has_error()
    changed = make_tables(5, {3: 61})
    assert asked(replace(place, partition=write_tables(tmp_path / "new", changed)), "vocabulary_counts").has_error()
    assert not asked(place, "vocabulary_counts").has_error()


def test_counts_were_told_for_every_minimum_in_turn(place: HospitalConfig, caplog: pytest.LogCaptureFixture) -> None:
    """Which is how many stays have each code."""
    answered = [not asked(place, "vocabulary_counts", **{"minimum-count": least}).has_error() for least in range(1, 20)]
    assert answered == [True] * 5 + [False] * 14, "the hospital's own minimum is 5, the larger holds"
    assert f"another minimum count; delete {place.folder / 'agreement.json'} to allow a new agreement" in caplog.text
    vocabulary = Vocabulary(("a",), ("b",), (1,), ("c",))
    assert asked(place, "vocabulary_remaining", records=cut_of(vocabulary, 1), **{"minimum-count": 7}).has_error()


def test_a_rare_code_was_told_by_the_difference_of_a_cut_and_a_vocabulary(tmp_path: Path) -> None:
    """60 stays have diagnosis A, and one more has B alone; that one is counted in no answer, or in each."""
    place = lonely(tmp_path, "A", "B")
    told = {}
    for cut in (["A"], ["A", "B"]):
        for named in (["A"], ["A", "B"], ["B"], ["A", "C"]):
            (place.folder / "agreement.json").unlink(missing_ok=True)
            assert diagnoses_of(asked(place, "vocabulary_counts")) == ["A"]
            remaining = asked(place, "vocabulary_remaining", records=cut_of(tiny(cut), 9))
            assert remaining.content.metric_records["metrics"]["records"] == 60
            told[*cut, "|", *named] = number_of(greeted(place, tiny(named)))
    none = ("A", "|", "A", "B"), ("A", "|", "B"), ("A", "|", "A", "C"), ("A", "B", "|", "A", "C")
    assert [key for key, number in told.items() if number is None] == list(none), "not of the cut"
    assert told["A", "B", "|", "B"] == 0, "a vocabulary without the hospital's codes is not its"
    assert {told[key] for key in told if key not in none} == {60, 0}


def test_a_vocabulary_was_asked_for_first_and_a_cut_after_it(tmp_path: Path) -> None:
    place = lonely(tmp_path, "A", "B")
    assert number_of(greeted(place, tiny(["A"]))) == 60
    assert asked(place, "vocabulary_counts").has_error()
    assert asked(place, "vocabulary_remaining", records=cut_of(tiny(["A", "B"]), 9)).has_error()
    assert number_of(greeted(place, tiny(["A"]))) == 60


def test_a_hospital_without_a_part_in_the_agreement_is_left_out_of_the_federation(tmp_path: Path) -> None:
    """Also where the server was given the vocabulary, and asks for no number of records."""
    place = lonely(tmp_path, "A", "B")
    remaining = asked(place, "vocabulary_remaining", records=cut_of(tiny(["A"]), 9), **{"min-records": 61})
    assert remaining.content.metric_records["metrics"]["records"] == 0
    plan = exchange.SeedPlan("test", 42, Settings(), FederationSettings(), tiny(["A"]))
    found, refused = exchange.greet(InProcessGrid({7: place}, None), plan)
    assert found == [] and list(refused.values()) == ["hospital 7 has 0 records, expected at least 1"]
    assert not (place.folder / "prepared").exists()


def test_rounds_were_answered_under_a_vocabulary_of_an_agreement_before(tmp_path: Path) -> None:
    place = lonely(tmp_path, "A", "B")
    assert number_of(greeted(place, tiny(["A"]))) == 60
    (place.folder / "agreement.json").unlink()
    for message in ("pretrain", "tune"):
        assert_refused_round(place, message, tiny(["A"]))
    assert number_of(greeted(place, tiny(["A", "B"]))) == 61
    assert_refused_round(place, "pretrain", tiny(["A"]))


def test_tables_that_changed_told_how_many_stays_they_had_gained(tmp_path: Path) -> None:
    place = lonely(tmp_path, "A", "B")
    assert number_of(greeted(place, tiny(["A"]))) == 60
    more = replace(place, partition=lonely(tmp_path / "more", "A", "A").partition)
    assert greeted(more, tiny(["A"])).has_error()
    assert number_of(greeted(place, tiny(["A"]))) == 60


def test_records_that_were_kept_were_told_below_a_minimum_that_was_raised(place: HospitalConfig) -> None:
    vocabulary, _ = agreed(place)
    assert not greeted(place, vocabulary).has_error()
    assert greeted(replace(place, minimum_count=1000), vocabulary).has_error()


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", '{"cut": 5}', '{"cut": {}}', '{"counts of many": {}}', '{"codes": {"diagnoses": []}}'),
        '{"cut": {"minimum_count": 5, "min_records": 1}, "codes": {"diagnoses": [], "procedures": []}}',
    ],
)
def test_a_damaged_agreement_is_one_line(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    place = lonely(tmp_path, "A", "B")
    place.folder.mkdir()
    (place.folder / "agreement.json").write_text(content)
    for reply in (
        asked(place, "vocabulary_counts"),
        asked(place, "vocabulary_remaining", records=cut_of(tiny(["A"]), 9)),
        greeted(place, tiny(["A"])),
    ):
        assert reply.has_error() and (reply.error.reason or "").startswith("TemptError at ")
    assert all("\n" not in record.getMessage() for record in caplog.records)
    assert str(place.folder / "agreement.json") in caplog.text
    assert (place.folder / "agreement.json").read_text() == content


def test_an_agreement_of_the_version_before_is_honoured_or_refused_in_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It kept no codes, and told 61 records under this cut."""
    place = lonely(tmp_path, "A", "B")
    cut, vocabulary = tiny(["A", "B"]), tiny(["A"])
    counts = asked(place, "vocabulary_counts")
    assert not counts.has_error()
    kept = read_json(place.folder / "agreement.json")
    kept["cut"] = sizes_and_digest(cut.content()) | {"minimum_count": 5, "min_records": 1}
    write_json(place.folder / "agreement.json", kept)
    assert not asked(place, "vocabulary_counts").has_error()
    assert asked(place, "vocabulary_remaining", records=cut_of(cut, 9)).has_error(), "61 would now be 60"
    assert greeted(place, vocabulary).has_error()
    assert "another cut, to a server of an earlier version; delete" in caplog.text
    write_json(place.folder / "agreement.json", kept | {"vocabulary": sizes_and_digest(vocabulary.content())})
    assert number_of(greeted(place, vocabulary)) == 60, "as it was told before"
    assert asked(place, "vocabulary_remaining", records=cut_of(cut, 9)).has_error()


_ORDERS = st.lists(
    st.one_of(
        st.tuples(st.just("counts"), st.sampled_from([1, 5, 6, 30])),
        st.tuples(
            st.just("cut"),
            st.sampled_from([1, 5, 6]),
            st.sets(st.sampled_from("ABCD"), min_size=1),
            st.sampled_from([1, 40, 60, 61]),
        ),
        st.tuples(st.just("vocabulary"), st.sampled_from([42, 43]), st.sets(st.sampled_from("ABCD"), min_size=1)),
    ),
    max_size=9,
)


@given(orders=_ORDERS, rows=st.lists(st.sampled_from(["A", "B", "AB", "AC", "C", "D", "AD"]), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_no_order_of_requests_gives_two_numbers_of_records_or_counts_at_two_minima(
    orders: list[tuple[Any, ...]], rows: list[str]
) -> None:
    """A server that means harm: whatever it asks in whichever order, there is one number, of enough records."""
    with tempfile.TemporaryDirectory() as folder:
        place = lonely(Path(folder), *(["A"] * 5 + rows), common=40)
        numbers, counts = set(), set()
        for what, *details in orders:
            if what == "counts":
                reply = asked(place, "vocabulary_counts", **{"minimum-count": details[0]})
                if not reply.has_error():
                    counts.add(tuple(diagnoses_of(reply)))
            elif what == "cut":
                least, codes, min_records = details
                more = {"minimum-count": least, "min-records": min_records}
                reply = asked(place, "vocabulary_remaining", records=cut_of(tiny(sorted(codes)), 9), **more)
                if not reply.has_error():
                    numbers.add(reply.content.metric_records["metrics"]["records"])
            else:
                seed, codes = details
                numbers.add(number_of(greeted(place, tiny(sorted(codes)), seed=seed)))
        told = numbers - {None, 0}
        assert len(told) <= 1 and len(counts) <= 1
        assert all(isinstance(number, int) and number >= 5 for number in told)


def test_the_ledger_did_not_tell_what_was_asked(place: HospitalConfig) -> None:
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


def test_fewer_records_than_the_minimum_were_counted_for_the_server(place: HospitalConfig) -> None:
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
    places = {h: HospitalConfig(own, h, tmp_path / "own" / str(h), is_raw=True) for h, own in raw.raw.items()}
    places[21] = replace(places[21], minimum_count=1000)
    rules = AgreementRules(minimum_count=1, **LOOSE)
    found = agree(InProcessGrid(places, None), rules, StatusFile(), timeout=None, expected=3, least=2)
    assert found.left_out == {"hospital 21": "0 records, expected at least 1"} and found.records[21] == 0


def test_fewer_records_than_the_minimum_were_told_by_a_greeting_or_a_round(
    place: HospitalConfig, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary, _ = agreed(place)
    place = replace(place, minimum_count=1000)
    assert greeted(place, vocabulary).has_error()
    assert "records under this vocabulary, fewer than the minimum of 1000" in caplog.text
    assert not (place.folder / "prepared" / vocabulary.digest).exists(), "so no round is answered under it either"
    assert [line["kind"] for line in lines_of(place)] == ["vocabulary_counts", "vocabulary_remaining"]


def test_a_rare_medication_was_counted_by_a_vocabulary_after_counts_without_a_cut(tmp_path: Path) -> None:
    """59 stays have medication 5, two others 666 alone: 61 records were told under both."""
    stays = range(1, 62)
    tables = {
        "patient": [(stay, 7, f"p{stay}") for stay in stays],
        "diagnosis": [(stay, "A", 1) for stay in stays],
        "treatment": [(stay, "t", 1) for stay in stays],
        "medication": [(stay, 5 if stay < 60 else 666, "D", "No") for stay in stays],
    }
    place = HospitalConfig(write_tables(tmp_path / "raw", tables), 7, tmp_path / "state", is_raw=True)
    told = asked(place, "vocabulary_counts", **{"minimum-count": 5}).content.array_records["arrays"]
    assert (told["medications"].numpy().tolist(), told["medication-counts"].numpy().tolist()) == ([5], [59])
    assert number_of(greeted(place, Vocabulary(("A",), ("t",), (5, 666), ("D", "E")))) == 59


@pytest.mark.parametrize("name", ["agreement.json", "asked.json"])
def test_a_damaged_file_of_the_hospitals_was_told_at_the_first_message(tmp_path: Path, name: str) -> None:
    tables = write_tables(tmp_path / "raw", {"patient": [(1, 7, "p")]})
    state = write_policy(tmp_path / "state")
    (state / name).write_text('{"cut": 1, "seeds": 1}')
    place = HospitalPlace("127.0.0.1:9", tables, 7, state, None, None, is_raw=True)
    with pytest.raises(TemptError, match=f"{name}: "):
        launch(place, [].append, until=lambda: True)
    (found,) = (f for f in look(place) if f.what == ("records" if name == "agreement.json" else "policy"))
    assert not found.well and name in found.found
