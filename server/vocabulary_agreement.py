"""Hospitals agree on a vocabulary: two exchanges of sums, and no record.

First each hospital tells which codes it has and in how many stays; all diagnoses and the most frequent procedures and
medications of all hospitals are the cut. Then each tells how many records remain under the cut and which codes these
hold; the vocabulary is the codes of the hospitals that have enough records. It takes two, as a frequent code may be in
no record that remains. Where every code is named (`minimum_count` 1), it is the vocabulary that `tempt prepare` makes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from pydantic import ValidationError

from server.exchange import MOST_RECORDS, ask_everybody, content_of, exchange, lifetime, limit_of, numbers_of, within
from server.federation_settings import mistakes
from server.told import StatusFile
from server.validation import (
    Integers,
    Mask,
    Rejected,
    ascending,
    codes_and_arrays_of,
    count_of,
    integers_of,
    mask_of,
    texts_of,
)
from shared_model.errors import TemptError, TooFewHospitals, printable
from shared_model.messages import CUT, CountCodes, CountRemaining
from shared_model.vocabulary import Modality, Vocabulary
from shared_model.vocabulary_rules import (
    MOST_CODES,
    AgreementRules,
    most_frequent,
    nameless,
    names_of_most_hospitals,
)

Code = TypeVar("Code", int, str)
MODALITIES: tuple[Modality, ...] = ("diagnoses", "procedures", "medications")
_PHASE = "the vocabulary agreement"


@dataclass(frozen=True)
class Agreement:
    """What was agreed.

    Attributes:
        records: under the cut, of each hospital that answered.
        left_out: who has no part in the vocabulary, and why.
    """

    vocabulary: Vocabulary
    records: dict[int, int]
    left_out: dict[str, str]

    def content(self) -> dict[str, Any]:
        """For a file of the run directory."""
        return {"records": {str(h): count for h, count in self.records.items()}, "left_out": self.left_out}


class _Counts(NamedTuple):
    """A hospital's first answer."""

    node: int
    diagnoses: list[str]
    procedures: dict[str, int]
    medications: dict[int, int]


class _Remaining(NamedTuple):
    """A hospital's second answer.

    Attributes:
        holds: which of the cut's codes its records hold.
        medication, name: what the hospital calls a medication of the cut, by position.
    """

    records: int
    holds: dict[Modality, Mask]
    medication: Integers
    name: list[str]


class _Cut(NamedTuple):
    """The codes that are frequent enough, ascending."""

    diagnoses: list[str]
    procedures: list[str]
    medications: list[int]


def agreement_rules(**values: Any) -> AgreementRules:
    """The rules, checked.

    Raises:
        TemptError: a value is out of type or bounds; all are named.
    """
    try:
        return AgreementRules(**values)
    except ValidationError as error:
        raise TemptError(mistakes(error)) from None


def agree(
    grid: Grid, rules: AgreementRules, told: StatusFile, *, timeout: float | None, expected: int, least: int
) -> Agreement:
    """The vocabulary of the hospitals that are there and have raw tables.

    Args:
        expected: hospitals to wait for, within the timeout.
        least: hospitals without which there is no agreement.

    Raises:
        TooFewHospitals: fewer answered, or have enough records.
        TemptError: no code is left.
    """
    fixed: dict[str, Any] = {"minimum_count": rules.minimum_count, "min_records": rules.min_records}
    fixed["limit"] = limit_of(timeout)

    def read(node: int, hospital: int, reply: Message) -> _Counts:
        try:
            return _counts_of(node, reply, rules.minimum_count)
        except Rejected as why:
            raise Rejected(f"hospital {hospital}: {why}") from None

    counts, left_out = ask_everybody(
        grid,
        CountCodes(**fixed),
        {},
        "counts",
        timeout,
        told,
        expected=expected,
        read=read,
    )
    _leave_out_the_largest(counts, left_out)
    _enough(len(counts), expected, least, left_out)
    cut = _cut_of([counts[hospital] for hospital in sorted(counts)], rules)

    request = CountRemaining(**fixed)
    content = content_of(request, {CUT: ConfigRecord(cut._asdict())})
    answers: dict[int, _Remaining] = {}
    messages = {
        hospital: grid.create_message(content, request.route, counted.node, "remaining", lifetime(timeout))
        for hospital, counted in counts.items()
    }
    told.say(f"remaining: waiting {within(timeout)} for the answers of {len(messages)} hospitals")
    for hospital, reply in exchange(grid, messages, timeout):
        try:
            answers[hospital] = _remaining_of(hospital, reply, cut)
        except Rejected as why:
            left_out[f"hospital {hospital}"] = str(why)
    kept = {hospital: answer for hospital, answer in answers.items() if answer.records >= rules.min_records}
    filled = _who_fills(cut, counts)
    for hospital, answer in answers.items():
        if hospital not in kept:
            few = f"{answer.records} records, expected at least {rules.min_records}"
            left_out[f"hospital {hospital}"] = f"{few}{filled}"
    for who, reason in left_out.items():
        told.say(f"{who} has no part in the vocabulary: {reason}")
    _enough(len(kept), expected, least, left_out)
    vocabulary = _vocabulary(cut, list(kept.values()))
    for modality in MODALITIES:
        if not getattr(vocabulary, modality):
            raise TemptError(
                f"{_PHASE}: {modality}: no code is left that {rules.minimum_count} stays of a hospital have; lower "
                "--minimum-count"
            )
    return Agreement(vocabulary, {hospital: answer.records for hospital, answer in answers.items()}, left_out)


def _who_fills(cut: _Cut, counts: Mapping[int, _Counts]) -> str:
    """The hospital that alone told of most of what was cut by frequency, for an error; nothing if there is none."""
    alone: Counter[int] = Counter()
    for code in (*cut.procedures, *cut.medications):
        told = [hospital for hospital, of in counts.items() if code in of.procedures or code in of.medications]
        alone.update(told if len(told) == 1 else ())
    of = len(cut.procedures) + len(cut.medications)
    hospital, codes = max(alone.items(), key=lambda item: item[1], default=(0, 0))
    if len(counts) < 2 or 2 * codes <= of:
        return ""
    return f"; hospital {hospital} alone told of {codes} of the {of} procedures and medications that are kept"


def _leave_out_the_largest(counts: dict[int, _Counts], left_out: dict[str, str]) -> None:
    """Until all diagnoses together are few enough: they are not cut, so one hospital could make the model huge."""
    while (told := len({code for hospital in counts.values() for code in hospital.diagnoses})) > MOST_CODES:
        most = max(counts, key=lambda hospital: len(counts[hospital].diagnoses))
        left_out[f"hospital {most}"] = f"it told most of {told:,} diagnoses, expected at most {MOST_CODES:,}"
        del counts[most]


def _enough(found: int, expected: int, least: int, left_out: Mapping[str, str]) -> None:
    if found < least:
        who = next((f"; {name}: {why}" for name, why in left_out.items()), "")
        raise TooFewHospitals(
            f"{_PHASE}: {found} hospitals of {expected}, expected at least {least}{who}; launch them with raw "
            "tables, or name a vocabulary"
        )


def _counts_of(node: int, reply: Message, minimum: int) -> _Counts:
    metrics, texts = numbers_of(reply), reply.content.config_records.get("config", ConfigRecord())
    if "vocabulary" in texts:
        raise Rejected(
            f"its records are prepared under the vocabulary '{printable(texts['vocabulary'], 12)}' and can't be "
            "counted; launch it with its raw tables (--raw), or the server with that vocabulary (--vocabulary)"
        )
    least = count_of(metrics, "minimum-count", least=minimum)
    codes, arrays = codes_and_arrays_of(
        reply, {"diagnoses", "procedures"}, {"procedure-counts", "medications", "medication-counts"}
    )
    diagnoses, procedures = (ascending(name, texts_of(codes, name, MOST_CODES)) for name in ("diagnoses", "procedures"))
    procedure_counts = integers_of(arrays, "procedure-counts", of=len(procedures), least=least, most=MOST_RECORDS)
    medications = ascending("medications", integers_of(arrays, "medications", up_to=MOST_CODES).tolist())
    medication_counts = integers_of(arrays, "medication-counts", of=len(medications), least=least, most=MOST_RECORDS)
    return _Counts(
        node,
        diagnoses,
        dict(zip(procedures, procedure_counts.tolist(), strict=True)),
        dict(zip(medications, medication_counts.tolist(), strict=True)),
    )


def _cut_of(counts: Sequence[_Counts], rules: AgreementRules) -> _Cut:
    """Rule 3 of the preparation, over the counts of all hospitals."""
    diagnoses = sorted({code for told in counts for code in told.diagnoses})
    procedures = _most_frequent([told.procedures for told in counts], rules.top_procedures)
    medications = _most_frequent([told.medications for told in counts], rules.top_medications)
    return _Cut(diagnoses, procedures, medications)


def _most_frequent(counts: Iterable[Mapping[Code, int]], most: int) -> list[Code]:
    total: Counter[Code] = Counter()
    for of_hospital in counts:
        total.update(of_hospital)
    codes = sorted(total)
    kept = most_frequent(np.array([total[code] for code in codes], dtype=np.int64), most)
    return [code for code, is_kept in zip(codes, kept, strict=True) if is_kept]


def _remaining_of(hospital: int, reply: Message | None, cut: _Cut) -> _Remaining:
    metrics = numbers_of(reply)
    assert reply is not None
    if count_of(metrics, "hospital") != hospital:
        raise Rejected(f"says that it is hospital {metrics['hospital']}, expected {hospital}")
    records = count_of(metrics, "records", most=MOST_RECORDS)
    codes, arrays = codes_and_arrays_of(reply, {"names"}, {*MODALITIES, "named"})
    holds = {modality: mask_of(arrays, modality, len(getattr(cut, modality))) for modality in MODALITIES}
    names = texts_of(codes, "names", MOST_CODES)
    medication = integers_of(arrays, "named", of=len(names), least=0, most=len(cut.medications) - 1)
    ascending("named", medication.tolist())
    return _Remaining(records, holds, medication, names)


def _vocabulary(cut: _Cut, kept: Sequence[_Remaining]) -> Vocabulary:
    """Rule 5 of the preparation."""
    held = {modality: np.any([told.holds[modality] for told in kept], axis=0) for modality in MODALITIES}
    names = _names(kept)
    medications = np.flatnonzero(held["medications"]).tolist()
    return Vocabulary(
        diagnoses=tuple(code for code, there in zip(cut.diagnoses, held["diagnoses"], strict=True) if there),
        procedures=tuple(code for code, there in zip(cut.procedures, held["procedures"], strict=True) if there),
        medications=tuple(cut.medications[place] for place in medications),
        medication_names=tuple(names.get(place, nameless(cut.medications[place])) for place in medications),
    )


def _names(kept: Sequence[_Remaining]) -> dict[int, str]:
    """What most hospitals call each medication of the cut, by its position there: one vote a hospital."""
    texts = sorted({name for told in kept for name in told.name})
    place = {text: number for number, text in enumerate(texts)}
    medication = np.concatenate([told.medication for told in kept])
    name = np.array([place[text] for told in kept for text in told.name], dtype=np.int64)
    found = names_of_most_hospitals(medication, name)
    return {int(medication): texts[name] for medication, name in zip(*found, strict=True)}
