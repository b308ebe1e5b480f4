"""TEMPT's pretraining, stage 1 of Algorithm 1: the network of both self-supervised tasks, their loss, and the score."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from shared_model.batching import FIRST_DIAGNOSIS, MASK, TokenRows, code_tokens, pack
from shared_model.encoder import MedicalEncoder
from shared_model.initialization import initialize, start_at_rates
from shared_model.metrics import average_precision
from shared_model.objectives import (
    choose_masked,
    contrastive_loss,
    hide,
    least_contrastive_loss,
    mask_prediction_loss,
    masked_labels,
    mlp,
)
from shared_model.pretraining import Pretraining
from shared_model.randomness import Dropout, uniform_of
from shared_model.recommendation import Context
from shared_model.records import CodeSets, RecordSet
from shared_model.settings import EncoderSettings, PretrainingSettings

_EVALUATION_BATCH = 512


class PretrainingNetwork(nn.Module):
    """The encoder with MLP_m1, MLP_m2 (Eq. 5), MLP_d and MLP_p (Eq. 8); all of it is shared in a federation."""

    def __init__(
        self,
        settings: EncoderSettings,
        rows: TokenRows,
        generator: torch.Generator,
        output_bias: Literal["rate", "zero"] = "rate",
    ) -> None:
        super().__init__()
        c = settings.c
        self.encoder = MedicalEncoder(settings, rows)
        self.mask_diagnoses = mlp(c, rows.diagnoses)
        self.mask_procedures = mlp(c, rows.procedures)
        self.project_diagnoses = mlp(c, c)
        self.project_procedures = mlp(c, c)
        initialize(self, settings.initialization, generator)
        if output_bias == "rate":
            # One masked code a set, whichever: a rate that is known without any record, so that every side has the same
            start_at_rates(self.mask_diagnoses, torch.full((rows.diagnoses,), 1 / max(rows.diagnoses, 2)))
            start_at_rates(self.mask_procedures, torch.full((rows.procedures,), 1 / max(rows.procedures, 2)))


class PretrainingTask:
    """Mask prediction and contrast on some training records; a task of `training.train`."""

    def __init__(
        self,
        network: PretrainingNetwork,
        train: RecordSet,
        validation: RecordSet,
        settings: PretrainingSettings,
        *,
        seed: int,
    ) -> None:
        self.module = network
        self._settings, self._seed = settings, seed
        longest = network.encoder.settings.longest_set
        self._diagnoses, self._procedures = train.diagnoses.truncated(longest), train.procedures.truncated(longest)
        self._validation = _HiddenDiagnoses(validation, longest, settings.mask_fraction, seed, network.encoder.rows)
        self.records = len(train)
        self.validation_records = len(validation)

    def loss(self, index: Int[Tensor, " batch"], generator: torch.Generator) -> Float[Tensor, ""]:
        """L_pretrain of the records at `index`; masks and dropout are drawn from the generator."""
        network, rows, settings = self.module, self.module.encoder.rows, self._settings
        sets = (self._diagnoses.select(index), self._procedures.select(index))
        spans = (range(FIRST_DIAGNOSIS, rows.first_procedure), range(rows.first_procedure, rows.first_prompt))
        hidden, labels = [], []
        for codes, span in zip(sets, spans, strict=True):
            # Algorithm 1, line 3
            uniform = torch.rand(len(codes.codes), device=index.device, generator=generator)
            masked = choose_masked(codes, uniform, settings.mask_fraction)
            hidden.append(
                hide(
                    code_tokens(codes, span.start),
                    masked,
                    mask_token_fraction=settings.mask_token_fraction,
                    random_code_fraction=settings.random_code_fraction,
                    rows=span,
                    generator=generator,
                )
            )
            labels.append(masked_labels(codes, masked, len(span)))
        r_d, r_p = network.encoder(pack(hidden), Dropout(generator)).split(len(index))
        # Algorithm 1, line 4
        mask_loss = mask_prediction_loss(
            network.mask_diagnoses(r_d), labels[0], network.mask_procedures(r_p), labels[1]
        )
        # Algorithm 1, line 5
        # Eq. 8: of the masked representations
        u_d, u_p = network.project_diagnoses(r_d), network.project_procedures(r_p)
        # /Eq. 8
        # Algorithm 1, line 6
        # Eq. 11
        return mask_loss + settings.contrastive_weight * contrastive_loss(u_d, u_p, settings.temperature)
        # /Eq. 11

    def score(self) -> float:
        """The mean PRAUC of the validation records' masked diagnoses among the codes not shown (Section 4.1.3)."""
        return self.score_sum() / max(self.validation_records, 1)

    def score_sum(self) -> float:
        """The same before the division: hospitals add sums and counts up, so that a record counts alike everywhere."""
        return self._validation.score_sum(self.module)


_ROUNDING = 1e-3  # of float32 in a cosine of c <= 4096 products, many times over


def least_loss(settings: PretrainingSettings, records: int) -> float:
    """What the mean loss of an epoch over so many records can't be below: Eq. 9 can be negative."""
    if not settings.contrastive_weight or not records:
        return 0.0
    full, last = divmod(records, settings.batch_size)
    total = 0.0
    for size, batches in ((settings.batch_size, full), (last, 1)):
        if size > 1 and batches:
            scale = math.log(size) + 2 / settings.temperature  # of what is subtracted in the bound
            least = least_contrastive_loss(size, settings.temperature) - 2 * _ROUNDING * scale
            total += batches * size * least
    # Eq. 11: a cross-entropy (Eq. 6) is at least 0, and so is what FedProx adds
    return settings.contrastive_weight * total / records
    # /Eq. 11


def slope(settings: PretrainingSettings) -> float:
    """How much steeper the loss can be than the mask loss alone, which gradients are measured by."""
    # Eq. 6: by all logits of both modalities the mask loss changes by at most 2. Eq. 9 and 10: by all cosines the
    # contrastive loss does by at most 4 / tau.
    return max(1.0, 2 * settings.contrastive_weight / settings.temperature)
    # /Eq. 6


class _HiddenDiagnoses:
    """Validation records with masks fixed by (seed, record), so that every side of a federation hides the same."""

    def __init__(self, records: RecordSet, longest: int, fraction: float, seed: int, rows: TokenRows) -> None:
        self._sets = records.diagnoses.truncated(longest)
        stay = torch.repeat_interleave(records.stay, self._sets.lengths)
        uniform = uniform_of(seed, "validation-mask", stay, self._sets.codes)
        self._masked = choose_masked(self._sets, uniform, fraction)
        self._width = rows.diagnoses

    @torch.no_grad()
    def score_sum(self, network: PretrainingNetwork) -> float:
        total = 0.0
        for index in torch.arange(len(self._sets), device=self._sets.codes.device).split(_EVALUATION_BATCH):
            sets = self._sets.select(index)
            masked = CodeSets(self._masked.long(), self._sets.offsets).select(index).codes.bool()
            tokens = code_tokens(sets, FIRST_DIAGNOSIS)
            hidden = CodeSets(torch.where(masked, MASK, tokens.codes), tokens.offsets)
            logits = network.mask_diagnoses(network.encoder(pack([hidden]), None))
            labels = masked_labels(sets, masked, self._width)
            shown = masked_labels(sets, ~masked, self._width) > 0
            total += float(average_precision(logits.masked_fill(shown, -torch.inf), labels).sum())
        return total


def network(context: Context, draws: torch.Generator) -> PretrainingNetwork:
    """A new network of the context's settings."""
    return PretrainingNetwork(context.settings.encoder, context.rows, draws, context.settings.pretraining.output_bias)


def task(network: nn.Module, train: RecordSet, validation: RecordSet, context: Context) -> PretrainingTask:
    """Both tasks on these records."""
    assert isinstance(network, PretrainingNetwork)
    return PretrainingTask(network, train, validation, context.settings.pretraining, seed=context.seed)


PRETRAINING = Pretraining(network, task, lambda context: context.settings.pretraining, reads="encoder")
