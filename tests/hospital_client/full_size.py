"""Measures `prepare` on tables of the full eICU database's size and layout, made up for the purpose.

    python -m tests.hospital_client.full_size [--scale 1.0] [--keep DIRECTORY]

Prints the seconds and the peak memory of a process that prepares them: at most 90 s and 6 GiB on two cores.
The process waits passively, as `tempt` does, so that other work on the machine does not stall it.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

STAYS, HOSPITALS = 200_859, 208
ROWS = {"medication": 7_301_853, "treatment": 3_688_745, "diagnosis": 2_710_672}
_PREPARE = """
import sys, time
from pathlib import Path
from hospital_client.preparation import prepare
from hospital_client.preparation_options import PreparationOptions
from hospital_client.preparation_report import report_lines

begin = time.perf_counter()
report = prepare(Path(sys.argv[1]), Path(sys.argv[2]), PreparationOptions(min_records=int(sys.argv[3])))
seconds = time.perf_counter() - begin
print("\\n".join(report_lines(report)))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(f"prepare alone: {seconds:.1f} s; peak memory of the process: {int(peak) / 2**20:.2f} GiB")
"""


def main() -> None:
    """Make the tables, prepare them in a process of its own, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows")
    parser.add_argument("--keep", type=Path, help="make the tables here and leave them, or use those that are there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = arguments.keep or Path(folder) / "raw"
        if not raw.is_dir():
            begin = time.perf_counter()
            make_tables(raw, arguments.scale)
            print(f"tables made in {time.perf_counter() - begin:.0f} s")
        for path in sorted(raw.iterdir()):
            print(f"  {path.name}: {path.stat().st_size / 2**20:.0f} MiB")
        begin = time.perf_counter()
        min_records = str(max(1, int(400 * arguments.scale)))
        command = [sys.executable, "-c", _PREPARE, raw, Path(folder) / "dataset", min_records]
        subprocess.run(command, check=True, env={"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", **os.environ})
        print(f"the whole process: {time.perf_counter() - begin:.1f} s")


def make_tables(raw: Path, scale: float = 1.0) -> None:
    """Write the four tables, gzip, rows in no order, with all columns of the real ones."""
    random = np.random.default_rng(7)
    raw.mkdir(parents=True)
    stays = int(STAYS * scale)
    stay = np.arange(stays, dtype=np.int64) * 16 + 141_168
    small = [f"{kind} ({number})" for number, kind in enumerate(("Admit", "Emergency Department", "Floor", "Home"))]
    patient = random.integers(0, int(stays * 0.7) + 1, stays)
    _write(
        raw / "patient.csv.gz",
        {
            "patientunitstayid": stay,
            "patienthealthsystemstayid": patient + 120_000,
            "gender": _pick(random, ["Female", "Male"], stays),
            "age": _pick(random, [str(age) for age in range(18, 90)], stays),
            "ethnicity": _pick(random, ["Caucasian", "African American", "Hispanic"], stays),
            "hospitalid": (HOSPITALS * random.random(stays) ** 1.5).astype(np.int64) + 59,
            "wardid": random.integers(80, 1200, stays),
            "apacheadmissiondx": _pick(random, [f"Admission diagnosis, pulmonary {n}" for n in range(300)], stays),
            **{f"measure{n}": random.integers(0, 9_999, stays) for n in range(10)},
            **{f"text{n}": _pick(random, small, stays) for n in range(10)},
            "uniquepid": pa.array([f"{p % 40:03d}-{p}" for p in patient]),
        },
    )

    rows = int(ROWS["diagnosis"] * scale)
    strings = [
        f"cardiovascular|ventricular disorders of kind {n % 97}|hypertension with feature {n}" for n in range(3_900)
    ]
    codes = ["", *(f"{100 + n}.{n % 10}, I{n % 90:02d}.{n % 10}" for n in range(1_200))]
    _write(
        raw / "diagnosis.csv.gz",
        {
            "diagnosisid": np.arange(rows) + 3_000_000,
            "patientunitstayid": _stays(random, stay, rows),
            "activeupondischarge": _pick(random, ["False", "True"], rows),
            "diagnosisoffset": random.integers(-2_000, 20_000, rows),
            "diagnosisstring": _pick(random, strings, rows),
            "icd9code": _pick(random, codes, rows),
            "diagnosispriority": _pick(random, ["Major", "Other", "Primary"], rows),
        },
    )

    rows = int(ROWS["treatment"] * scale)
    strings = [
        f"pulmonary|ventilation and oxygenation|way {n % 53}|non-invasive treatment number {n}" for n in range(2_700)
    ]
    _write(
        raw / "treatment.csv.gz",
        {
            "treatmentid": np.arange(rows) + 8_000_000,
            "patientunitstayid": _stays(random, stay, rows),
            "treatmentoffset": random.integers(-2_000, 20_000, rows),
            "treatmentstring": _pick(random, strings, rows),
            "activeupondischarge": _pick(random, ["False", "True"], rows),
        },
    )

    rows = int(ROWS["medication"] * scale)
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [
        f"{100 + n % 900} ML PLAS CONT : DRUG{letters[n % 26]}{letters[n // 26 % 26]}INE HCL IN WATER {n} MG/ML IV SOLN"
        for n in range(9_000)
    ]
    name = _skewed(random, len(names), rows)
    hicl = pa.array(np.where(random.random(rows) < 0.1, -1, name % 1_700 + 2_000).astype(np.int64))
    empty = pa.compute.equal(hicl, -1)
    _write(
        raw / "medication.csv.gz",
        {
            "medicationid": np.arange(rows) + 7_000_000,
            "patientunitstayid": _stays(random, stay, rows),
            "drugorderoffset": random.integers(-2_000, 20_000, rows),
            "drugstartoffset": random.integers(-2_000, 20_000, rows),
            "drugivadmixture": _pick(random, ["No", "Yes"], rows),
            "drugordercancelled": _pick(random, ["No", "Yes"], rows),
            "drugname": pa.array(names).take(pa.array(name)),
            "drughiclseqno": pa.compute.if_else(empty, pa.scalar(None, pa.int64()), hicl),
            "dosage": _pick(random, [f"{n} {n % 9}" for n in range(400)], rows),
            "routeadmin": _pick(random, ["PO", "IV", "IV - continuous infusion (intravenous)"], rows),
            "frequency": _pick(random, ["Daily", "Once PRN", "Q6H SCH", "BID"], rows),
            "loadingdose": _pick(random, [""], rows),
            "prn": _pick(random, ["No", "Yes"], rows),
            "drugstopoffset": random.integers(-2_000, 40_000, rows),
            "gtc": random.integers(0, 99, rows),
        },
    )


def _skewed(random: np.random.Generator, kinds: int, rows: int) -> np.ndarray:
    """Kinds of which the low are far more frequent than the high."""
    return (kinds * random.random(rows, dtype=np.float32) ** 4).astype(np.int32).clip(0, kinds - 1)


def _pick(random: np.random.Generator, texts: list[str], rows: int) -> pa.Array:
    return pa.array(texts).take(pa.array(_skewed(random, len(texts), rows)))


def _stays(random: np.random.Generator, stay: np.ndarray, rows: int) -> np.ndarray:
    """A stay a row, in no order; one in a thousand is of no patient."""
    chosen = stay[random.integers(0, len(stay), rows)]
    chosen[random.random(rows, dtype=np.float32) < 0.001] = 5
    return chosen


def _write(path: Path, columns: dict[str, object]) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        pa.csv.write_csv(pa.table(columns), file)


if __name__ == "__main__":
    main()
