"""TEMPT (finetune) (Section 4.1.2): all pretrained parameters and the head, tuned. Table 3, row TEMPT (finetune)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

from jaxtyping import Float
from torch import Tensor

from shared_model.encoder import MedicalEncoder
from shared_model.recommendation import Context, Fitted, Recommender, fit_recommender, initial, recommend
from shared_model.records import RecordSet
from shared_model.whole_network import whole_network

TITLE = "TEMPT (finetune)"
PAPER = {"prauc": (0.5407, 0.0011), "jaccard": (0.3300, 0.0012), "f1": (0.4778, 0.0015)}
SCOPE = "hospital"


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    """Learn embeddings, encoder and head of one hospital, from the pretrained ones on."""
    recommender = _build(context)
    initial(recommender.head, context, "finetune")
    return fit_recommender(recommender, train, validation, context.settings.tuning, context, "finetune")


def probabilities(
    tensors: Mapping[str, Tensor], records: RecordSet, context: Context
) -> Float[Tensor, "records medications"]:
    recommender = _build(context)
    recommender.module.load_state_dict(dict(tensors))
    return recommend(recommender, records, context.settings.encoder.longest_set)


def _build(context: Context) -> Recommender:
    encoder: MedicalEncoder = deepcopy(context.pretrained).requires_grad_(True)
    return whole_network(encoder, context)
