"""The medical encoder (Section 3.2): embeddings and K transformer layers, read at [CLS].

One encoder serves diagnoses and procedures. Three things are not computed because no result depends on them:
positions other than [CLS] in the last layer, keys and values of any token there (they are moved into [CLS]'s query and
the output), and the first layer's projections of a code more than once a batch (without positions a code's query, key
and value are the same wherever it stands). `tests/oracles.py` holds the literal version.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from shared_model.batching import PackedSets, TokenRows
from shared_model.initialization import How, draw_rows
from shared_model.randomness import Dropout
from shared_model.settings import EncoderSettings


class Projected(NamedTuple):
    """Tokens with their first-layer projections D W^Q and D W^K of Eq. 2, all heads side by side, and what a head adds
    to the layer's output where it attends to them alone: D W^V_a times head a's rows of W^O, head after head.
    """

    embedding: Float[Tensor, "tokens c"]
    query: Float[Tensor, "tokens c"]
    key: Float[Tensor, "tokens c"]
    value_output: Float[Tensor, "tokens heads_c"]


class EncoderLayer(nn.Module):
    """One transformer layer: multi-head attention and feed-forward network, post-norm (Eq. 1-4)."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        c = settings.c
        self.heads = settings.heads
        self.attention_dropout, self.dropout = settings.attention_dropout, settings.dropout
        self.activation = F.relu if settings.activation == "relu" else F.gelu
        self.query = nn.Linear(c, c, bias=False)
        self.key = nn.Linear(c, c, bias=False)
        self.value = nn.Linear(c, c, bias=False)
        self.output = nn.Linear(c, c, bias=False)
        self.attention_norm = nn.LayerNorm(c)
        self.feed_forward_in = nn.Linear(c, c)
        self.feed_forward_out = nn.Linear(c, c)
        self.feed_forward_norm = nn.LayerNorm(c)

    def project(self, x: Float[Tensor, "tokens c"]) -> Projected:
        """The rows' projections; heads lie side by side, head a in columns a c/A to (a + 1) c/A."""
        width = x.shape[1] // self.heads
        value = self.value(x).split(width, 1)
        outputs = [part @ onto.T for part, onto in zip(value, self.output.weight.split(width, 1), strict=True)]
        return Projected(x, self.query(x), self.key(x), torch.cat(outputs, 1))

    def every_token(
        self, tokens: Projected, sets: PackedSets, place: Tensor, dropout: Dropout | None
    ) -> Float[Tensor, "blocks slots c"]:
        """The layer's output at every slot; slot s holds row `place[s]` of `tokens`."""
        blocks, slots = sets.owner.shape
        c = tokens.embedding.shape[1]
        heads, width = self.heads, c // self.heads
        # A head's rows are gathered, not cut out of a wide row: blocks heads slots
        by_head = place[:, None, :] * heads + torch.arange(heads, device=place.device)[None, :, None]
        query, key = (
            F.embedding(by_head, table.view(-1, width)).view(blocks * heads, slots, width)
            for table in (tokens.query, tokens.key)
        )
        outputs = F.embedding(by_head, tokens.value_output.view(-1, c)).view(
            blocks, heads * slots, c
        )  # head after head
        bias = _bias(sets.sees, query.dtype).repeat_interleave(heads, 0)
        # Eq. 1-2, rearranged: a head divides by sqrt(c/A), its own width; softmax over the own set. W^O is applied to
        # what is attended to, a code once a batch, not to what attention gives at every slot
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=1 / math.sqrt(width))
        attention = _drop(scores.softmax(-1), self.attention_dropout, dropout).view(blocks, heads, slots, slots)
        attention = attention.transpose(1, 2).reshape(blocks, slots, heads * slots)
        multi_head = torch.bmm(attention, outputs)  # blocks slots c
        # /Eq. 1-2
        x = F.embedding(place, tokens.embedding)  # blocks slots c
        return self._after_attention(x, multi_head, dropout)  # blocks slots c

    def cls_only(
        self, x: Float[Tensor, "blocks slots c"], sets: PackedSets, dropout: Dropout | None
    ) -> Float[Tensor, "sets c"]:
        """The layer's output at each set's [CLS] alone, without any token's key or value."""
        blocks, _, c = x.shape
        heads, width = self.heads, c // self.heads
        n_sets, members = len(sets.cls_slot), sets.member.shape[1]
        x_cls = F.embedding(sets.cls_slot, x.view(-1, c))  # sets, c
        # Eq. 1-2, rearranged: q_a . (x W^K_a) = x . (W^K_a q_a), and the sum of x W^V_a is (the sum of x) W^V_a
        query = self.query(x_cls).view(n_sets, heads, width).transpose(0, 1)  # heads sets width
        moved = torch.bmm(query, self.key.weight.view(heads, width, c))  # heads sets c
        asked = _to_members(moved, sets).view(blocks, heads * members, c)
        bias = _bias(sets.cls_sees, x.dtype).repeat(1, heads, 1)
        scores = torch.baddbmm(bias, asked, x.transpose(1, 2), alpha=1 / math.sqrt(width))  # blocks heads*members slots
        attention = _drop(scores.softmax(-1), self.attention_dropout, dropout)
        mixed = _from_members(torch.bmm(attention, x).view(blocks, heads, members, c), sets)  # heads sets c
        head = torch.bmm(mixed, self.value.weight.view(heads, width, c).transpose(1, 2))  # heads sets width
        multi_head = self.output(head.transpose(0, 1).reshape(n_sets, c))
        # /Eq. 1-2
        return self._after_attention(x_cls, multi_head, dropout)

    def _after_attention(
        self, x: Float[Tensor, "*slots c"], multi_head: Float[Tensor, "*slots c"], dropout: Dropout | None
    ) -> Float[Tensor, "*slots c"]:
        # Eq. 3: LayerNorm of the sum
        middle: Tensor = self.attention_norm(x + _drop(multi_head, self.dropout, dropout))
        # /Eq. 3
        # Eq. 4
        feed_forward = self.feed_forward_out(self.activation(self.feed_forward_in(middle)))
        out: Tensor = self.feed_forward_norm(middle + _drop(feed_forward, self.dropout, dropout))
        # /Eq. 4
        return out


class MedicalEncoder(nn.Module):
    """The embeddings E_d, E_p, [CLS] and [MASK] with the K layers, Theta_encoder: what pretraining is for."""

    def __init__(self, settings: EncoderSettings, rows: TokenRows) -> None:
        super().__init__()
        self.settings, self.rows = settings, rows
        self.embedding = nn.Parameter(torch.empty(rows.first_prompt, settings.c))
        self.layers = nn.ModuleList(EncoderLayer(settings) for _ in range(settings.layers))

    def begin(self, how: How, generator: torch.Generator) -> None:
        """Draw the embeddings."""
        draw_rows(self.embedding, how, generator)

    def forward(self, sets: PackedSets, dropout: Dropout | None) -> Float[Tensor, "sets c"]:
        """r of Section 3.2.2, the row of [CLS] after K layers, for every set."""
        embedded = F.embedding(sets.distinct, self.embedding)
        return self.from_tokens(self.layers[0].project(embedded), sets, dropout)  # type: ignore[operator]

    def from_tokens(self, tokens: Projected, sets: PackedSets, dropout: Dropout | None) -> Float[Tensor, "sets c"]:
        """The same from the distinct tokens' first-layer projections."""
        layers: list[EncoderLayer] = list(self.layers)  # type: ignore[arg-type]
        place = sets.token
        x = (
            F.embedding(place, tokens.embedding)
            if len(layers) == 1
            else layers[0].every_token(tokens, sets, place, dropout)
        )
        for layer in layers[1:-1]:
            place = torch.arange(place.numel(), device=place.device).view_as(place)
            x = layer.every_token(layer.project(x.view(-1, x.shape[-1])), sets, place, dropout)
        return layers[-1].cls_only(x, sets, dropout)


class FrozenEncoder:
    """A pretrained encoder that does not change: its first-layer projections are a table, computed once.

    It runs without dropout: dropout is there for what is learnt.
    """

    def __init__(self, encoder: MedicalEncoder) -> None:
        self.encoder = encoder.requires_grad_(False)
        with torch.no_grad():
            self._table = torch.cat(encoder.layers[0].project(encoder.embedding), dim=1)  # type: ignore[operator]

    def __call__(self, sets: PackedSets, prompts: Float[Tensor, "prompts c"] | None = None) -> Float[Tensor, "sets c"]:
        """r'' of Section 3.4: the sets' representations; the token table's rows after the codes are `prompts`."""
        known = sets.distinct if prompts is None else sets.distinct[: len(sets.distinct) - len(prompts)]
        c = self._table.shape[1] // (3 + self.encoder.settings.heads)
        tokens = Projected(*F.embedding(known, self._table).split([c, c, c, c * self.encoder.settings.heads], dim=1))
        if prompts is not None:
            own = self.encoder.layers[0].project(prompts)  # type: ignore[operator]
            tokens = Projected(*(torch.cat(pair) for pair in zip(tokens, own, strict=True)))
        else:
            tokens = Projected(*(table.contiguous() for table in tokens))
        return self.encoder.from_tokens(tokens, sets, None)


def _drop(x: Tensor, rate: float, dropout: Dropout | None) -> Tensor:
    return x if dropout is None else dropout(x, rate)


def _bias(sees: Bool[Tensor, ...], dtype: torch.dtype) -> Float[Tensor, ...]:
    """0 where attention goes, minus infinity elsewhere."""
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, -math.inf)


def _to_members(per_set: Float[Tensor, "heads sets c"], sets: PackedSets) -> Float[Tensor, "blocks heads members c"]:
    heads, n_sets, c = per_set.shape
    member = sets.member.clamp(min=0)[:, None, :] + torch.arange(heads, device=per_set.device)[None, :, None] * n_sets
    return F.embedding(member, per_set.reshape(-1, c))


def _from_members(
    per_member: Float[Tensor, "blocks heads members c"], sets: PackedSets
) -> Float[Tensor, "heads sets c"]:
    _, heads, members, c = per_member.shape
    block = torch.div(sets.member_place, members, rounding_mode="floor")
    within = sets.member_place - block * members
    head = torch.arange(heads, device=per_member.device)[:, None]
    return F.embedding((block * heads + head) * members + within, per_member.reshape(-1, c))
