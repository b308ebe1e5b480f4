"""`tempt synth` and `tempt prepare`: a made-up consortium, and raw eICU tables to a dataset."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared_model import begun
from shared_model.lines import say, tell
from sim.commands import options
from sim.commands.verb import as_called

if TYPE_CHECKING:
    from hospital_client.preparation_options import PreparationOptions
    from hospital_client.preparation_report import Report


def synth(
    raw: Annotated[Path, typer.Argument(help="The directory to write the raw tables to.")],
    profile: Annotated[str, typer.Option(help="small (12 hospitals) or paper (80, as in Table 2).")] = "small",
    hospitals: Annotated[int | None, typer.Option(min=1, help="Hospitals.", show_default="the profile's")] = None,
    records: Annotated[int | None, typer.Option(min=1, help="Usable stays.", show_default="the profile's")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same tables.")] = 2014,
    force: options.Force = False,
) -> None:
    """Make up a consortium of hospitals as raw eICU tables.

    Example: tempt synth raw/ --profile small
    """
    from sim.synthetic_raw import synthesize

    synthesize(raw, profile, hospitals=hospitals, records=records, seed=seed, force=force)
    begun.begin()
    tell(f"Wrote patient, diagnosis, treatment and medication tables (.csv.gz) to {raw}.")


def prepare(
    raw: Annotated[Path, typer.Argument(help="The directory of raw eICU tables.")],
    dataset: Annotated[Path, typer.Argument(help="The dataset directory to make.")],
    min_records: options.MinRecords = None,
    top_medications: options.TopMedications = 300,
    top_procedures: options.TopProcedures = 1000,
    split_by_patient: options.SplitByPatient = False,
    observation_window: options.ObservationWindow = None,
    leave_out_drug_procedures: options.LeaveOutDrugProcedures = False,
    leave_out_cancelled_orders: options.LeaveOutCancelled = False,
    force: options.Force = False,
) -> None:
    """Turn raw eICU tables into a dataset, and print what became of them.

    Example: tempt prepare eicu/ dataset/
    """
    from hospital_client.preparation import prepare as make
    from hospital_client.preparation_report import report_lines

    chosen = options.preparation(
        min_records=min_records,
        top_medications=top_medications,
        top_procedures=top_procedures,
        split_by_patient=split_by_patient,
        observation_window_hours=observation_window,
        leave_out_drug_procedures=leave_out_drug_procedures,
        leave_out_cancelled_orders=leave_out_cancelled_orders,
    )
    report = make(raw, dataset, chosen, force=force)
    begun.begin()
    tell(*report_lines(report))
    if note := left_out_note(report, chosen):
        say(note)
    tell(f"Next: {as_called()} simulate centralized --data {shlex.quote(str(dataset))}")


def left_out_note(report: Report, chosen: PreparationOptions) -> str | None:
    """What to say where hospitals have too few records; None where all are kept."""
    from hospital_client.preparation_report import hospitals_left_out

    left_out = hospitals_left_out(report)
    if not left_out:
        return None
    have, it = ("hospitals have", "them") if left_out > 1 else ("hospital has", "it")
    were = "were" if left_out > 1 else "was"
    return (
        f"note: {left_out} {have} fewer than {chosen.min_records} records and {were} left out; "
        f"a smaller --min-records keeps {it}"
    )
