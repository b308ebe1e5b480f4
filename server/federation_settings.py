"""What a federation is run with, beside the model's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from shared_model.algorithms import algorithm, chosen
from shared_model.comma_lists import LARGEST
from shared_model.errors import TemptError
from shared_model.settings import MOST_EPOCHS
from shared_model.transport import Transport


class FederationSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How rounds are run and updates are averaged."""

    strategy: str = Field("fedavg", description="a federated algorithm by name")
    options: dict[str, float] = Field({}, description="the strategy's own")
    rounds: int | None = Field(
        None, ge=1, le=MOST_EPOCHS, description="at most; as many as give `pretraining.epochs` local epochs"
    )
    local_epochs: int = Field(1, ge=1, le=1000, description="passes over a hospital's records in a round")
    local_optimizer: Literal["reset", "keep"] = Field("reset", description="Adam's moments at the start of a round")
    fraction: float = Field(1.0, gt=0, le=1, description="of the hospitals that train in a round")
    quorum: float = Field(0.5, gt=0, le=1, description="of those expected, whose updates a round needs")
    timeout: float | None = Field(
        None,
        gt=0,
        le=604_800,  # a week; the system's clocks of waiting hold some more
        description="seconds that an exchange waits for replies; None where no message can be lost",
    )
    largest_update: float = Field(
        10.0,
        gt=0,
        le=1e6,  # an update of a million norms leaves nothing of the model
        description="norm of an update, in norms of the tensors that went out, above which it is refused",
    )
    most_records: int | None = Field(
        None,
        ge=1,
        le=LARGEST,
        description="training records that one hospital counts with, whatever it says",
        exclude_if=lambda most: most is None,  # so that runs of before it was there are still gone on with
    )
    transport: Literal["float32", "bfloat16"] = Field("float32", description="how tensors travel in rounds")
    changed_rows: bool = Field(False, description="of a matrix a hospital sends only the rows that moved")

    @property
    def encoding(self) -> Transport:
        """How both sides write tensors into messages."""
        return Transport(bfloat16=self.transport == "bfloat16", changed_rows=self.changed_rows)

    def needed(self, of: int) -> int:
        """How many of so many are a quorum: at least one, and 7 of 25 for 0.28, though 0.28 * 25 is above 7."""
        return max(1, math.ceil(self.quorum * of - 1e-9))

    @field_validator("strategy", "options")
    @classmethod
    def _known(cls, value: Any, info: Any) -> Any:
        name = value if info.field_name == "strategy" else info.data.get("strategy")
        if name is not None and info.field_name == "options":
            chosen(name, value)
        elif info.field_name == "strategy":
            algorithm(value)
        return value


def federation_settings(**values: Any) -> FederationSettings:
    """The settings, checked.

    Raises:
        TemptError: a value is out of type or bounds (all are named), or no strategy or option has that name.
    """
    try:
        return FederationSettings(**values)
    except ValidationError as error:
        raise TemptError(mistakes(error)) from None


def mistakes(error: ValidationError) -> str:
    """All mistakes of options, each as the command line names it."""
    return "; ".join(_mistake(detail) for detail in error.errors())


def _mistake(detail: Mapping[str, Any]) -> str:
    stage, *name = (str(part) for part in detail["loc"])
    if stage == "options" and name:
        return f"--strategy-option {name[0]}={detail['input']}: {detail['msg']}"
    return f"--{stage.replace('_', '-')}={detail['input']}: {detail['msg']}"
