"""`tempt recommend`: what a run's model recommends for one patient."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared_model.lines import takes, tell

if TYPE_CHECKING:
    from sim.recommend import Recommendation


def recommend(
    run: Annotated[Path, typer.Argument(help="A run directory, or a hospital's --state.")],
    hospital: Annotated[int, typer.Option(help="The patient's hospital.")],
    diagnosis: Annotated[
        list[str], typer.Option(help="A whole field of icd9code, as vocabulary.json lists them; repeat it for more.")
    ],
    procedure: Annotated[list[str], typer.Option(help="A whole field of treatmentstring; repeat it for more.")],
    model: Annotated[str, typer.Option(help="A model of the run.")] = "tempt",
    seed: Annotated[int | None, typer.Option(help="A seed of the run.", show_default="the first")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every medication as JSON.")] = False,
) -> None:
    """Recommend medications for one patient of one hospital. Research software, not for clinical use.

    Example: tempt recommend runs/demo --hospital 101 --diagnosis "428.9, I50.0" --procedure "cardiovascular|assessment|telemetry"
    """  # noqa: E501
    from sim.recommend import recommend as answer
    from sim.recommend import threshold_of

    medications = answer(run, model, seed, hospital, diagnosis, procedure)
    if as_json:
        content = [asdict(one) for one in medications]
        text = json.dumps(content, indent=1, ensure_ascii=False)
        lines = text.split("\n")  # JSON has escapes of its own for what a terminal can't show, or must not
        as_it_is = takes(text) and all(map(str.isprintable, lines))
        tell(*(lines if as_it_is else json.dumps(content, indent=1).split("\n")))
        return
    recommended = [one for one in medications if one.recommended]
    tell(f"{'HICL':>8}  {'probability':>11}  medication")
    for one in recommended:
        tell(f"{one.medication:>8}  {_probability(one):>11}  {one.name}")
    if all(one.probability is None for one in medications):
        tell(f"{len(recommended)} of {len(medications)} medications are recommended; {model} gives no probabilities.")
        tell("Research software: not for clinical use.")
        return
    rest = [one for one in medications if not one.recommended][:3]
    threshold = threshold_of(run, seed)
    by_it = all(one.recommended == (one.probability is not None and one.probability > threshold) for one in medications)
    are = f"are above the threshold {threshold:g}" if by_it else "are recommended"
    tell(f"{len(recommended)} of {len(medications)} medications {are}; the next:")
    for one in rest:
        tell(f"{one.medication:>8}  {_probability(one):>11}  {one.name}")
    tell("Research software: not for clinical use.")


def _probability(one: Recommendation) -> str:
    return "-" if one.probability is None else f"{one.probability:.3f}"
