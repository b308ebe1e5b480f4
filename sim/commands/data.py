"""`tempt synth` and `tempt prepare`: a made-up consortium, and raw eICU tables to a dataset."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from shared_model import begun
from shared_model.lines import say, tell
from sim.commands import options
from sim.commands.option_groups import grouped
from sim.commands.verb import as_called


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


@grouped
def prepare(
    raw: Annotated[Path, typer.Argument(help="The directory of raw eICU tables.")],
    dataset: Annotated[Path, typer.Argument(help="The dataset directory to make.")],
    preparation: options.Preparation,
    force: options.Force = False,
) -> None:
    """Turn raw eICU tables into a dataset, and print what became of them.

    Example: tempt prepare eicu/ dataset/
    """
    from hospital_client.preparation import prepare as make
    from hospital_client.preparation_report import left_out_note, report_lines

    report = make(raw, dataset, preparation.chosen(), force=force)
    begun.begin()
    tell(*report_lines(report))
    if note := left_out_note(report):
        say(note)
    tell(f"Next: {as_called()} simulate centralized --data {shlex.quote(str(dataset))}")
