"""The losses: mask prediction (Eq. 5-7), contrastive (Eq. 8-10), their sum (Eq. 11) and recommendation (Eq. 13).

Losses are means over the vocabulary and over the batch's records, both modalities added. The scale matters: summed
over the vocabulary, gamma = 0.01 would leave the contrastive term 0.3% of the encoder's gradient.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shared_model.batching import MASK
from shared_model.records import CodeSets


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Every MLP of the paper, which leaves their depth open: Linear-ReLU-Linear with the input's width inside."""
    return nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, outputs))


def choose_masked(sets: CodeSets, uniform: Float[Tensor, " codes"], fraction: float) -> Bool[Tensor, " codes"]:
    """The codes to mask: each with probability `fraction`, and the one of the smallest number where a set had none.

    At 15% most diagnosis sets would have no masked code otherwise (Section 3.3.1 says nothing of it).
    """
    owner = torch.repeat_interleave(sets.lengths, output_size=len(sets.codes))
    smallest = torch.full((len(sets),), math.inf, dtype=uniform.dtype, device=uniform.device)
    smallest = smallest.scatter_reduce(0, owner, uniform, "amin")
    return (uniform < fraction) | (uniform == smallest[owner])


def masked_labels(sets: CodeSets, masked: Bool[Tensor, " codes"], width: int) -> Float[Tensor, "records width"]:
    """y_d or y_p of Eq. 6: 1 at each set's masked codes; codes that are shown count as absent."""
    labels = torch.zeros(len(sets), width, device=sets.codes.device)
    owner = torch.repeat_interleave(sets.lengths, output_size=len(sets.codes))
    labels[owner[masked], sets.codes[masked]] = 1
    return labels


def hide(
    tokens: CodeSets,
    masked: Bool[Tensor, " codes"],
    *,
    mask_token_fraction: float,
    random_code_fraction: float,
    rows: range,
    generator: torch.Generator,
) -> CodeSets:
    """D' and P' of Section 3.3.1: masked tokens become [MASK], a random one of `rows`, or stay."""
    if mask_token_fraction == 1:
        return CodeSets(tokens.codes.masked_fill(masked, MASK), tokens.offsets)
    device = tokens.codes.device
    uniform = torch.rand(len(tokens.codes), device=device, generator=generator)
    random_rows = torch.randint(rows.start, rows.stop, (len(tokens.codes),), device=device, generator=generator)
    replaced: Int[Tensor, " codes"] = torch.where(
        uniform < mask_token_fraction + random_code_fraction, random_rows, tokens.codes
    )
    replaced = replaced.masked_fill(uniform < mask_token_fraction, MASK)
    return CodeSets(torch.where(masked, replaced, tokens.codes), tokens.offsets)


def mask_prediction_loss(
    logits_d: Float[Tensor, "records diagnoses"],
    labels_d: Float[Tensor, "records diagnoses"],
    logits_p: Float[Tensor, "records procedures"],
    labels_p: Float[Tensor, "records procedures"],
) -> Float[Tensor, ""]:
    """L_mask, a mean over records, from the logits of MLP_m1 and MLP_m2."""
    # Eq. 5-6: the sigmoid is inside the cross-entropy
    loss_d = F.binary_cross_entropy_with_logits(logits_d, labels_d.to(logits_d.dtype))
    loss_p = F.binary_cross_entropy_with_logits(logits_p, labels_p.to(logits_p.dtype))
    # /Eq. 5-6
    # Eq. 7
    return loss_d + loss_p
    # /Eq. 7


def contrastive_loss(
    u_d: Float[Tensor, "records c"], u_p: Float[Tensor, "records c"], temperature: float
) -> Float[Tensor, ""]:
    """L_contrastive of a batch: procedures told apart for each diagnosis set, and the reverse.

    Without the positive in its denominator it can be negative. A batch of one has no negatives: the loss is 0.
    """
    if len(u_d) == 1:
        return (u_d.sum() + u_p.sum()) * 0
    similarity = _direction(u_d) @ _direction(u_p).T / temperature  # records records
    positive = similarity.diagonal()
    # Eq. 9: the positive pair is not in the denominator
    negatives = similarity.masked_fill(torch.eye(len(u_d), dtype=torch.bool, device=u_d.device), -math.inf)
    loss_dp = (negatives.logsumexp(1) - positive).mean()
    # /Eq. 9
    # Eq. 10: L_pd exchanges diagnoses and procedures
    loss_pd = (negatives.logsumexp(0) - positive).mean()
    return loss_dp + loss_pd
    # /Eq. 10


def _direction(u: Float[Tensor, "records c"]) -> Float[Tensor, "records c"]:
    """u / |u|, which is 0 and has no gradient where u is 0, as where all of an MLP's hidden units are off."""
    return F.normalize(torch.where((u == 0).all(1, keepdim=True), u.detach(), u), dim=1)


def least_contrastive_loss(records: int, temperature: float) -> float:
    """What L_contrastive of a batch of so many records can't be below; regular simplices on u_d = u_p reach it."""
    if records < 2:
        return 0.0
    # Eq. 9, rearranged: logsumexp is at least the mean plus log(records - 1). So L_dp is at least log(records - 1) +
    # (sum of all cosines - records * sum of the positives') / (records (records - 1) tau). That bracket is minus half
    # the sum over pairs of (u_d,i - u_d,j)(u_p,i - u_p,j), and for vectors of at most length 1 it is at least
    # -records^2 (Cauchy-Schwarz). Eq. 10 is alike.
    return 2 * (math.log(records - 1) - records / (records - 1) / temperature)
    # /Eq. 9


def recommendation_loss(
    logits: Float[Tensor, "records medications"], labels: Float[Tensor, "records medications"]
) -> Float[Tensor, ""]:
    """L_tune, a mean over records and medications, from the logits of MLP_r."""
    # Eq. 13: the sigmoid of Eq. 12 and 14 is inside the cross-entropy
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    # /Eq. 13
