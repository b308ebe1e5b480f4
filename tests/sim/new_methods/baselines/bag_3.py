"""A network of torch's own layers for each hospital: embeddings, LayerNorm, dropout. Made up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from shared_model.batching import FIRST_DIAGNOSIS, code_tokens
from shared_model.randomness import Dropout
from shared_model.recommendation import Context, Fitted, Recommended, Recommender, fit_recommender, head_of, kept_answer
from shared_model.records import CodeSets, RecordSet

TITLE = "Bag 3"
PAPER: dict[str, tuple[float, float | None]] = {}
SCOPE = "hospital"


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    return fit_recommender(build(context), train, validation, context.settings.training, context, "bag-3")


def answer(tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended:
    return kept_answer(build(context), tensors, records, context)


class _Bag(nn.Module):
    def __init__(self, context: Context) -> None:
        super().__init__()
        c = context.settings.encoder.c
        self.codes = nn.EmbeddingBag(context.rows.first_prompt, c)
        self.after = nn.Sequential(nn.LayerNorm(c), nn.Dropout(0.25), nn.PReLU(c))
        self.head = head_of(context)


def build(context: Context) -> Recommender:
    module = _Bag(context)

    def represent(diagnoses: CodeSets, procedures: CodeSets, hospital: Tensor, dropout: Dropout | None) -> Tensor:
        tokens = (code_tokens(diagnoses, FIRST_DIAGNOSIS), code_tokens(procedures, context.rows.first_procedure))
        return module.after(torch.cat([module.codes(of.codes, of.offsets[:-1]) for of in tokens]))

    return Recommender(module, represent, module.head)
