"""Full-Train (Section 4.1.2): one network for all hospitals, without pretraining. Table 3, row Full-Train."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from shared_model.encoder import MedicalEncoder
from shared_model.recommendation import Context, Fitted, Recommended, Recommender, fit_recommender, kept_answer
from shared_model.records import RecordSet
from shared_model.whole_network import whole_network

TITLE = "Full-Train"
PAPER = {"prauc": (0.4840, 0.0014), "jaccard": (0.2839, 0.0010), "f1": (0.4265, 0.0011)}
SCOPE = "consortium"


def fit(train: RecordSet, validation: RecordSet, context: Context) -> Fitted:
    """Learn embeddings, encoder and head on the records of every hospital."""
    return fit_recommender(build(context), train, validation, context.settings.training, context, "full-train")


def answer(tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended:
    return kept_answer(build(context), tensors, records, context)


def build(context: Context) -> Recommender:
    """A new encoder with a new head."""
    return whole_network(MedicalEncoder(context.settings.encoder, context.rows), context)
