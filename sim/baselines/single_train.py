"""Single-Train (Section 4.1.2): a network for each hospital, without pretraining. Table 3, row Single-Train."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from shared_model.encoder import MedicalEncoder
from shared_model.recommendation import Context, Fitted, Recommended, Recommender, fit_recommender, kept_answer
from shared_model.records import RecordSet
from shared_model.whole_network import whole_network

TITLE = "Single-Train"
PAPER = {"prauc": (0.5033, 0.0009), "jaccard": (0.2950, 0.0018), "f1": (0.4364, 0.0011)}
SCOPE = "hospital"


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    """Learn embeddings, encoder and head on one hospital's records."""
    return fit_recommender(build(context), train, validation, context.settings.training, context, "single-train")


def answer(tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended:
    return kept_answer(build(context), tensors, records, context)


def build(context: Context) -> Recommender:
    """A new encoder with a new head."""
    return whole_network(MedicalEncoder(context.settings.encoder, context.rows), context)
