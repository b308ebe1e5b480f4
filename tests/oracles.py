"""Every equation of the paper, slowly: one record, one head, one position at a time, in float64.

Source: Liu et al., "A Contrastive Pretrain Model with Prompt Tuning for Multi-center Medication Recommendation"
(TEMPT), Sections 3.2 to 3.4 and 4.1.4. Written from the paper, before the code that it checks was read; it imports
nothing of ours. There is no padding, no mask, no packing and no batch here: a set is a list of vectors. Vectors are
torch tensors so that gradients can be taken; the letters are the paper's.

Readings that the paper leaves open (`../shared/paper/findings.md`): the scale of Eq. 1 is the width of its own
argument, c/A within a head; LayerNorm(x, y) is the normalised sum; losses are means over the vocabulary and over the
records; Eq. 9 of a batch of one is 0; average precision stands for Eq. 17, which can exceed 1 as printed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Layer:
    """One transformer layer: matrices as the paper multiplies them (a row vector from the left)."""

    query: Tensor  # c x c; the columns of head a are its W_a^Q
    key: Tensor  # c x c
    value: Tensor  # c x c
    output: Tensor  # W^O, c x c
    attention_gain: Tensor  # c
    attention_shift: Tensor  # c
    w_1: Tensor  # c x c
    b_1: Tensor  # c
    w_2: Tensor  # c x c
    b_2: Tensor  # c
    feed_forward_gain: Tensor  # c
    feed_forward_shift: Tensor  # c


# ---------------------------------------------------------------------------------------------------- the encoder


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """The row vector x times the matrix, one column at a time."""
    return torch.stack([(x * matrix[:, column]).sum() for column in range(matrix.shape[1])])


def attention(queries: Sequence[Tensor], keys: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    """Eq. 1, one query at a time."""
    outputs = []
    for q in queries:
        # Eq. 1
        scores = [(q * k).sum() / math.sqrt(q.shape[0]) for k in keys]
        largest = max(float(score.detach()) for score in scores)  # cancels between numerator and denominator
        exponentials = [torch.exp(score - largest) for score in scores]
        denominator = sum(exponentials[1:], exponentials[0])
        output = torch.zeros_like(values[0])
        for exponential, v in zip(exponentials, values, strict=True):
            output = output + exponential / denominator * v
        # /Eq. 1
        outputs.append(output)
    return outputs


def multi_head(tokens: Sequence[Tensor], layer: Layer, heads: int) -> list[Tensor]:
    """Eq. 2 with Q = K = V = the set's vectors, one head at a time."""
    c = tokens[0].shape[0]
    width = c // heads
    per_head = []
    for a in range(heads):
        columns = slice(a * width, (a + 1) * width)
        # Eq. 2
        queries = [times(x, layer.query[:, columns]) for x in tokens]
        keys = [times(x, layer.key[:, columns]) for x in tokens]
        values = [times(x, layer.value[:, columns]) for x in tokens]
        per_head.append(attention(queries, keys, values))
    return [
        times(torch.cat([per_head[a][position] for a in range(heads)]), layer.output) for position in range(len(tokens))
    ]
    # /Eq. 2


def layer_norm(x: Tensor, y: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm(x, y) of Eq. 3 and 4: the residual sum, normalised to mean 0 and variance 1."""
    total = x + y
    mean = total.sum() / total.shape[0]
    variance = ((total - mean) ** 2).sum() / total.shape[0]
    return (total - mean) / torch.sqrt(variance + LAYER_NORM_EPSILON) * gain + shift


def transformer_layer(tokens: Sequence[Tensor], layer: Layer, heads: int) -> list[Tensor]:
    """Eq. 3 and 4, one position at a time."""
    outputs = []
    for x, attended in zip(tokens, multi_head(tokens, layer, heads), strict=True):
        # Eq. 3
        m = layer_norm(x, attended, layer.attention_gain, layer.attention_shift)
        # /Eq. 3
        # Eq. 4
        inner = times(m, layer.w_1) + layer.b_1
        inner = torch.stack([value if value > 0 else value * 0 for value in inner])
        ffn = times(inner, layer.w_2) + layer.b_2
        outputs.append(layer_norm(m, ffn, layer.feed_forward_gain, layer.feed_forward_shift))
        # /Eq. 4
    return outputs


def encode(tokens: Sequence[Tensor], layers: Sequence[Layer], heads: int) -> list[Tensor]:
    """The output vectors after all K layers (Eq. 1-4), in the order of `tokens`."""
    for layer in layers:
        tokens = transformer_layer(tokens, layer, heads)
    return list(tokens)


def represent(
    codes: Sequence[Tensor], classification: Tensor, layers: Sequence[Layer], heads: int, prompts: Sequence[Tensor] = ()
) -> Tensor:
    """r_d or r_p: the output at [CLS] of the set [CLS], codes; with prompts, of prompts, [CLS], codes (Sec. 3.4)."""
    return encode([*prompts, classification, *codes], layers, heads)[len(prompts)]


# ------------------------------------------------------------------------------------------------- the objectives


def mlp(x: Tensor, w_1: Tensor, b_1: Tensor, w_2: Tensor, b_2: Tensor) -> Tensor:
    """MLP of Eq. 5, 8, 12 and 14: Linear-ReLU-Linear."""
    inner = times(x, w_1) + b_1
    inner = torch.stack([value if value > 0 else value * 0 for value in inner])
    return times(inner, w_2) + b_2


def sigmoid(logits: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-logits))


def mask_probabilities(r: Tensor, head: Sequence[Tensor]) -> Tensor:
    # Eq. 5
    return sigmoid(mlp(r, *head))
    # /Eq. 5


def binary_cross_entropy(y_hat: Tensor, y: Sequence[float]) -> Tensor:
    """One record's loss of Eq. 6 or 13: the mean over the vocabulary."""
    total = torch.zeros((), dtype=y_hat.dtype)
    for probability, label in zip(y_hat, y, strict=True):
        # Eq. 6
        total = total - label * torch.log(probability) - (1 - label) * torch.log(1 - probability)
        # /Eq. 6
    return total / len(y)


def mask_loss(
    y_hat_d: Sequence[Tensor],
    y_d: Sequence[Sequence[float]],
    y_hat_p: Sequence[Tensor],
    y_p: Sequence[Sequence[float]],
) -> Tensor:
    """Eq. 7 of a batch: both modalities added, the mean over records."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(y_hat_d)):
        # Eq. 7
        total = total + binary_cross_entropy(y_hat_d[i], y_d[i]) + binary_cross_entropy(y_hat_p[i], y_p[i])
        # /Eq. 7
    return total / len(y_hat_d)


def project(r_d: Tensor, r_p: Tensor, mlp_d: Sequence[Tensor], mlp_p: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    # Eq. 8
    u_d = mlp(r_d, *mlp_d)
    u_p = mlp(r_p, *mlp_p)
    # /Eq. 8
    return u_d, u_p


def cosine(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum() / (torch.sqrt((x * x).sum()) * torch.sqrt((y * y).sum()))


def one_way_contrastive(u: Sequence[Tensor], v: Sequence[Tensor], temperature: float) -> Tensor:
    """L_dp of Eq. 9 with u the diagnoses and v the procedures; 0 for a batch of one, whose denominator is empty."""
    batch = len(u)
    total = torch.zeros((), dtype=torch.float64)
    if batch == 1:
        return total
    for i in range(batch):
        # Eq. 9: the positive pair is not in the denominator
        numerator = torch.exp(cosine(u[i], v[i]) / temperature)
        denominator = torch.zeros((), dtype=torch.float64)
        for j in range(batch):
            if i != j:
                denominator = denominator + torch.exp(cosine(u[i], v[j]) / temperature)
        total = total - torch.log(numerator / denominator)
        # /Eq. 9
    return total / batch


def contrastive_loss(u_d: Sequence[Tensor], u_p: Sequence[Tensor], temperature: float) -> Tensor:
    # Eq. 10
    return one_way_contrastive(u_d, u_p, temperature) + one_way_contrastive(u_p, u_d, temperature)
    # /Eq. 10


def pretraining_loss(mask: Tensor, contrastive: Tensor, contrastive_weight: float) -> Tensor:
    # Eq. 11: gamma is the contrastive weight
    return mask + contrastive_weight * contrastive
    # /Eq. 11


def recommend(r_d: Tensor, r_p: Tensor, mlp_r: Sequence[Tensor]) -> Tensor:
    # Eq. 12
    return sigmoid(mlp(torch.cat([r_d, r_p]), *mlp_r))
    # /Eq. 12


def tuning_loss(y_hat: Sequence[Tensor], y: Sequence[Sequence[float]]) -> Tensor:
    """Eq. 13 of a batch: the mean over the vocabulary and over records. As printed its second term lacks its minus."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(y_hat)):
        record = torch.zeros((), dtype=torch.float64)
        for probability, label in zip(y_hat[i], y[i], strict=True):
            # Eq. 13
            record = record - (label * torch.log(probability) + (1 - label) * torch.log(1 - probability))
            # /Eq. 13
        total = total + record / len(y[i])
    return total / len(y_hat)


def recommend_with_prompts(
    diagnoses: Sequence[Tensor],
    procedures: Sequence[Tensor],
    prompts: Mapping[str, Sequence[Tensor]],
    classification: Tensor,
    layers: Sequence[Layer],
    heads: int,
    mlp_r: Sequence[Tensor],
) -> Tensor:
    """Eq. 14 of one record: D'' and P'' carry the hospital's prompts at their start."""
    # Eq. 14
    r_d = represent(diagnoses, classification, layers, heads, prompts["diagnoses"])
    r_p = represent(procedures, classification, layers, heads, prompts["procedures"])
    return recommend(r_d, r_p, mlp_r)
    # /Eq. 14


# ---------------------------------------------------------------------------------------------------- the metrics


def recommended(probabilities: Sequence[float], threshold: float) -> set[int]:
    """Sec. 4.1.4: the medications whose probability is strictly above the threshold."""
    return {m for m, probability in enumerate(probabilities) if probability > threshold}


def precision(prescribed: set[int], above: set[int]) -> float:
    """Eq. 15; 0 where nothing is recommended."""
    if not above:
        return 0.0
    # Eq. 15
    return len(prescribed & above) / len(above)
    # /Eq. 15


def recall(prescribed: set[int], above: set[int]) -> float:
    """Eq. 16; 0 where nothing is prescribed."""
    if not prescribed:
        return 0.0
    # Eq. 16
    return len(prescribed & above) / len(prescribed)
    # /Eq. 16


def average_precision(probabilities: Sequence[float], prescribed: set[int]) -> float:
    """Instead of Eq. 17: precision at each distinct probability, times the recall gained there; 0 without positives."""
    # Eq. 17 as printed exceeds 1; average precision instead
    total, recall_before = 0.0, 0.0
    for cut in sorted(set(probabilities), reverse=True):
        above = {m for m, probability in enumerate(probabilities) if probability >= cut}
        recall_here = recall(prescribed, above)
        total += precision(prescribed, above) * (recall_here - recall_before)
        recall_before = recall_here
    return total
    # /Eq. 17


def jaccard(prescribed: set[int], above: set[int]) -> float:
    """Eq. 18; 0 for an empty union."""
    if not prescribed | above:
        return 0.0
    # Eq. 18
    return len(prescribed & above) / len(prescribed | above)
    # /Eq. 18


def f1(prescribed: set[int], above: set[int]) -> float:
    """Eq. 19; 0 where precision and recall both are."""
    p, r = precision(prescribed, above), recall(prescribed, above)
    if p + r == 0:
        return 0.0
    # Eq. 19
    return 2 * p * r / (p + r)
    # /Eq. 19


# ------------------------------------------------------------- parameters of a module, by formula and by their names


def set_by_formula(module: torch.nn.Module) -> None:
    """Every parameter gets scattered values that depend on its place alone: no seed, no symmetry, gains near 1."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(module.named_parameters()):
            values = scattered(parameter.shape, number + 1).to(parameter)
            if "norm.weight" in name:
                values = 1 + 0.3 * values
            elif parameter.ndim == 2 and not name.endswith(("embedding", "prompts")):
                values = values * math.sqrt(3 / parameter.shape[1])
            parameter.copy_(values)


def scattered(shape: Sequence[int], number: int = 1) -> Tensor:
    """Values in [-1, 1) by formula, in float64; another `number` gives others."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (((i * 0.6180339887 + i * i * 0.0137 * (number + 0.31) + 0.377 * number) % 1) * 2 - 1).view(tuple(shape))


def leaves(module: torch.nn.Module) -> dict[str, Tensor]:
    """Float64 copies of a module's parameters, with gradients of their own."""
    return {name: p.detach().double().clone().requires_grad_() for name, p in module.named_parameters()}


def layers_of(parameters: Mapping[str, Tensor], prefix: str = "") -> list[Layer]:
    """The layers among a module's parameters; `torch.nn.Linear` keeps the transpose of the paper's matrices."""
    layers = []
    while f"{prefix}layers.{len(layers)}.query.weight" in parameters:
        own = f"{prefix}layers.{len(layers)}."
        layers.append(
            Layer(
                query=parameters[own + "query.weight"].T,
                key=parameters[own + "key.weight"].T,
                value=parameters[own + "value.weight"].T,
                output=parameters[own + "output.weight"].T,
                attention_gain=parameters[own + "attention_norm.weight"],
                attention_shift=parameters[own + "attention_norm.bias"],
                w_1=parameters[own + "feed_forward_in.weight"].T,
                b_1=parameters[own + "feed_forward_in.bias"],
                w_2=parameters[own + "feed_forward_out.weight"].T,
                b_2=parameters[own + "feed_forward_out.bias"],
                feed_forward_gain=parameters[own + "feed_forward_norm.weight"],
                feed_forward_shift=parameters[own + "feed_forward_norm.bias"],
            )
        )
    return layers


def mlp_of(parameters: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matrices and shifts of a Linear-ReLU-Linear whose parameters are named `<prefix>0.` and `<prefix>2.`"""
    return (
        parameters[prefix + "0.weight"].T,
        parameters[prefix + "0.bias"],
        parameters[prefix + "2.weight"].T,
        parameters[prefix + "2.bias"],
    )
