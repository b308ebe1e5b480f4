"""Recommending medications from a record's two representations (Eq. 12-14): the task that every method trains on.

A method is a file of `shared_model/adaptation/` or `sim/baselines/` with

    TITLE: str                      its row in the paper's tables
    PAPER: dict                     the paper's mean and deviation of each metric, where it prints them
    SCOPE: "consortium" | "hospital"    fitted once on every hospital's records, or once a hospital
    NEEDS: str                      the pretraining that it adapts (`shared_model/pretrainings/`); left out, none
    Settings: type[BaseModel]       settings of its own, `--set <method>.<field>=value`; left out, none
    SCORES: bool                    False: it answers with sets, and no probabilities
    DEFAULT: bool                   False: only fitted where `--models` names it
    fit(train, validation, context) -> Fitted
    answer(tensors, records, context) -> Recommended, one row a record

`fit` sees training records, and validation records for selection alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel
from torch import Tensor, nn

from shared_model.batching import FIRST_DIAGNOSIS, PackedSets, TokenRows, code_tokens, pack
from shared_model.initialization import initialize, start_at_rates
from shared_model.metrics import average_precision
from shared_model.objectives import mlp, recommendation_loss
from shared_model.randomness import Dropout, generator
from shared_model.records import CodeSets, RecordSet
from shared_model.settings import RecommendationSettings, Settings
from shared_model.training import OnEpoch, shuffled, train

_EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Context:
    """What a fit needs beside records.

    Attributes:
        hospital: whose records they are, or `WHOLE_CONSORTIUM`.
        own: an object of its file's `Settings`, for a method or pretraining that has them.
        part: of the pretrained network what methods read, for one that needs a pretraining; TEMPT's is its encoder.
        stands_on: a digest of the pretraining's tensors that the part is of.
        resume: where a long fit keeps its state while it runs.
        epochs: fit for exactly so many, with no look at validation.
    """

    settings: Settings
    rows: TokenRows
    medications: int
    seed: int
    hospital: int
    device: torch.device
    own: Any = None
    part: nn.Module | None = None
    stands_on: str | None = None
    resume: Path | None = None
    on_epoch: OnEpoch | None = None
    epochs: int | None = None

    @property
    def pretrained(self) -> Any:
        """What the method reads of the pretraining that its file says it needs: a module, of TEMPT's `MedicalEncoder`.

        Raises:
            ValueError: the method's file names no pretraining.
        """
        if self.part is None:
            raise ValueError('this method needs a pretrained network, and its file has no NEEDS = "<pretraining>"')
        return self.part


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves: the tensors that a checkpoint holds, the history, and the epoch they are of."""

    tensors: dict[str, Tensor]
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    about: dict[str, Any] = field(default_factory=dict)


class Recommended(NamedTuple):
    """A method's answer.

    Attributes:
        scores: each medication's probability; None for a system that decides on sets, which has no PRAUC then.
        chosen: the medications that are recommended.
    """

    scores: Float[Tensor, "records medications"] | None
    chosen: Bool[Tensor, "records medications"]


@runtime_checkable
class Method(Protocol):
    """The contract of a method's file, as a type."""

    TITLE: str
    PAPER: Mapping[str, tuple[float, float | None]]
    SCOPE: Literal["consortium", "hospital"]

    def fit(self, train: RecordSet, validation: RecordSet, context: Context) -> Fitted: ...

    def answer(self, tensors: Mapping[str, Tensor], records: RecordSet, context: Context) -> Recommended: ...


def needs_of(method: Method) -> str | None:
    """The pretraining that a method adapts."""
    found: str | None = getattr(method, "NEEDS", None)
    return found


def gives_scores(method: Method) -> bool:
    """Whether a method answers with probabilities, and has a PRAUC."""
    return bool(getattr(method, "SCORES", True))


def is_default(method: Method) -> bool:
    """Whether a method is fitted where no `--models` are named."""
    return bool(getattr(method, "DEFAULT", True))


def own_settings_of(method: Method) -> type[BaseModel] | None:
    """The settings of its own that a method has, each with a default."""
    found: type[BaseModel] | None = getattr(method, "Settings", None)
    return found


Represent = Callable[[CodeSets, CodeSets, Int[Tensor, " records"], Dropout | None], Float[Tensor, "sets c"]]


class Recommender(NamedTuple):
    """A network that recommends: MLP_r behind something that represents a record's two sets.

    Attributes:
        module: all that is trained and kept.
        represent: the representations of all diagnosis sets, then of all procedure sets, of these two, the hospital of
            each record, and dropout.
        head: MLP_r.
        representation_is_frozen: nothing that `represent` reads is trained, so that it is computed once.
        to_initialize: what begins with new weights, all of `module` if None.
        by_hospital: a batch of training is of one hospital's records.
    """

    module: nn.Module
    represent: Represent
    head: nn.Sequential
    representation_is_frozen: bool = False
    to_initialize: nn.Module | None = None
    by_hospital: bool = False


def head_of(context: Context) -> nn.Sequential:
    """A new MLP_r; `draw_initial` gives it its weights."""
    return mlp(2 * context.settings.encoder.c, context.medications)


def draw_initial(module: nn.Module, context: Context, purpose: str) -> None:
    """Draw a module's first weights from the stream of (seed, purpose, hospital)."""
    draws = generator(torch.device("cpu"), context.seed, f"{purpose}/initial", context.hospital)
    initialize(module, context.settings.encoder.initialization, draws)


def record_sets(
    diagnoses: CodeSets, procedures: CodeSets, rows: TokenRows, prompts: list[Int[Tensor, " prompts"]] | None = None
) -> PackedSets:
    """Both sets of each record in one packed batch: all diagnosis sets, then all procedure sets."""
    tokens = [code_tokens(diagnoses, FIRST_DIAGNOSIS), code_tokens(procedures, rows.first_procedure)]
    return pack(tokens, prompts)


def fit_recommender(
    recommender: Recommender,
    training: RecordSet,
    validation: RecordSet,
    optimization: RecommendationSettings,
    context: Context,
    purpose: str,
) -> Fitted:
    """Train a recommender from its first weights on and keep its best state.

    Args:
        purpose: names the random streams, such as "full-train".
    """
    draw_initial(
        recommender.module if recommender.to_initialize is None else recommender.to_initialize, context, purpose
    )
    if optimization.output_bias == "rate":
        counts = torch.bincount(training.medications.codes, minlength=context.medications)
        start_at_rates(recommender.head, (counts + 0.5) / (len(training) + 1))
    task = RecommendationTask(recommender, training, validation, context, optimization.head_dropout)
    progress = train(
        task,
        optimization,
        seed=context.seed,
        purpose=purpose,
        hospital=context.hospital,
        resume=context.resume,
        on_epoch=context.on_epoch,
        epochs=context.epochs,
    )
    tensors = {name: tensor.detach() for name, tensor in recommender.module.state_dict().items()}
    return Fitted(tensors, progress.history, progress.best_epoch)


class RecommendationTask:
    """Recommending medications for some training records; a task of `training.train`."""

    def __init__(
        self,
        recommender: Recommender,
        train: RecordSet,
        validation: RecordSet,
        context: Context,
        head_dropout: float = 0.0,
    ) -> None:
        self.module = recommender.module
        self._head_dropout = head_dropout
        self._recommender, self._medications = recommender, context.medications
        self._longest = context.settings.encoder.longest_set
        self._diagnoses, self._procedures = (
            train.diagnoses.truncated(self._longest),
            train.procedures.truncated(self._longest),
        )
        self._hospital, self._labels = train.hospital, train.medications
        self._validation, self._validation_labels = validation, validation.medications.multi_hot(context.medications)
        self._constant = self._validation_constant = None
        if recommender.representation_is_frozen:
            self._constant = representations(recommender, train, self._longest)
            self._validation_constant = representations(recommender, validation, self._longest)
        self.records, self.validation_records = len(train), len(validation)

    def loss(self, index: Int[Tensor, " batch"], generator: torch.Generator) -> Float[Tensor, ""]:
        """L_tune of the records at `index`; dropout is drawn from the generator."""
        if self._constant is not None:
            pair = self._constant[index]
        else:
            sets = self._diagnoses.select(index), self._procedures.select(index)
            pair = _side_by_side(self._recommender.represent(*sets, self._hospital[index], Dropout(generator)))
        # Eq. 12: before the sigmoid; Eq. 14 where the sets are prompted
        logits = _with_dropout(self._recommender.head, pair, Dropout(generator), self._head_dropout)
        # /Eq. 12
        return recommendation_loss(logits, self._labels.select(index).multi_hot(self._medications))

    def draw_batches(self, batch_size: int, generator: torch.Generator) -> Sequence[Int[Tensor, " batch"]]:
        """An epoch's batches."""
        return shuffled(self.records, batch_size, generator, self._hospital if self._recommender.by_hospital else None)

    @torch.no_grad()
    def score(self) -> float:
        """The mean over hospitals of the validation records' PRAUC."""
        if self._validation_constant is not None:
            probabilities = self._recommender.head(self._validation_constant).sigmoid()
        else:
            probabilities = recommend(self._recommender, self._validation, self._longest)
        prauc = average_precision(probabilities, self._validation_labels)
        hospitals, member = torch.unique(self._validation.hospital, return_inverse=True)
        sums = torch.zeros(len(hospitals), dtype=prauc.dtype, device=prauc.device).index_add_(0, member, prauc)
        return float((sums / member.bincount()).mean())


def above_threshold(probabilities: Float[Tensor, "records medications"], context: Context) -> Recommended:
    """The answer that recommends each medication whose probability is strictly above the threshold."""
    return Recommended(probabilities, probabilities > context.settings.evaluation.threshold)


def kept_answer(
    recommender: Recommender, tensors: Mapping[str, Tensor], records: RecordSet, context: Context
) -> Recommended:
    """What a recommender answers with the tensors that a fit has left."""
    recommender.module.load_state_dict(dict(tensors))
    recommender.module.eval()
    return above_threshold(recommend(recommender, records, context.settings.encoder.longest_set), context)


@torch.no_grad()
def recommend(recommender: Recommender, records: RecordSet, longest_set: int) -> Float[Tensor, "records medications"]:
    """The recommending probability of every medication for every record."""
    # Eq. 12: with the sigmoid
    probabilities: Tensor = recommender.head(representations(recommender, records, longest_set)).sigmoid()
    # /Eq. 12
    return probabilities


@torch.no_grad()
def representations(recommender: Recommender, records: RecordSet, longest_set: int) -> Float[Tensor, "records twice_c"]:
    """[r_d || r_p] of every record, without dropout."""
    if not len(records):
        first = recommender.head[0]
        assert isinstance(first, nn.Linear)
        return first.weight.new_zeros(0, first.in_features)
    diagnoses, procedures = records.diagnoses.truncated(longest_set), records.procedures.truncated(longest_set)
    found = []
    for part in torch.arange(len(records), device=records.stay.device).split(_EVALUATION_BATCH):
        sets = diagnoses.select(part), procedures.select(part)
        found.append(_side_by_side(recommender.represent(*sets, records.hospital[part], None)))
    return torch.cat(found)


def _with_dropout(
    head: nn.Sequential, pair: Float[Tensor, "records inputs"], dropout: Dropout, rate: float
) -> Float[Tensor, "records medications"]:
    """MLP_r with dropout on its input and before its last layer."""
    *front, last = head
    hidden = dropout(pair, rate)
    for layer in front:
        hidden = layer(hidden)
    logits: Tensor = last(dropout(hidden, rate))
    return logits


def _side_by_side(both: Float[Tensor, "sets c"]) -> Float[Tensor, "records twice_c"]:
    r_d, r_p = both.unflatten(0, (2, len(both) // 2))
    return torch.cat([r_d, r_p], dim=1)
