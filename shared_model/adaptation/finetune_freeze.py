"""TEMPT (finetune-freeze) (Section 4.7): the head alone, on the frozen encoder without prompts. A row of Table 7."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor

from shared_model.encoder import FrozenEncoder
from shared_model.randomness import Dropout
from shared_model.recommendation import (
    Context,
    Fitted,
    Recommended,
    Recommender,
    fit_recommender,
    head_of,
    kept_answer,
    record_sets,
)
from shared_model.records import CodeSets, RecordSet

TITLE = "TEMPT (finetune-freeze)"
PAPER = {"prauc": (0.5404, None)}
SCOPE = "hospital"
NEEDS = "tempt"


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    """Learn Theta_MLP of one hospital."""
    return fit_recommender(build(context), train, validation, context.settings.tuning, context, "finetune-freeze")


def answer(tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended:
    return kept_answer(build(context), tensors, records, context)


def build(context: Context) -> Recommender:
    """A new head on the frozen encoder."""
    head = head_of(context).to(context.device)
    frozen = FrozenEncoder(context.pretrained)

    def represent(
        diagnoses: CodeSets, procedures: CodeSets, hospital: Int[Tensor, " records"], dropout: Dropout | None
    ) -> Float[Tensor, "sets c"]:
        return frozen(record_sets(diagnoses, procedures, context.rows))

    return Recommender(head, represent, head, representation_is_frozen=True)
