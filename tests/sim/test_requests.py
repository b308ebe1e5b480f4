"""What the command line asks for: every option is in the request, and the defaults are Python's."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from hospital_client.preparation_options import PreparationOptions
from server.federation_settings import FederationSettings
from sim.cli import run as tempt
from sim.command import app
from sim.commands.option_groups import grouped
from sim.methods import Mode
from sim.request import Request

EVERY_OPTION = {
    "--data": "raw",
    "--out": "run",
    "--models": "tempt, finetune",
    "--preset": "released",
    "--seeds": "44,43",
    "--device": "cuda:3",
    "--set": "tuning.epochs=5",
    "--hospitals": "7,5",
    "--resume": None,
    "--force": None,
    "--save-scores": None,
    "--jobs": "11",
    "--threads": "13",
    "--min-records": "17",
    "--top-medications": "19",
    "--top-procedures": "23",
    "--split-by-patient": None,
    "--observation-window": "29.5",
    "--leave-out-drug-procedures": None,
    "--leave-out-cancelled-orders": None,
    "--engine": "ray",
    "--ray-address": "auto",
    "--strategy": "fedprox",
    "--strategy-option": "proximal_mu=0.25",
    "--rounds": "31",
    "--local-epochs": "37",
    "--local-optimizer": "keep",
    "--fraction": "0.5",
    "--quorum": "0.75",
    "--largest-update": "41.5",
    "--transport": "bfloat16",
    "--changed-rows": None,
    "--beside": "b,a",
}
PREPARATION = PreparationOptions(
    min_records=17,
    top_medications=19,
    top_procedures=23,
    split_by_patient=True,
    observation_window_hours=29.5,
    leave_out_drug_procedures=True,
    leave_out_cancelled_orders=True,
)
FEDERATION = FederationSettings(
    strategy="fedprox",
    options={"proximal_mu": 0.25},
    rounds=31,
    local_epochs=37,
    local_optimizer="keep",
    fraction=0.5,
    quorum=0.75,
    largest_update=41.5,
    transport="bfloat16",
    changed_rows=True,
)
EVERYTHING = Request(
    "federated",
    data=Path("raw"),
    out=Path("run"),
    models=("tempt", "finetune"),
    preset="released",
    settings={"tuning.epochs": "5"},
    seeds=(44, 43),
    device="cuda:3",
    hospitals=(7, 5),
    resume=True,
    force=True,
    save_scores=True,
    jobs=11,
    threads=13,
    preparation=PREPARATION,
    federation=FEDERATION,
    engine="ray",
    ray_address="auto",
    beside=(Path("b"), Path("a")),
    command=("tempt", "as", "typed"),
)
MODES: tuple[Mode, ...] = ("centralized", "local", "federated")


def options_of(mode: Mode) -> list[str]:
    command = typer.main.get_command(app)
    for name in ("simulate", mode):
        command = command.commands[name]  # type: ignore[attr-defined]
    return [parameter.opts[0] for parameter in command.params]


def request_of(monkeypatch: pytest.MonkeyPatch, mode: Mode, options: dict[str, str | None]) -> Request:
    """What the command asks `run` for."""
    found: list[Request] = []

    class Stop(Exception):
        pass

    def stop(request: Request, *_: object) -> None:
        found.append(request)
        raise Stop

    monkeypatch.setattr("sim.runs.run", stop)
    monkeypatch.setattr(sys, "argv", ["tempt.py", "as", "typed"])
    with pytest.raises(Stop):
        tempt(["simulate", mode, *(word for pair in options.items() for word in pair if word is not None)])
    return found[0]


@pytest.mark.parametrize("mode", MODES)
def test_every_option_is_in_the_request(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    expected, options = EVERYTHING, EVERY_OPTION
    if mode != "federated":
        options = dict(list(EVERY_OPTION.items())[: list(EVERY_OPTION).index("--engine")])
        expected = replace(EVERYTHING, mode=mode, federation=None, engine="inprocess", ray_address=None, beside=())
    assert options_of(mode) == list(options)  # in the order of the help
    assert request_of(monkeypatch, mode, options) == expected


def test_every_field_of_a_request_is_asked_for_by_an_option() -> None:
    """Else the test above would hold two defaults to each other."""
    plain = Request("centralized")
    for found, default in ((EVERYTHING, plain), (PREPARATION, plain.preparation), (FEDERATION, FederationSettings())):
        names = (
            [field.name for field in fields(found)] if isinstance(found, Request) else list(type(found).model_fields)
        )
        same = [name for name in names if getattr(found, name) == getattr(default, name)]
        # of a deployment, where messages can be lost and hospitals may lie
        assert same == (["timeout", "most_records"] if found is FEDERATION else [])


@pytest.mark.parametrize("mode", MODES)
def test_command_without_options_asks_for_what_a_request_without_arguments_is(
    monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    expected = Request(
        mode, federation=FederationSettings() if mode == "federated" else None, command=("tempt", "as", "typed")
    )
    found = request_of(monkeypatch, mode, {})
    assert found == expected
    assert "min_records" not in found.preparation.model_fields_set  # which the small consortium has its own of


def test_fields_of_groups_are_options_in_the_place_of_their_parameter() -> None:
    @dataclass(frozen=True)
    class Colours:
        red: Annotated[int, typer.Option(help="How red.")]
        blue: int = 3

    @dataclass(frozen=True)
    class Sizes:
        width: float = 5.0

    found: list[Any] = []

    def paint(before: int, colours: Colours, between: str = "x", *, sizes: Sizes, after: bool = False) -> None:
        """Paint it."""
        found.append((before, colours, between, sizes, after))

    paint.__annotations__ |= {"colours": Colours, "sizes": Sizes}
    painted = grouped(paint)
    parameters = inspect.signature(painted).parameters
    assert list(parameters) == ["before", "red", "blue", "between", "width", "after"]
    empty = inspect.Parameter.empty
    assert [of.default for of in parameters.values()] == [empty, empty, 3, "x", 5.0, False]
    assert parameters["red"].annotation.__metadata__[0].help == "How red."
    assert painted.__doc__ == "Paint it."
    painted(before=1, red=2, blue=4, between="y", width=7.0, after=True)
    assert found == [(1, Colours(2, 4), "y", Sizes(7.0), True)]
