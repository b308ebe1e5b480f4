"""Hospitals agree on the vocabulary that `tempt prepare` makes of them together, and tell no more than they must."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import event, given, settings
from hypothesis import strategies as st

from hospital_client.app import HospitalConfig
from hospital_client.cli import launch
from hospital_client.preparation import prepare_in_memory
from hospital_client.preparation_options import PreparationOptions
from server.told import StatusFile
from server.vocabulary_agreement import agree
from shared_model.errors import TemptError, TooFewHospitals
from shared_model.records import RecordSet
from shared_model.vocabulary_rules import AgreementRules
from tests.hospital_client.raw_tables import write_tables
from tests.hospital_client.test_eicu import _HICL, _OFFSETS, _padded
from tests.server.raw_consortium import (
    LOOSE,
    Listening,
    RawConsortium,
    Tables,
    agreed,
    make_tables,
    records_under,
    secrets,
    stays_of,
)


def assert_same_records(found: RecordSet, expected: RecordSet) -> None:
    """Bit for bit; patients are numbered within a hospital, in the same order."""
    for name in ("diagnoses", "procedures", "medications"):
        assert torch.equal(getattr(found, name).codes, getattr(expected, name).codes), name
        assert torch.equal(getattr(found, name).offsets, getattr(expected, name).offsets), name
    assert torch.equal(found.stay, expected.stay) and torch.equal(found.hospital, expected.hospital)
    assert torch.equal(found.patient, torch.unique(expected.patient, return_inverse=True)[1])


# ------------------------------------------------------------------------------------------------ with minimum 1

_TEXTS = {
    "diagnosis": _padded(st.sampled_from(["", "I10", "401.9, I10", "i10", "é"])),
    "treatment": _padded(st.sampled_from(["", "a|b", "a|é", "a", "B", "a\x1b[2J"])),
}
_STAYS = st.integers(1, 10)  # 10 is nobody's
_TABLES = st.fixed_dictionaries(
    {
        "patient": st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["p", "q", "P"])), min_size=3, max_size=9).map(
            lambda rows: [(stay, *row) for stay, row in enumerate(rows, start=1)]
        ),
        "diagnosis": st.lists(st.tuples(_STAYS, _TEXTS["diagnosis"], _OFFSETS), min_size=12),
        "treatment": st.lists(st.tuples(_STAYS, _TEXTS["treatment"], _OFFSETS), min_size=12),
        "medication": st.lists(
            st.tuples(_STAYS, _HICL, _padded(st.sampled_from(["", "aspirin", "ASPIRIN", "x\ny"])), st.just("No")),
            min_size=12,
        ),
    }
).map(lambda tables: _with_a_row(tables))


def _with_a_row(tables: Tables) -> Tables:
    """A row without a code for a stay of each hospital: no table is empty."""
    stays = {hospital: stay for stay, hospital, _ in tables["patient"]}
    for stay in stays.values():
        tables["diagnosis"].append((stay, "", 0))
        tables["treatment"].append((stay, "", 0))
        tables["medication"].append((stay, "", "", "No"))
    return tables


def _printable(tables: Tables) -> Tables:
    """The same tables without what hospitals do not tell each other: texts that are no line to be read."""
    return {n: [tuple(v if str(v).strip().isprintable() else "" for v in row) for row in tables[n]] for n in tables}


@given(
    tables=_TABLES,
    min_records=st.sampled_from([1, 1, 2, 3]),
    top_medications=st.integers(1, 5),
    top_procedures=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_where_every_code_is_named_it_is_the_vocabulary_and_the_records_of_prepare(
    tables: Tables, min_records: int, top_medications: int, top_procedures: int
) -> None:
    rules = {"min_records": min_records, "top_medications": top_medications, "top_procedures": top_procedures}
    with tempfile.TemporaryDirectory() as folder:
        raw = RawConsortium(Path(folder), tables)
        places = raw.places()
        try:
            printable = write_tables(raw.folder / "printable", _printable(tables))
            expected = prepare_in_memory(printable, PreparationOptions(**rules))[0]
        except TemptError:
            event("no record")
            with pytest.raises(TooFewHospitals, match="the vocabulary agreement: 0 hospitals"):
                agreed(places, **rules)
            return
        event(f"{len(expected.records.hospitals)} hospitals of {len(places)}")
        found = agreed(places, **rules)
        assert found.vocabulary == expected.vocabulary
        assert set(found.left_out) == {f"hospital {h}" for h in set(places) - set(expected.records.hospitals)}
        records = records_under(found.vocabulary, places, min_records)
    assert sorted(records) == expected.records.hospitals
    for hospital, own in records.items():
        assert_same_records(own, expected.records.of_hospital(hospital))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_larger_tables_agree_as_they_are_prepared(tmp_path: Path, seed: int) -> None:
    """With cuts that bite: some records lose a set, a hospital its place, a name its majority."""
    raw = RawConsortium(tmp_path, make_tables(seed))
    rules = {"min_records": 21, "top_medications": 9, "top_procedures": 11}
    expected = prepare_in_memory(raw.all, PreparationOptions(**rules))[0]
    assert 0 < len(expected.records.hospitals) < len(raw.raw)
    found = agreed(raw.places(), **rules)
    assert found.vocabulary == expected.vocabulary
    for hospital, own in records_under(found.vocabulary, raw.places(), 21).items():
        assert_same_records(own, expected.records.of_hospital(hospital))


# ------------------------------------------------------------------------------------------------ what is told


@pytest.mark.parametrize(("asked", "own"), [(5, 1), (2, 4), (3, 3)])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_hospital_tells_nothing_that_fewer_stays_have(tmp_path: Path, seed: int, asked: int, own: int) -> None:
    """Every reply is read: for rare codes and names, for stays and patients, and for a count or mark too much."""
    raw, minimum = RawConsortium(tmp_path, make_tables(seed)), max(asked, own)
    grid = Listening(raw.places(minimum_count=own))
    rules = AgreementRules(minimum_count=asked, min_records=1, top_medications=12, top_procedures=14)
    agree(grid, rules, StatusFile(), timeout=None, expected=3, least=2)
    cut = _cut_by_hand(raw.own, minimum)
    for hospital, tables in raw.own.items():
        counts, remaining = (grid.of(f"vocabulary_{name}")[hospital].content for name in ("counts", "remaining"))
        has = {name: stays_of(rows, 1) for name, rows in tables.items()}
        stays_with = stays_of([(row[0], row[1:3]) for row in tables["medication"] if row[2]], 1)

        # exactly the codes that enough stays have, and of two tables how many
        codes, arrays = counts.config_records["codes"], counts.array_records["arrays"]
        told = {
            "diagnosis": dict.fromkeys(codes["diagnoses"]),
            "treatment": dict(zip(codes["procedures"], arrays["procedure-counts"].numpy(), strict=True)),
            "medication": dict(zip(arrays["medications"].numpy(), arrays["medication-counts"].numpy(), strict=True)),
        }
        for table, found in told.items():
            expected = {code: len(stays) for code, stays in has[table].items() if len(stays) >= minimum}
            assert found == (dict.fromkeys(expected) if table == "diagnosis" else expected), table

        # of the cut, exactly those that enough of the records have
        complete = set.intersection(*({s for code in cut[t] for s in has[t].get(code, ())} for t in cut))
        arrays = remaining.array_records["arrays"]
        common = {t: [c for c in cut[t] if len(has[t].get(c, set()) & complete) >= minimum] for t in cut}
        # records have such a code of each kind: whatever the vocabulary will be, they are as many; too few are none
        records = set.intersection(*({s for code in common[t] for s in has[t][code]} for t in cut))
        has_part = len(records) >= minimum
        assert remaining.metric_records["metrics"]["records"] == (len(records) if has_part else 0)
        for table, modality in zip(cut, ("diagnoses", "procedures", "medications"), strict=True):
            expected_mask = [has_part and code in common[table] for code in cut[table]]
            assert arrays[modality].numpy().tolist() == expected_mask, modality

        # of a medication of the cut, the most frequent of the names that enough stays have
        rows = Counter((row[1], row[2]) for row in tables["medication"] if len(stays_with[row[1], row[2]]) >= minimum)
        pairs = zip(arrays["named"].numpy(), remaining.config_records["codes"]["names"], strict=True)  # type: ignore[arg-type]
        assert {cut["medication"][place]: name for place, name in pairs} == {
            code: min((-rows[pair], pair[1]) for pair in rows if pair[0] == code)[1]
            for code, _ in rows
            if has_part and code in cut["medication"]
        }

        # and nothing else, in whichever form
        for content in (counts, remaining):
            assert secrets(content, tables, minimum) == []
            assert {name for record in content.values() for name in record} <= {
                *("hospital", "minimum-count", "records", "diagnoses", "procedures", "medications"),
                *("procedure-counts", "medication-counts", "named", "names"),
            }


def test_a_hospital_that_was_launched_without_a_minimum_names_no_rare_code_for_a_server_that_asks_for_1(
    tmp_path: Path,
) -> None:
    raw = RawConsortium(tmp_path, make_tables(1))
    grid = Listening({h: HospitalConfig(own, h, tmp_path / "own" / str(h), is_raw=True) for h, own in raw.raw.items()})
    agree(grid, AgreementRules(minimum_count=1, **LOOSE), StatusFile(), timeout=None, expected=3, least=2)
    for _, hospital, reply in grid.replies:
        assert secrets(reply.content, raw.own[hospital], 5) == []
    assert (
        inspect.signature(launch).parameters["minimum_count"].default
        == HospitalConfig(tmp_path, 3, tmp_path).minimum_count
    )


def test_a_hospital_with_a_code_that_is_no_line_could_not_take_part(tmp_path: Path) -> None:
    """Such a code is not told: control characters, or more of them than a code has."""
    tables, code = make_tables(1), "200.5, K000"
    for other in ("200.5,\nK000", "x" * 201):
        changed = tables | {"diagnosis": [(s, other if c == code else c, o) for s, c, o in tables["diagnosis"]]}
        found = agreed(RawConsortium(tmp_path / str(len(other)), changed).places(), 2)
        assert found.left_out == {}
        kept = agreed(RawConsortium(tmp_path / "as it was", tables).places(), 2).vocabulary.diagnoses
        assert found.vocabulary.diagnoses == kept[1:] and kept[0] == code


def test_a_hospital_that_is_left_out_for_its_few_records_tells_no_code_of_theirs(tmp_path: Path) -> None:
    raw = RawConsortium(tmp_path, make_tables(1))
    grid = Listening(raw.places())
    records = agreed(raw.places()).records
    rules = AgreementRules(minimum_count=1, **LOOSE | {"min_records": min(records.values()) + 1})
    agree(grid, rules, StatusFile(), timeout=None, expected=3, least=1)
    for hospital, reply in grid.of("vocabulary_remaining").items():
        arrays = reply.content.array_records["arrays"]
        told = [arrays[name].numpy().any() for name in ("diagnoses", "procedures", "medications", "named")]
        assert told == [records[hospital] >= rules.min_records] * 4


def _cut_by_hand(own: dict[int, Tables], minimum: int) -> dict[str, list[Any]]:
    total: dict[str, Counter[Any]] = {table: Counter() for table in ("diagnosis", "treatment", "medication")}
    for tables in own.values():
        for table, counter in total.items():
            has = stays_of(tables[table], 1)
            counter.update({code: len(stays) for code, stays in has.items() if len(stays) >= minimum})
    most = {"diagnosis": None, "treatment": 14, "medication": 12}
    return {t: sorted(sorted(c, key=lambda code: (-c[code], code))[: most[t]]) for t, c in total.items()}


def test_the_search_finds_what_a_reply_must_not_hold(tmp_path: Path) -> None:
    """So that the test above could fail."""
    tables = RawConsortium(tmp_path, make_tables(1)).own[3]
    stay, _, patient = tables["patient"][5]
    names = stays_of(tables["medication"], 2)
    rare = min(names, key=lambda name: len(names[name]))
    for record in (
        ConfigRecord({"names": [patient]}),
        ConfigRecord({"names": ["DRUG", rare]}),
        MetricRecord({"records": stay}),
        ArrayRecord({"named": Array(np.array([4, stay]))}),
    ):
        assert secrets(RecordDict({"some": record}), tables, 5), record


def test_every_answer_stands_in_the_ledger_with_its_names_and_sizes(tmp_path: Path) -> None:
    raw = RawConsortium(tmp_path, make_tables(1))
    places = raw.places()
    grid = Listening(places)
    agree(grid, AgreementRules(minimum_count=2, **LOOSE), StatusFile(), timeout=None, expected=3, least=3)
    for hospital, place in places.items():
        lines = [json.loads(line) for line in place.ledger().read_text().splitlines()]
        assert [line["kind"] for line in lines] == ["vocabulary_counts", "vocabulary_remaining"]
        for line in lines:
            content = grid.of(line["kind"])[hospital].content
            assert line["numbers"] == dict(content.metric_records["metrics"])
            arrays = {name: array.numpy() for name, array in content.array_records["arrays"].items()}
            assert line["arrays"] == {name: [str(a.dtype), list(a.shape)] for name, a in arrays.items()}
            assert line["bytes"] == sum(array.nbytes for array in arrays.values())
            codes = content.config_records["codes"]
            assert {name: size[0] for name, size in line["codes"].items()} == {n: len(c) for n, c in codes.items()}  # type: ignore[arg-type]
        assert "DRUG" not in place.ledger().read_text() and "treatment 0" not in place.ledger().read_text()


def test_a_hospital_that_fills_the_cut_by_its_word_was_not_named(tmp_path: Path) -> None:
    raw = RawConsortium(tmp_path, make_tables(4))
    places = {h: HospitalConfig(of, h, tmp_path / f"state-{h}", is_raw=True) for h, of in raw.raw.items()}
    liar, rules = max(places), AgreementRules(minimum_count=5, **LOOSE)

    class Lies(Listening):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            for reply in super().pull_messages(message_ids):
                metrics = reply.content.metric_records["metrics"]
                if metrics["hospital"] == liar and "minimum-count" in metrics:
                    many = {"procedures": rules.top_procedures, "medications": rules.top_medications}
                    procedures = [f"z{number:05}" for number in range(many["procedures"])]
                    reply.content["codes"] = ConfigRecord({"diagnoses": ["Z"], "procedures": procedures})
                    arrays = {f"{kind[:-1]}-counts": np.full(of, 10**9) for kind, of in many.items()}
                    arrays["medications"] = np.arange(10**7, 10**7 + many["medications"])
                    reply.content["arrays"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
                yield reply

    of = rules.top_procedures + rules.top_medications
    with pytest.raises(TooFewHospitals, match=f"; hospital {liar} alone told of {of} of the {of} procedures and medic"):
        agree(Lies(places), rules, StatusFile(), timeout=None, expected=len(places), least=2)
