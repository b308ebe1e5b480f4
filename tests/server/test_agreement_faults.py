"""Answers of an agreement that are wrong: each leaves its hospital out by name, and changes nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from hospital_client.app import HospitalConfig
from hospital_client.preparation import prepare
from hospital_client.preparation_options import PreparationOptions
from server import exchange
from server.federation_settings import FederationSettings
from server.told import StatusFile
from server.vocabulary_agreement import Agreement, agree
from shared_model.errors import TooFewHospitals
from shared_model.vocabulary import read_vocabulary
from shared_model.vocabulary_rules import AgreementRules
from sim.inprocess_grid import InProcessGrid
from tests.server.raw_consortium import LOOSE, Listening, RawConsortium, Tables, agreed, make_tables
from tests.server.test_faults import Clock, HandOnTheLine
from tests.sim import consortium

BAD = 8
Change = Callable[[RecordDict], None]


def _list(name: str, change: Callable[[list[Any]], Any]) -> Change:
    def tamper(content: RecordDict) -> None:
        lists = dict(content.config_records["codes"])
        content["codes"] = ConfigRecord(lists | {name: change(list(lists[name]))})  # type: ignore[arg-type]

    return tamper


def _array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def tamper(content: RecordDict) -> None:
        record = content.array_records["arrays"]
        record[name] = Array(change(record[name].numpy().copy()))

    return tamper


def _number(name: str, value: Any) -> Change:
    def tamper(content: RecordDict) -> None:
        content.metric_records["metrics"][name] = value

    return tamper


def _more(record: str, name: str) -> Change:
    def tamper(content: RecordDict) -> None:
        if record == "codes":
            content.config_records["codes"][name] = ["a"]
        else:
            content.array_records["arrays"][name] = Array(np.zeros(2))

    return tamper


def _lies(content: RecordDict) -> None:
    record, other = content.array_records["arrays"], Array(np.arange(7.0))
    honest = record["medications"]
    record["medications"] = Array(dtype=honest.dtype, shape=honest.shape, stype=honest.stype, data=other.data)


def _set(place: int, value: Any) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values[place] = value
        return values

    return change


COUNTS: dict[str, tuple[Change, str]] = {
    "numbers for codes": (_list("diagnoses", lambda codes: [1, 2]), "diagnoses: number 1 is no text"),
    "one text for a list": (_list("procedures", lambda codes: "area"), "procedures is str, expected a list"),
    "an empty code": (_list("diagnoses", _set(0, "")), "diagnoses: number 1 is no text of 1 to 200 "),
    "a blank at its end": (_list("diagnoses", _set(2, "250.0 ")), "diagnoses: number 3 is no text"),
    "a code without end": (_list("procedures", _set(1, "x" * 201)), "procedures: number 2 is no text"),
    "orders to a terminal": (_list("diagnoses", _set(0, "\x1b[2J")), "diagnoses: number 1 is no text"),
    "text from right to left": (_list("procedures", _set(1, "a\u202eb")), "procedures: number 2 is no text"),
    "no text at all": (_list("procedures", _set(1, "\ud800")), "procedures: number 2 is no text"),
    "codes without end": (_list("diagnoses", lambda codes: [f"{i:06}" for i in range(20_001)]), "20,001 texts"),
    "a code twice": (_list("diagnoses", lambda codes: [codes[0], *codes]), "diagnoses: not in ascending order"),
    "any order": (_list("procedures", lambda codes: codes[::-1]), "procedures: not in ascending order"),
    "a code more": (_list("procedures", lambda codes: [*codes, "~"]), "procedure-counts is int64"),
    "a count below zero": (_array("procedure-counts", _set(0, -4)), "procedure-counts holds -4, expected 2 to"),
    "a count below the minimum": (_array("medication-counts", _set(0, 1)), "medication-counts holds 1, expected 2"),
    "a count beyond all": (_array("medication-counts", _set(0, 2**40)), "medication-counts holds 1099511627776"),
    "half counts": (_array("procedure-counts", lambda a: a + 0.5), "procedure-counts is float64"),
    "a table of counts": (_array("procedure-counts", lambda a: a[None]), "procedure-counts is int64[1, "),
    "a medication twice": (_array("medications", lambda a: np.sort(_set(0, a[1])(a))), "medications: not in ascending"),
    "medications without end": (_array("medications", lambda a: np.arange(20_001)), "has 20,001 numbers"),
    "a lying type": (_lies, "medications is float64[7]"),
    "another list": (_more("codes", "stays"), "stays came, and nobody asked for it"),
    "another array": (_more("arrays", "diagnoses"), "diagnoses came, and nobody asked for it"),
    "no lists": (lambda content: content.pop("codes"), "diagnoses is missing"),  # type: ignore[dict-item]
    "no arrays": (lambda content: content.pop("arrays"), "no tensors"),  # type: ignore[dict-item]
    "no numbers": (lambda content: content.pop("metrics"), "no numbers"),  # type: ignore[dict-item]
    "a minimum of its own": (_number("minimum-count", 1), "minimum-count is 1, expected at least 2"),
    "no hospital": (_number("hospital", 0), "hospital is 0"),
}
REMAINING: dict[str, tuple[Change, str]] = {
    "another hospital": (_number("hospital", 3), "says that it is hospital 3, expected 8"),
    "records below zero": (_number("records", -1), "records is -1"),
    "half a record": (_number("records", 7.5), "records is 7.5, expected a whole number"),
    "records without end": (_number("records", 10**12), "records is 1000000000000, expected at most"),
    "a mask too short": (_array("diagnoses", lambda a: a[1:]), "diagnoses is bool["),
    "marks that are numbers": (_array("medications", lambda a: a.astype(np.int64)), "medications is int64["),
    "a medication that is none": (_array("named", _set(-1, 10**6)), "named holds 1000000, expected 0 to"),
    "a name without a count": (_list("names", lambda names: [*names, "z"]), "named is int64"),
    "a name of two lines": (_list("names", _set(0, "A\nB")), "names: number 1 is no text"),
    "a name too long": (_list("names", _set(0, "A" * 201)), "names: number 1 is no text"),
    "two names of one": (_array("named", lambda a: np.sort(_set(0, a[1])(a))), "named: not in ascending order"),
    "counts of names": (_more("arrays", "name-counts"), "name-counts came, and nobody asked for it"),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> RawConsortium:
    return RawConsortium(tmp_path_factory.mktemp("consortium"), make_tables(4))


@pytest.fixture(scope="module")
def sound(raw: RawConsortium) -> Agreement:
    return agreed(raw.places(), 2)


@pytest.fixture(scope="module")
def without(raw: RawConsortium) -> Agreement:
    """What the others agree on."""
    return agreed({h: place for h, place in raw.places().items() if h != BAD}, 2)


def tampered(raw: RawConsortium, group: str, change: Change) -> Agreement:
    def tamper(reply: Message) -> Message:
        change(reply.content)
        return reply

    grid = HandOnTheLine(raw.places(), tamper, hospital=BAD, group=group)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exchange, "time", Clock())
        return agree(grid, AgreementRules(minimum_count=2, **LOOSE), StatusFile(), timeout=60, expected=3, least=2)


@pytest.mark.parametrize("fault", COUNTS)
def test_counts_that_are_wrong_are_left_out_by_name_as_if_never_asked(
    raw: RawConsortium, sound: Agreement, without: Agreement, fault: str
) -> None:
    change, words = COUNTS[fault]
    found = tampered(raw, "counts", change)
    (why,) = found.left_out.values()
    assert list(found.left_out) == [f"node {BAD}"] and words in why, why
    assert why.startswith(f"hospital {BAD}: ") or fault.startswith("no "), why
    assert found.vocabulary == without.vocabulary != sound.vocabulary


@pytest.mark.parametrize("fault", REMAINING)
def test_what_remains_that_is_wrong_is_left_out_by_name(raw: RawConsortium, sound: Agreement, fault: str) -> None:
    change, words = REMAINING[fault]
    found = tampered(raw, "remaining", change)
    assert list(found.left_out) == [f"hospital {BAD}"] and words in found.left_out[f"hospital {BAD}"], found.left_out
    assert sorted(found.records) == [3, 21]
    assert set(found.vocabulary.diagnoses) < set(sound.vocabulary.diagnoses), "its own are of no kept hospital"


def test_codes_of_a_hospital_with_too_few_records_do_not_count_even_if_it_tells_them(
    raw: RawConsortium, sound: Agreement
) -> None:
    found = tampered(raw, "remaining", _number("records", 0))
    assert found.left_out == {f"hospital {BAD}": "0 records, expected at least 1"}
    assert set(found.vocabulary.diagnoses) < set(sound.vocabulary.diagnoses)


def test_a_hospital_with_thousands_of_made_up_codes_blew_the_vocabulary_up_for_all(
    raw: RawConsortium, without: Agreement
) -> None:
    found = tampered(raw, "counts", _list("diagnoses", lambda codes: [f"{i:06}" for i in range(20_000)]))
    (why,) = found.left_out.values()
    assert list(found.left_out) == [f"hospital {BAD}"]
    assert why.startswith("it told most of 20,0") and why.endswith("diagnoses, expected at most 20,000"), why
    assert found.vocabulary == without.vocabulary


def _renames(content: RecordDict) -> None:
    """Every medication that the hospital has, with a name that sorts before all others."""
    _list("names", lambda names: [f"A{place:05}" for place in range(len(names))])(content)


def test_a_hospital_that_was_left_out_renamed_everybodys_medications(raw: RawConsortium) -> None:
    def change(content: RecordDict) -> None:
        _renames(content)
        _number("records", 0)(content)

    honest = tampered(raw, "remaining", _number("records", 0)).vocabulary
    assert tampered(raw, "remaining", change).vocabulary == honest


def test_one_hospital_renamed_medications_that_two_others_call_the_same(raw: RawConsortium) -> None:
    own = [agreed({h: place}, 2).vocabulary for h, place in raw.places().items() if h != BAD]
    called = [dict(zip(v.medications, v.medication_names, strict=True)) for v in own]
    alike = {code: name for code, name in called[0].items() if called[1].get(code) == name and "DRUG" in name}
    assert len(alike) > 1
    found = tampered(raw, "remaining", _renames).vocabulary
    names = dict(zip(found.medications, found.medication_names, strict=True))
    assert {code: names[code] for code in alike} == alike
    assert any(name.startswith("A0") for name in names.values()), "where it is the only one, it has the say"


def test_a_hospital_that_says_that_it_is_another_is_not_believed(raw: RawConsortium, without: Agreement) -> None:
    class Named(Listening):
        def get_nodes(self) -> list[NodeInfo]:
            return [NodeInfo(node_id=number, name=f"hospital-{number}") for number in self.get_node_ids()]

        def pull_messages(self, message_ids: Any) -> Any:
            for reply in super().pull_messages(message_ids):
                if reply.metadata.src_node_id == BAD:
                    reply.content.metric_records["metrics"]["hospital"] = 3
                yield reply

    grid = Named(raw.places())
    found = agree(grid, AgreementRules(minimum_count=2, **LOOSE), StatusFile(), timeout=None, expected=3, least=2)
    assert found.left_out == {f"node {BAD}": f"its key is hospital-{BAD}'s, but it says that it is hospital 3"}
    assert found.vocabulary == without.vocabulary


def test_a_hospital_whose_records_are_prepared_cannot_be_counted(raw: RawConsortium, tmp_path: Path) -> None:
    options = PreparationOptions(min_records=1)
    prepare(raw.raw[BAD], tmp_path / "dataset", options)
    digest = read_vocabulary(tmp_path / "dataset" / "vocabulary.json").digest
    places = raw.places() | {BAD: HospitalConfig(tmp_path / "dataset", BAD, tmp_path / "state")}
    found = agreed(places, 2)
    assert list(found.left_out) == [f"node {BAD}"]
    assert f"prepared under the vocabulary '{digest[:12]}'" in found.left_out[f"node {BAD}"]
    # and it is told both digests when it is greeted
    plan = exchange.SeedPlan("test", 42, consortium.settings(), FederationSettings(), found.vocabulary)
    hospitals, refused = exchange.greet(InProcessGrid(places, None), plan)
    assert [h.hospital for h in hospitals] == [3, 21]
    assert digest[:12] in refused[f"node {BAD}"] and found.vocabulary.digest[:12] in refused[f"node {BAD}"]
    with pytest.raises(
        TooFewHospitals, match=r"2 hospitals of 3, expected at least 3; node 8: hospital 8: its records"
    ):
        agreed(places, 2, least=3)


def test_without_a_code_that_enough_records_have_there_is_no_vocabulary(raw: RawConsortium, tmp_path: Path) -> None:
    with pytest.raises(TooFewHospitals, match="0 hospitals of 3, expected at least 1; hospital 3: 0 records"):
        agreed(raw.places(), 1000)
    tables: Tables = {  # five stays have each diagnosis; the six that have all three have each of them three times
        "patient": [(stay, 3, "A") for stay in range(1, 11)],
        "diagnosis": [(stay, "I10" if stay % 2 else "I11", 0) for stay in range(1, 11)],
        "treatment": [(stay, "a|b", 0) for stay in range(1, 7)],
        "medication": [(stay, "7", "", "No") for stay in range(1, 7)],
    }
    few = RawConsortium(tmp_path, tables)
    assert agreed(few.places(), 2).records == {3: 6}
    with pytest.raises(TooFewHospitals, match="0 hospitals of 1, expected at least 1; hospital 3: 0 records"):
        agreed(few.places(), 5)
