"""Options that several commands take, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared_model.errors import TemptError

if TYPE_CHECKING:
    from hospital_client.preparation_options import PreparationOptions

MinRecords = Annotated[
    int | None, typer.Option(min=1, help="Records that a hospital needs to be kept.", show_default="400")
]
TopMedications = Annotated[int, typer.Option(min=1, help="Most frequent medications kept.")]
TopProcedures = Annotated[int, typer.Option(min=1, help="Most frequent procedures kept.")]
SplitByPatient = Annotated[
    bool, typer.Option("--split-by-patient", help="Keep a patient's stays in one part of the split.")
]
ObservationWindow = Annotated[
    float | None,
    typer.Option("--observation-window", min=0, help="Leave out codes entered later, in hours after admission."),
]
LeaveOutDrugProcedures = Annotated[
    bool, typer.Option("--leave-out-drug-procedures", help="Leave out procedures that name a drug.")
]
LeaveOutCancelled = Annotated[
    bool, typer.Option("--leave-out-cancelled-orders", help="Leave out cancelled medication orders.")
]
Data = Annotated[
    Path | None,
    typer.Option(help="A raw eICU directory or a dataset directory.", show_default="a small synthetic consortium"),
]
Out = Annotated[Path | None, typer.Option(help="The run directory.", show_default="runs/ and the mode")]
Models = Annotated[
    str,
    typer.Option(
        help="Rows of the table, in order, such as tempt,single-train; a wrong name lists all.", show_default="all"
    ),
]
Preset = Annotated[str, typer.Option(help="Settings to start from: paper or released.")]
Seeds = Annotated[str, typer.Option(help="Seeds of split and training; the paper has 42,43,44,45,46.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="FIELD=VALUE of a setting, such as tuning.epochs=5; a wrong field lists all."),
]
Hospitals = Annotated[str, typer.Option(help="Only these hospitals, with commas.", show_default="all")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the directory.")]
SaveScores = Annotated[bool, typer.Option("--save-scores", help="Keep every test record's labels and scores.")]
_MOST_THREADS = 10_000  # more than machines have; each may become a process with a model of its own
Jobs = Annotated[
    int | None, typer.Option(min=1, max=_MOST_THREADS, help="Threads in all.", show_default="the machine's cores")
]
Threads = Annotated[
    int,
    typer.Option(
        min=1, max=_MOST_THREADS, help="Threads of a fit on all hospitals together, or of a hospital in a federation."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the folder, whole, that this command made.")]


def assignments(texts: list[str], option: str = "--set", example: str = "pretraining.epochs=5") -> dict[str, str]:
    """An option FIELD=VALUE that can be given several times, as a mapping.

    Raises:
        TemptError: a text has no `=`, or a field is set twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise TemptError(f"{option} {text}: expected NAME=VALUE, such as {example}")
        if name.strip() in pairs:
            raise TemptError(f"{option} {name.strip()}: is set twice; give it once")
        pairs[name.strip()] = value.strip()
    return pairs


def preparation(**values: Any) -> PreparationOptions:
    """The options of a preparation; None stands for a default.

    Raises:
        TemptError: a value is out of its bounds.
    """
    from pydantic import ValidationError

    from hospital_client.preparation_options import PreparationOptions

    try:
        return PreparationOptions(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        mistakes = (f"{option_of(str(of['loc'][0]))}={of['input']}: {of['msg']}" for of in error.errors())
        raise TemptError("; ".join(mistakes)) from None


def option_of(field: str) -> str:
    """The option that sets a field of the preparation's."""
    return "--observation-window" if field == "observation_window_hours" else f"--{field.replace('_', '-')}"


def is_dataset(directory: Path) -> bool:
    """Whether a directory is one that `tempt prepare` made."""
    return (directory / "dataset.json").is_file()
