"""TEMPT (finetune) (Section 4.1.2): all pretrained parameters and the head, tuned. Table 3, row TEMPT (finetune)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from torch import Tensor

from shared_model.encoder import MedicalEncoder
from shared_model.recommendation import Context, Fitted, Recommended, Recommender, fit_recommender, kept_answer
from shared_model.records import RecordSet
from shared_model.whole_network import whole_network

TITLE = "TEMPT (finetune)"
PAPER = {"prauc": (0.5407, 0.0011), "jaccard": (0.3300, 0.0012), "f1": (0.4778, 0.0015)}
SCOPE = "hospital"
NEEDS = "tempt"


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    """Learn embeddings, encoder and head of one hospital, from the pretrained ones on."""
    return fit_recommender(build(context), train, validation, context.settings.tuning, context, "finetune")


def answer(tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended:
    return kept_answer(build(context), tensors, records, context)


def build(context: Context) -> Recommender:
    """A copy of the pretrained encoder, free to learn, with a new head."""
    encoder: MedicalEncoder = deepcopy(context.pretrained).requires_grad_(True)
    recommender = whole_network(encoder, context)
    return recommender._replace(to_initialize=recommender.head)
