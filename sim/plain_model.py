"""The same network trained the plain way, for `sim/bench.py` to measure against: torch's own encoder layer, sets padded
to one length, every position computed in every layer, a DataLoader over single records. The length is that of the
batch's longest set, as most would write it, or that of the longest set there can be.

It starts from the weights of `shared_model`'s network and has its losses, so that with the same masks and without
dropout both give the same loss. What torch's layer has beyond Eq. 2 and Eq. 4 is off: the biases of attention stay 0,
and nothing is dropped inside the feed-forward network.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from shared_model.batching import CLS, FIRST_DIAGNOSIS, MASK, TokenRows
from shared_model.encoder import EncoderLayer, MedicalEncoder
from shared_model.objectives import contrastive_loss, mask_prediction_loss, recommendation_loss
from shared_model.pretrainings.tempt import PretrainingNetwork
from shared_model.records import CodeSets, RecordSet
from shared_model.settings import PretrainingSettings


class Item(NamedTuple):
    """One record: rows of the token table, and positions of medications."""

    diagnoses: Tensor
    procedures: Tensor
    medications: Tensor


class PlainRecords(Dataset[Item]):
    """Records one by one, sets cut to the longest that is read."""

    def __init__(self, records: RecordSet, rows: TokenRows, longest: int) -> None:
        self._diagnoses = _each(records.diagnoses.truncated(longest), FIRST_DIAGNOSIS)
        self._procedures = _each(records.procedures.truncated(longest), rows.first_procedure)
        self._medications = _each(records.medications, 0)

    def __len__(self) -> int:
        return len(self._medications)

    def __getitem__(self, index: int) -> Item:
        return Item(self._diagnoses[index], self._procedures[index], self._medications[index])


class Batch(NamedTuple):
    """Padded sets of tokens with [CLS] first, and labels: masked codes in pretraining, medications in tuning."""

    diagnoses: Tensor
    procedures: Tensor
    labels: tuple[Tensor, ...]


class PretrainingCollate:
    """Pads, and masks codes by the numbers that the fast way would draw from this generator.

    Args:
        longest: the codes to which every set is padded; None: as many as the batch's longest set has.
    """

    def __init__(self, rows: TokenRows, longest: int | None, fraction: float, generator: torch.Generator) -> None:
        self._rows, self._longest, self._fraction, self._generator = rows, longest, fraction, generator

    def __call__(self, items: Sequence[Item]) -> Batch:
        rows = self._rows
        diagnoses, labels_d = self._hide([item.diagnoses for item in items], FIRST_DIAGNOSIS, rows.diagnoses)
        procedures, labels_p = self._hide([item.procedures for item in items], rows.first_procedure, rows.procedures)
        return Batch(diagnoses, procedures, (labels_d, labels_p))

    def _hide(self, sets: list[Tensor], first: int, width: int) -> tuple[Tensor, Tensor]:
        lengths = [len(tokens) for tokens in sets]
        uniform = torch.rand(sum(lengths), generator=self._generator).split(lengths)
        labels = torch.zeros(len(sets), width)
        hidden = []
        for row, (tokens, numbers) in enumerate(zip(sets, uniform, strict=True)):
            masked = (numbers < self._fraction) | (numbers == numbers.min())
            labels[row, tokens[masked] - first] = 1
            hidden.append(tokens.masked_fill(masked, MASK))
        return _padded(hidden, self._longest, self._rows.first_prompt), labels


class TuningCollate:
    """Pads as `PretrainingCollate` does, and makes the labels of medications."""

    def __init__(self, rows: TokenRows, longest: int | None, medications: int) -> None:
        self._padding, self._longest, self._width = rows.first_prompt, longest, medications

    def __call__(self, items: Sequence[Item]) -> Batch:
        labels = torch.zeros(len(items), self._width)
        for row, item in enumerate(items):
            labels[row, item.medications] = 1
        diagnoses, procedures = (
            _padded([item[modality] for item in items], self._longest, self._padding) for modality in range(2)
        )
        return Batch(diagnoses, procedures, (labels,))


class PlainEncoder(nn.Module):
    """The medical encoder out of torch's own layers, with the weights of ours; padding is one more row of the table."""

    def __init__(self, encoder: MedicalEncoder) -> None:
        super().__init__()
        settings, first_prompt = encoder.settings, encoder.rows.first_prompt
        self.padding = first_prompt
        self.embedding = nn.Embedding(first_prompt + 1, settings.c, padding_idx=first_prompt)
        self.layers = nn.ModuleList()
        for ours in encoder.layers:
            assert isinstance(ours, EncoderLayer)
            self.layers.append(_layer(ours, settings.c))
        with torch.no_grad():
            self.embedding.weight[:first_prompt] = encoder.embedding

    def forward(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """The row of [CLS] after every layer, for every set; prompts stand behind [CLS]."""
        is_padding = tokens == self.padding
        x = self.embedding(tokens)  # sets slots c
        if prompts is not None:
            own = prompts.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], own, x[:, 1:]], dim=1)
            is_padding = torch.cat([is_padding.new_zeros(own.shape[:2]), is_padding], dim=1)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=is_padding)
        first: Tensor = x[:, 0]
        return first


class PlainPretraining(nn.Module):
    """Stage 1 of Algorithm 1 on padded sets."""

    def __init__(self, network: PretrainingNetwork, settings: PretrainingSettings) -> None:
        super().__init__()
        self._settings = settings
        self.encoder = PlainEncoder(network.encoder)
        self.heads = nn.ModuleDict(
            {name: copy.deepcopy(child) for name, child in network.named_children() if name != "encoder"}
        )

    def loss(self, batch: Batch) -> Tensor:
        """L_pretrain of a batch."""
        heads, settings = self.heads, self._settings
        r_d, r_p = self.encoder(batch.diagnoses), self.encoder(batch.procedures)
        logits_d, logits_p = heads["mask_diagnoses"](r_d), heads["mask_procedures"](r_p)
        u_d, u_p = heads["project_diagnoses"](r_d), heads["project_procedures"](r_p)
        mask_loss = mask_prediction_loss(logits_d, batch.labels[0], logits_p, batch.labels[1])
        return mask_loss + settings.contrastive_weight * contrastive_loss(u_d, u_p, settings.temperature)


class PlainTuning(nn.Module):
    """Stage 2 of Algorithm 1 on padded sets: prompts and head learn, the encoder is frozen and drops nothing."""

    def __init__(self, encoder: MedicalEncoder, prompts: Tensor, head: nn.Sequential, head_dropout: float) -> None:
        super().__init__()
        self.encoder = PlainEncoder(encoder).requires_grad_(False)
        self.prompts = nn.Parameter(prompts.detach().clone())  # all of diagnoses, then all of procedures
        self.head = copy.deepcopy(head)
        self.dropout = nn.Dropout(head_dropout)  # of the head's input, and before its last layer

    def train(self, mode: bool = True) -> PlainTuning:
        super().train(mode)
        self.encoder.eval()
        return self

    def loss(self, batch: Batch) -> Tensor:
        """L_tune of a batch."""
        prompts_d, prompts_p = self.prompts.chunk(2)
        r = torch.cat([self.encoder(batch.diagnoses, prompts_d), self.encoder(batch.procedures, prompts_p)], dim=1)
        *front, last = self.head
        hidden = self.dropout(r)
        for layer in front:
            hidden = layer(hidden)
        return recommendation_loss(last(self.dropout(hidden)), batch.labels[0])


class PlainNetwork(Protocol):
    """A network with its loss."""

    def loss(self, batch: Batch) -> Tensor: ...


def loader(records: PlainRecords, collate: Any, batch_size: int, order: Iterable[int]) -> DataLoader[Item]:
    """Batches of the records in this order, made in this process."""
    return DataLoader(records, batch_size=batch_size, sampler=list(order), collate_fn=collate)


def run_steps(network: PlainNetwork, optimizer: torch.optim.Optimizer, batches: Iterable[Any]) -> None:
    """A step of training for every batch."""
    for batch in batches:
        loss = network.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def _layer(ours: EncoderLayer, c: int) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(
        c, ours.heads, dim_feedforward=c, dropout=ours.dropout, activation=ours.activation, batch_first=True
    )
    layer.dropout.p = 0.0  # inside the feed-forward network
    layer.self_attn.dropout = ours.attention_dropout
    attention = layer.self_attn
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        attention.out_proj.weight.copy_(ours.output.weight)
    for bias in (attention.in_proj_bias, attention.out_proj.bias):
        bias.requires_grad_(False).zero_()
    layer.linear1.load_state_dict(ours.feed_forward_in.state_dict())
    layer.linear2.load_state_dict(ours.feed_forward_out.state_dict())
    layer.norm1.load_state_dict(ours.attention_norm.state_dict())
    layer.norm2.load_state_dict(ours.feed_forward_norm.state_dict())
    return layer


def _each(sets: CodeSets, first: int) -> list[Tensor]:
    return list((sets.codes + first).split(sets.lengths.tolist()))


def _padded(sets: Sequence[Tensor], longest: int | None, padding: int) -> Tensor:
    longest = max(map(len, sets)) if longest is None else longest
    tokens = torch.full((len(sets), longest + 1), padding)
    tokens[:, 0] = CLS
    for row, own in enumerate(sets):
        tokens[row, 1 : len(own) + 1] = own
    return tokens
