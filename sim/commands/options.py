"""Options that several commands take, declared once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from shared_model.errors import TemptError

if TYPE_CHECKING:
    from hospital_client.preparation_options import PreparationOptions

Force = Annotated[bool, typer.Option("--force", help="Replace the folder, whole, that this command made.")]


@dataclass(frozen=True)
class Preparation:
    """How raw tables become a dataset."""

    min_records: Annotated[
        int | None, typer.Option(min=1, help="Records that a hospital needs to be kept.", show_default="400")
    ] = None
    top_medications: Annotated[int, typer.Option(min=1, help="Most frequent medications kept.")] = 300
    top_procedures: Annotated[int, typer.Option(min=1, help="Most frequent procedures kept.")] = 1000
    split_by_patient: Annotated[
        bool, typer.Option("--split-by-patient", help="Keep a patient's stays in one part of the split.")
    ] = False
    observation_window: Annotated[
        float | None,
        typer.Option("--observation-window", min=0, help="Leave out codes entered later, in hours after admission."),
    ] = None
    leave_out_drug_procedures: Annotated[
        bool, typer.Option("--leave-out-drug-procedures", help="Leave out procedures that name a drug.")
    ] = False
    leave_out_cancelled_orders: Annotated[
        bool, typer.Option("--leave-out-cancelled-orders", help="Leave out cancelled medication orders.")
    ] = False

    def chosen(self) -> PreparationOptions:
        """The options, checked; what was not given stands for a default.

        Raises:
            TemptError: a value is out of its bounds.
        """
        from pydantic import ValidationError

        from hospital_client.preparation_options import PreparationOptions

        values = asdict(self)
        values["observation_window_hours"] = values.pop("observation_window")
        try:
            return PreparationOptions(**{name: value for name, value in values.items() if value is not None})
        except ValidationError as error:
            mistakes = (f"{option_of(str(of['loc'][0]))}={of['input']}: {of['msg']}" for of in error.errors())
            raise TemptError("; ".join(mistakes)) from None


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


def option_of(field: str) -> str:
    """The option that sets a field of the preparation's."""
    return "--observation-window" if field == "observation_window_hours" else f"--{field.replace('_', '-')}"
