"""Encoder and head that learn as a whole: Full-Train, Single-Train and TEMPT (finetune) (Section 4.1.2)."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from shared_model.encoder import MedicalEncoder
from shared_model.randomness import Dropout
from shared_model.recommendation import Context, Recommender, head_of, record_sets
from shared_model.records import CodeSets


class _WholeNetwork(nn.Module):
    def __init__(self, encoder: MedicalEncoder, context: Context) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head_of(context)


def whole_network(encoder: MedicalEncoder, context: Context) -> Recommender:
    """MLP_r behind an encoder; both are trained."""
    module = _WholeNetwork(encoder, context).to(context.device)

    def represent(
        diagnoses: CodeSets, procedures: CodeSets, hospital: Int[Tensor, " records"], dropout: Dropout | None
    ) -> Float[Tensor, "sets c"]:
        return module.encoder(record_sets(diagnoses, procedures, context.rows), dropout)  # type: ignore[no-any-return]

    return Recommender(module, represent, module.head)
