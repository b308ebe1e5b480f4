"""Options of a federation that `tempt server launch` and `tempt simulate federated` both take."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from shared_model.algorithms import algorithms
from shared_model.errors import TemptError

_known: tuple[str, ...] = ()
with suppress(TemptError):  # of a file's name: whoever needs the algorithm is told
    _known = algorithms()
Strategy = Annotated[str, typer.Option(help=f"How updates are averaged: {', '.join(_known)}.")]
StrategyOption = Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the strategy, such as proximal_mu=0.01.")]
LocalEpochs = Annotated[int, typer.Option(min=1, help="Passes over a hospital's records in a round.")]
LocalOptimizer = Annotated[str, typer.Option(help="reset or keep: Adam's moments from round to round.")]
Fraction = Annotated[float, typer.Option(help="Share of the hospitals that train in a round.")]
Quorum = Annotated[float, typer.Option(help="Share of the expected hospitals whose updates a round needs.")]
LargestUpdate = Annotated[
    float, typer.Option(help="Norm of an update, in norms of the model, above which it is refused.")
]
Transport = Annotated[str, typer.Option(help="float32 or bfloat16: how tensors travel.")]
ChangedRows = Annotated[
    bool, typer.Option("--changed-rows", help="Send only the rows of matrices that a hospital moved.")
]
