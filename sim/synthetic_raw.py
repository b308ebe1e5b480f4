"""Writes the made-up consortium as raw eICU tables, with the dirt that raw tables have.

Repeated rows, rows without a code, several names of one drug, codes entered late, cancelled orders, patients with more
than one stay, stays that lack a whole table, and (in the profile `paper`) hospitals too small to be kept.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from shared_model.errors import TemptError
from shared_model.files import check_place, new_directory, write_json
from sim.synthetic_eicu import (
    N_DIAGNOSES,
    Flags,
    Integers,
    Stays,
    SyntheticSettings,
    World,
    generator,
    profile_sizes,
    tilts,
)
from sim.synthetic_words import CONDITIONS, FORMS

MARK = "synthetic.json"
MOST_RECORDS = 1_000_000
"""Ten times the paper's; each takes some 17 kB of memory while they are made, and 2 kB of the disk."""
FIRST_HICL = 900_001
_FIRST_HOSPITAL = 101
_LACKING = 0.25  # stays that lack a whole table, for each that is a record
_TOO_SMALL = {"paper": (35, 90, 160, 240, 320, 385), "small": ()}
_ENTIRE_VOCABULARY_RECORDS = 50_000


def synthesize(
    directory: Path,
    profile: str = "small",
    *,
    hospitals: int | None = None,
    records: int | None = None,
    seed: int = 2014,
    settings: SyntheticSettings | None = None,
    force: bool = False,
) -> None:
    """Write patient, diagnosis, treatment and medication tables (`.csv.gz`) of a made-up consortium.

    Args:
        hospitals: in place of the profile's number; sizes keep the profile's shape.
        records: usable stays in all, in place of the profile's.
        force: replace an older consortium there.

    Raises:
        TemptError: an unknown profile, numbers out of range, or a place that is taken.
    """
    if hospitals is not None and not 1 <= hospitals <= 10_000:
        raise TemptError(f"--hospitals {hospitals}: expected 1 to 10000")
    sizes = profile_sizes(profile, hospitals, records)
    if sizes[0] < 1 or (records is not None and records < 10 * len(sizes)):
        raise TemptError(f"--records {records}: expected at least 10 for each of {len(sizes)} hospitals")
    if sum(sizes) > MOST_RECORDS:
        found = f"--records {records}" if records is not None else f"--hospitals {hospitals}: has {sum(sizes)} records"
        raise TemptError(f"{found}; expected at most {MOST_RECORDS} records, give a smaller --records")
    if seed < 0:
        raise TemptError(f"--seed {seed}: expected at least 0")
    check_place(directory, mark=MARK, force=force)  # before the seconds that a world takes
    world = World(seed, settings or SyntheticSettings())
    too_small = _TOO_SMALL[profile] if hospitals is None and records is None else ()
    with new_directory(directory, mark=MARK, force=force) as beside, ExitStack() as open_tables:
        writers = {name: open_tables.enter_context(_table(beside, name)) for name in _SCHEMAS}
        for chart in _charts(world, sizes, too_small):
            for name, table in _tables(world, chart).items():
                writers[name].write_table(table)
        about = {"profile": profile, "hospitals": len(sizes), "records": sum(sizes), "seed": seed}
        write_json(beside / MARK, about | {"settings": world.settings.model_dump(), "note": "made up; no real patient"})


@dataclass(frozen=True)
class _Chart:
    """One hospital's stays with their ids; `whole` says which stays have all three tables."""

    hospital: int
    stay: Integers
    patient: Integers
    content: Stays


def _charts(world: World, sizes: list[int], too_small: tuple[int, ...]) -> Iterator[_Chart]:
    everyone = [*sizes, *too_small]
    order = generator(world.seed, "order").permutation(len(everyone))
    inclined = tilts(len(everyone), generator(world.seed, "tilts"))
    first_stay, first_patient = 200_000, 0
    unused = np.ones(N_DIAGNOSES, dtype=bool)
    contents = []
    for place, which in enumerate(order):
        hospital = _FIRST_HOSPITAL + place
        draw = generator(world.seed, "chart", hospital)
        count = everyone[which]
        lacking = round(count * _LACKING)
        content = world.stays(hospital, count + lacking, float(inclined[place]))
        without = draw.integers(0, 3, lacking)
        for kind, table in enumerate((content.diagnoses, content.procedures, content.medications)):
            table[count:][without == kind] = False
        used = content.diagnoses[:count].any(0)
        unused &= ~used
        contents.append((hospital, count + lacking, content))
    if sum(sizes) >= _ENTIRE_VOCABULARY_RECORDS:
        # a vocabulary of exactly N_DIAGNOSES: a code that chance left out goes to a stay of the first hospital
        for row, code in enumerate(np.flatnonzero(unused)):
            contents[0][2].diagnoses[row, code] = True
    for hospital, count, content in contents:
        draw = generator(world.seed, "ids", hospital)
        stay = first_stay + np.cumsum(draw.integers(1, 9, count))
        patients = max(1, round(count * 0.9))
        extra = draw.integers(0, patients, count - patients)
        patient = first_patient + draw.permutation(np.concatenate([np.arange(patients), extra]))
        first_stay, first_patient = int(stay[-1]), first_patient + patients
        shuffled = draw.permutation(count)
        yield _Chart(
            hospital,
            stay,
            patient,
            Stays(content.diagnoses[shuffled], content.procedures[shuffled], content.medications[shuffled]),
        )


def _tables(world: World, chart: _Chart) -> dict[str, pa.Table]:
    draw = generator(world.seed, "rows", chart.hospital)
    return {
        "patient": _patient(draw, chart),
        "diagnosis": _diagnosis(draw, world, chart),
        "treatment": _treatment(draw, world, chart),
        "medication": _medication(draw, world, chart),
    }


def _patient(draw: np.random.Generator, chart: _Chart) -> pa.Table:
    count = len(chart.stay)
    visit = np.ones(count, dtype=np.int64)
    seen: dict[int, int] = {}
    for row, patient in enumerate(chart.patient.tolist()):
        seen[patient] = visit[row] = seen.get(patient, 0) + 1
    age = np.clip(draw.normal(64, 16, count), 18, 95).astype(int)
    return _build(
        "patient",
        patientunitstayid=chart.stay,
        patienthealthsystemstayid=chart.stay + 7_000_000,
        gender=_pick(["Female", "Male"], (chart.patient * 2_654_435_761 >> 7) % 2),
        age=[str(a) if a < 90 else "> 89" for a in age],
        hospitalid=np.full(count, chart.hospital),
        wardid=chart.hospital * 10 + draw.integers(0, 4, count),
        hospitaldischargeyear=2014 + draw.integers(0, 2, count),
        unittype=_pick(["Med-Surg ICU", "MICU", "SICU", "CCU-CTICU", "Neuro ICU"], draw.integers(0, 5, count)),
        unitvisitnumber=visit,
        unitdischargeoffset=_minutes(draw, count) + 600,
        unitdischargestatus=_pick(["Alive", "Expired"], (draw.random(count) < 0.07).astype(int)),
        uniquepid=[f"{chart.hospital:03}-{patient}" for patient in chart.patient],
    )


def _diagnosis(draw: np.random.Generator, world: World, chart: _Chart) -> pa.Table:
    row, code = _repeated(draw, chart.content.diagnoses, 0.15)
    paths = [
        f"{CONDITIONS[condition].path}|{world.diagnosis_words[family][2]}|type {variant + 1}"
        for condition, family, variant in zip(
            world.diagnosis_condition, world.diagnosis_family, world.diagnosis_variant, strict=True
        )
    ]
    lost = draw.random(len(row)) < 0.15
    # A row without a code comes beside coded ones, never in place of one
    row, code, lost = np.append(row, row[lost]), np.append(code, code[lost]), np.append(lost & False, lost[lost])
    order = draw.permutation(len(row))
    row, code, lost = row[order], code[order], lost[order]
    return _build(
        "diagnosis",
        diagnosisid=_ids(chart, len(row)),
        patientunitstayid=chart.stay[row],
        activeupondischarge=_pick(["False", "True"], draw.integers(0, 2, len(row))),
        diagnosisoffset=_minutes(draw, len(row)),
        diagnosisstring=_pick(paths, code),
        icd9code=_pick([*world.diagnosis_codes, ""], np.where(lost, len(paths), code)),
        diagnosispriority=_pick(["Primary", "Major", "Other"], draw.integers(0, 3, len(row))),
    )


def _treatment(draw: np.random.Generator, world: World, chart: _Chart) -> pa.Table:
    row, code = _repeated(draw, chart.content.procedures, 0.2)
    order = draw.permutation(len(row))
    row, code = row[order], code[order]
    return _build(
        "treatment",
        treatmentid=_ids(chart, len(row)),
        patientunitstayid=chart.stay[row],
        treatmentoffset=_minutes(draw, len(row)),
        treatmentstring=_pick(world.procedures, code),
        activeupondischarge=_pick(["False", "True"], draw.integers(0, 2, len(row))),
    )


def _medication(draw: np.random.Generator, world: World, chart: _Chart) -> pa.Table:
    row, drug = _repeated(draw, chart.content.medications, 0.55)
    lost = draw.random(len(row)) < 0.065
    row, drug, lost = np.append(row, row[lost]), np.append(drug, drug[lost]), np.append(lost & False, lost[lost])
    order = draw.permutation(len(row))
    row, drug, lost = row[order], drug[order], lost[order]
    hicl = FIRST_HICL + generator(world.seed, "hicl").permutation(len(world.drugs))
    variant = np.minimum(draw.integers(0, 5, len(row)), 2)
    names, routes = _drug_names(world)
    start = _minutes(draw, len(row)) - draw.integers(0, 600, len(row))
    count = len(row)
    return _build(
        "medication",
        medicationid=_ids(chart, count),
        patientunitstayid=chart.stay[row],
        drugorderoffset=start - draw.integers(0, 120, count),
        drugstartoffset=start,
        drugivadmixture=_pick(["No", "Yes"], (draw.random(count) < 0.1).astype(int)),
        drugordercancelled=_pick(["No", "Yes"], (draw.random(count) < 0.05).astype(int)),
        drugname=_pick(names, drug * 3 + variant),
        drughiclseqno=_pick([*(str(code) for code in hicl), ""], np.where(lost, len(hicl), drug)),
        dosage=_pick([f"{n} {u}" for n in (1, 2, 5, 10, 20, 50) for u in (1, 3)], draw.integers(0, 12, count)),
        routeadmin=_pick(routes, drug * 3 + variant),
        frequency=_pick(["Daily", "BID", "Q6H PRN", "Once", "Continuous"], draw.integers(0, 5, count)),
        prn=_pick(["No", "Yes"], (draw.random(count) < 0.25).astype(int)),
        drugstopoffset=start + _minutes(draw, count),
    )


def _drug_names(world: World) -> tuple[list[str], list[str]]:
    """Three names and routes a drug: strengths and forms of the same substance."""
    draw = generator(world.seed, "names")
    names, routes = [], []
    for _, drug in world.drugs:
        strengths = draw.choice([5, 10, 20, 25, 40, 50, 100, 250, 500], 3, replace=False)
        for strength, form in zip(strengths, draw.permutation(len(FORMS))[:3], strict=True):
            names.append(f"{drug.upper()} {strength} {FORMS[form][0]}")
            routes.append(FORMS[form][1])
    return names, routes


def _repeated(draw: np.random.Generator, content: Flags, share: float) -> tuple[Integers, Integers]:
    """Row and column of every True, a share of them again."""
    row, column = np.nonzero(content)
    again = draw.random(len(row)) < share
    return np.append(row, row[again]), np.append(column, column[again])


def _minutes(draw: np.random.Generator, count: int) -> Integers:
    """Offsets after admission, half of them beyond the first 24 hours."""
    return np.exp(draw.normal(np.log(1440), 1.3, count)).astype(np.int64)


def _ids(chart: _Chart, count: int) -> Integers:
    return chart.hospital * 10_000_000 + np.arange(count)


def _pick(texts: list[str], index: Integers) -> pa.Array:
    return pa.array(texts, pa.string()).take(pa.array(index))


def _schema(columns: str, numbers: str) -> pa.Schema:
    """The columns of a table in order; those named in `numbers` hold integers, the others text."""
    integer = set(numbers.split())
    return pa.schema([(name, pa.int64() if name in integer else pa.string()) for name in columns.split()])


_SCHEMAS = {
    "patient": _schema(
        "patientunitstayid patienthealthsystemstayid gender age hospitalid wardid hospitaldischargeyear unittype "
        "unitvisitnumber unitdischargeoffset unitdischargestatus uniquepid",
        numbers="patientunitstayid patienthealthsystemstayid hospitalid wardid hospitaldischargeyear unitvisitnumber "
        "unitdischargeoffset",
    ),
    "diagnosis": _schema(
        "diagnosisid patientunitstayid activeupondischarge diagnosisoffset diagnosisstring icd9code diagnosispriority",
        numbers="diagnosisid patientunitstayid diagnosisoffset",
    ),
    "treatment": _schema(
        "treatmentid patientunitstayid treatmentoffset treatmentstring activeupondischarge",
        numbers="treatmentid patientunitstayid treatmentoffset",
    ),
    "medication": _schema(
        "medicationid patientunitstayid drugorderoffset drugstartoffset drugivadmixture drugordercancelled drugname "
        "drughiclseqno dosage routeadmin frequency prn drugstopoffset",
        numbers="medicationid patientunitstayid drugorderoffset drugstartoffset drugstopoffset",
    ),
}


def _build(name: str, **columns: Any) -> pa.Table:
    schema = _SCHEMAS[name]
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


@contextmanager
def _table(directory: Path, name: str) -> Iterator[pa.csv.CSVWriter]:
    """A writer of one table; the same rows give the same bytes."""
    with (
        (directory / f"{name}.csv.gz").open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=1, mtime=0) as packed,
        pa.csv.CSVWriter(packed, _SCHEMAS[name]) as writer,
    ):
        yield writer
