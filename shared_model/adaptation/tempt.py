"""TEMPT (Section 3.4): a hospital's prompts and head on the frozen pretrained encoder. Table 3, row TEMPT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shared_model.encoder import FrozenEncoder
from shared_model.initialization import How, draw_rows
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

TITLE = "TEMPT"
PAPER = {"prauc": (0.5468, 0.0016), "jaccard": (0.3318, 0.0010), "f1": (0.4790, 0.0013)}
SCOPE = "hospital"
NEEDS = "tempt"


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    """Learn O_d, O_p and Theta_MLP of one hospital; embeddings and encoder stay as they are."""
    # Algorithm 1, lines 8-15
    return fit_recommender(build(context), train, validation, context.settings.tuning, context, "tempt")


def answer(tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended:
    return kept_answer(build(context), tensors, records, context)


class _PromptsAndHead(nn.Module):
    """O_d^(h) (first), O_p^(h) and MLP_r of one hospital."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        count = context.settings.tuning.prompts_per_modality
        self.prompts = nn.Parameter(torch.empty(2 * count, context.settings.encoder.c))
        self.head = head_of(context)

    def begin(self, how: How, generator: torch.Generator) -> None:
        """Draw the prompts."""
        draw_rows(self.prompts, how, generator)


def build(context: Context) -> Recommender:
    """Prompts and head of one hospital on the frozen encoder."""
    module = _PromptsAndHead(context).to(context.device)
    frozen = FrozenEncoder(context.pretrained)
    count = context.settings.tuning.prompts_per_modality
    row = torch.arange(2 * count, device=context.device) + context.rows.first_prompt

    def represent(
        diagnoses: CodeSets, procedures: CodeSets, hospital: Int[Tensor, " records"], dropout: Dropout | None
    ) -> Float[Tensor, "sets c"]:
        # Algorithm 1, line 11
        # Eq. 14: the prompted sets D'' and P''; the head follows Eq. 12
        sets = record_sets(diagnoses, procedures, context.rows, [row[:count], row[count:]])
        return frozen(sets, module.prompts)
        # /Eq. 14

    return Recommender(module, represent, module.head, representation_is_frozen=count == 0)
