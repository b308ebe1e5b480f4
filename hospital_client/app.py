"""The Flower ClientApp of a hospital: a message in, a call, a reply out.

A deployed hospital's policy comes first: what it refuses is not looked at. Queries `vocabulary_counts` and
`vocabulary_remaining` (the agreement on codes, from raw tables) and `hello`; trainings `pretrain` (a round) and `tune`
(prompts, head and test metrics, once). What a reply holds is checked and written into the hospital's ledger before it
leaves; an error leaves as its kind and place alone, a refusal with the policy's key.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import Tensor

from hospital_client import admission, egress, leaving, local_tuning, one_agreement, vocabulary_counts
from hospital_client.eicu_tables import Tables, read_tables
from hospital_client.kept_state import KeptState
from hospital_client.local_pretraining import LocalWork
from hospital_client.partition import Partition, read_partition
from hospital_client.policy import Policy, Refused, read_policy
from hospital_client.preparation import prepare_agreed
from hospital_client.preparation_options import PreparationOptions
from hospital_client.read_once import local_pretraining
from hospital_client.reply import Reply, without_too_few
from hospital_client.watchdog import time_limit, work_limit
from shared_model.algorithms import algorithm as algorithm_of
from shared_model.errors import HOSPITALS_ERROR, TemptError, of_the_system, printable
from shared_model.federated_algorithm import AskedHere
from shared_model.messages import (
    CUT,
    ENTRIES,
    TENSORS,
    VOCABULARY,
    CountCodes,
    CountRemaining,
    Hello,
    OfSeed,
    Pretrain,
    Request,
    Tune,
)
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.vocabulary import Vocabulary, read_vocabulary
from shared_model.vocabulary_rules import MINIMUM_COUNT

log = logging.getLogger("tempt.hospital")
_EXPERIMENT = re.compile(r"[0-9a-z-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HospitalConfig:
    """Where a hospital is.

    Attributes:
        partition: the dataset directory that holds its records, or its own raw tables.
        folder: what the hospital keeps, in a run directory's layout.
        threads: of torch; the last bits of what it computes depend on them.
        deployed: the folder is this hospital's alone: so its policy binds, and it also says what the hospital's own
            models are made with.
        is_raw: the partition is raw tables, from which records are prepared once there is a vocabulary.
        minimum_count: a code that fewer of its stays have is not named, whatever the server asks for.
    """

    partition: Path
    hospital: int
    folder: Path
    device: str = "cpu"
    threads: int = 1
    deployed: bool = False
    is_raw: bool = False
    minimum_count: int = MINIMUM_COUNT

    def prepared(self, request: OfSeed) -> HospitalConfig:
        """The same place with the dataset directory of the vocabulary that a message stands on."""
        if not self.is_raw:
            return self
        if not _DIGEST.fullmatch(request.vocabulary):
            raise ValueError("the vocabulary's digest is none")  # it becomes a folder's
        one_agreement.check_vocabulary(self.folder, request.vocabulary)
        return replace(self, partition=self.folder / "prepared" / request.vocabulary, is_raw=False)

    def policy(self) -> Policy | None:
        """What a deployed hospital lets a server ask for and learn; in simulations there is none."""
        return read_policy(self.folder) if self.deployed else None

    def ledger(self) -> Path:
        return self.folder / "egress" / f"{self.hospital}.jsonl"

    def kept_state(self, request: OfSeed, algorithm: str = "") -> KeptState:
        """Where the hospital keeps its state of the federation that a message is of."""
        if not _EXPERIMENT.fullmatch(request.experiment):
            raise ValueError("the experiment's name is none")  # it becomes a folder's
        folder = self.folder / "kept" / request.experiment / f"seed-{request.seed}" / str(self.hospital)
        return KeptState(folder, algorithm)


Asked = TypeVar("Asked", bound=Request)
Handler = Callable[[Asked, RecordDict, HospitalConfig], Reply]


def make_app(place_of: Callable[[Context], HospitalConfig], *, simulated: bool = False) -> ClientApp:
    """The ClientApp of the hospital that a context belongs to.

    Args:
        simulated: server and hospitals are one user's, who is told in words what to mend (`TemptError`).
    """
    app = ClientApp()

    def answer(asked: type[Asked], handler: Handler[Asked]) -> Callable[[Message, Context], Message]:
        kind = asked.kind

        def handle(message: Message, context: Context) -> Message:
            place: HospitalConfig | None = None
            told: dict[str, Any] = {}
            try:
                place = place_of(context)
                torch.set_num_threads(place.threads)
                request = asked.of(message.content.config_records[ENTRIES])
                with time_limit(work_limit(request.limit) if place.deployed else request.limit):
                    told |= leaving.of_a_stranger(request)
                    policy = place.policy()
                    number = None
                    if policy is not None:
                        number = admission.admit(place.folder, policy, request, message.content)
                    told |= leaving.in_the_ledger(request, number)
                    reply = handler(request, message.content, place)
                if policy is not None:
                    reply = without_too_few(kind, reply, policy)
                minimum = _minimum_count(request, place) if isinstance(request, CountCodes) else 0
                content = leaving.content_of(request, message.content, reply, place.ledger(), told, minimum=minimum)
                return Message(content, reply_to=message)
            except Exception as error:
                if simulated and (mistake := _mistake(error)):
                    raise mistake from error
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
                if isinstance(error, Refused):  # which holds what the server asked and the policy, and no data
                    where = str(error)
                hospital = 0 if place is None else place.hospital
                log.error("hospital %d could not answer %s: %s: %s", hospital, kind, where, printable(error))
                if place is not None:
                    with suppress(OSError):  # it leaves all the same: else nobody would learn of a full disk
                        egress.record(place.ledger(), kind, 0, {}, {}, {"error": where}, request=told)
                return Message(Error(code=HOSPITALS_ERROR, reason=where), reply_to=message)

        return handle

    app.query(CountCodes.kind)(answer(CountCodes, _vocabulary_counts))
    app.query(CountRemaining.kind)(answer(CountRemaining, _vocabulary_remaining))
    app.query(Hello.kind)(answer(Hello, _hello))
    app.train(Pretrain.kind)(answer(Pretrain, _pretrain))
    app.train(Tune.kind)(answer(Tune, _tune))
    return app


def _mistake(error: Exception) -> TemptError | None:
    """What whoever runs the machine can mend, if the error is of that kind."""
    return error if isinstance(error, TemptError) else of_the_system(error) if isinstance(error, OSError) else None


def _vocabulary_counts(request: CountCodes, content: RecordDict, place: HospitalConfig) -> Reply:
    """Which codes raw tables hold, and in how many stays; of prepared records their vocabulary's digest alone."""
    if not place.is_raw:
        texts = {"vocabulary": read_vocabulary(place.partition / "vocabulary.json").digest}
        return Reply({"hospital": place.hospital}, {}, texts)
    minimum = _minimum_count(request, place)
    told = vocabulary_counts.counts(_tables(place), minimum)
    digest = egress.digest_of(told.arrays, told.texts)
    one_agreement.hold_counts(place.folder, minimum, digest)
    return Reply({"hospital": place.hospital, "minimum-count": minimum}, {"arrays": told.arrays}, {}, told.texts)


def _vocabulary_remaining(request: CountRemaining, content: RecordDict, place: HospitalConfig) -> Reply:
    """What remains under the cut that came in, if the hospital has not answered for another one."""
    minimum = _minimum_count(request, place)
    cut = one_agreement.cut_of(content.config_records[CUT], minimum, request.min_records)
    one_agreement.hold_cut(place.folder, cut)
    told = vocabulary_counts.remaining(_tables(place), cut)
    one_agreement.hold_remaining(place.folder, told.numbers["records"], egress.digest_of(told.arrays, told.texts))
    return Reply({"hospital": place.hospital, **told.numbers}, {"arrays": told.arrays}, {}, told.texts)


def _tables(place: HospitalConfig) -> Tables:
    return read_tables(place.partition, PreparationOptions(), hospital=place.hospital)


def _minimum_count(request: CountCodes, place: HospitalConfig) -> int:
    return max(place.minimum_count, request.minimum_count)


def _hello(request: Hello, content: RecordDict, place: HospitalConfig) -> Reply:
    """Who answers, how many records it has, and the digests that both sides compare.

    Raw tables are prepared under the vocabulary that came in, once, if the hospital has not answered for another one.
    Of a hospital that has no part in the agreement no record is told.
    """
    if place.is_raw:
        vocabulary = Vocabulary.of(content.config_records[VOCABULARY])
        if vocabulary.digest != request.vocabulary:
            raise ValueError("the vocabulary has another digest than the message says")
        cut = one_agreement.hold_vocabulary(place.folder, vocabulary.content())
        directory = place.prepared(request).partition
        records = prepare_agreed(
            place.partition, place.hospital, vocabulary, directory, least=place.minimum_count, cut=cut
        )
        if not records:
            log.warning("hospital %d has no part: too few records, or the vocabulary lacks its codes", place.hospital)
            none = {"train": 0, "validation": 0, "test": 0}
            return Reply({"hospital": place.hospital, **none}, {}, {"vocabulary": vocabulary.digest})
        one_agreement.hold_records(place.folder, records)
    partition = _partition(place.prepared(request))
    split = partition.split(request.seed)
    parts = {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)}
    texts = {"vocabulary": partition.vocabulary.digest}
    return Reply({"hospital": place.hospital, **parts}, {}, texts, parts=parts)


def _pretrain(request: Pretrain, content: RecordDict, place: HospitalConfig) -> Reply:
    """Score what came in, then local epochs, as the message asks."""
    place, transport = place.prepared(request), request.transport
    local = local_pretraining(place.partition, place.hospital, place.device, request.settings, request.seed)
    received = transport.decode(_arrays(content.array_records[TENSORS]))
    shared = _tensors(received, place)
    numbers: dict[str, int | float] = {"hospital": place.hospital, "num-examples": local.records}
    if request.score:
        numbers["score-sum"] = local.score_sum(shared)
    parts = {"train": local.records, "validation": local.validation_records}
    if not request.train or not local.records:
        return Reply(numbers, {}, {}, parts=parts)
    work = LocalWork(
        first_epoch=request.first_epoch,
        epochs=request.epochs,
        stream=WHOLE_CONSORTIUM if request.only_hospital else place.hospital,
    )
    algorithm = algorithm_of(request.algorithm)
    if request.exchange not in range(algorithm.exchanges):
        raise ValueError(f"the exchange {request.exchange} is none of the algorithm's")
    more = {
        part: _tensors(transport.decode(_arrays(record)), place)
        for part, record in content.array_records.items()
        if part != TENSORS
    }
    asked = AskedHere(
        more,
        admission.asked_numbers(request, algorithm),
        request.exchange,
        request.last_accepted,
        arriving=lambda gradient: _tensors(transport.decode(transport.encode(_values(gradient))), place),
    )
    keeps = request.keep_optimizer
    state = place.kept_state(request, request.algorithm) if keeps or algorithm.hospital_keeps else None
    kept = state.restore_after(asked.last_accepted, torch.device(place.device)) if state is not None else None
    begun = local.begin(shared, work, kept if keeps else None)
    answer, to_keep = algorithm.local(begun, asked, kept)
    if to_keep and not algorithm.hospital_keeps:
        raise ValueError("the algorithm keeps what it does not say that it keeps")
    if state is not None:
        own = dict(to_keep or kept or {}) if algorithm.hospital_keeps else {}  # which lasts until it keeps the next
        state.stage(request.serial, own | (begun.optimizer_state() if keeps else {}))
    arrays = {}
    for part, kind in algorithm.tells.items():
        encode = partial(transport.encode_update, before=received) if kind == "update" else transport.encode
        arrays[part] = encode(_values(answer.arrays[part]))
    return Reply({**numbers, **answer.numbers, "loss": answer.loss}, arrays, {}, parts=parts)


def _tune(request: Tune, content: RecordDict, place: HospitalConfig) -> Reply:
    """Adapt the encoder that came in by each method asked for; the metrics on test records leave."""
    place = place.prepared(request)
    place.kept_state(request).forget()  # rounds are over
    partition = _partition(place)
    tune = partial(local_tuning.tune_own, experiment=request.experiment) if place.deployed else local_tuning.tune
    results = tune(
        partition,
        place.folder,
        _tensors(_arrays(content.array_records[TENSORS]), place),
        request.models,
        request.settings,
        request.seed,
        torch.device(place.device),
        save_scores=request.save_scores,
    )
    split = partition.split(request.seed)
    parts = {"validation": len(split.validation), "test": len(split.test)}
    numbers = {"hospital": place.hospital, **local_tuning.numbers(results, place.hospital)}
    return Reply(numbers, {}, {}, parts=parts)


class _Read:
    """The record that was read last: in a simulation all hospitals of a round get the same one, which is read once."""

    record: ArrayRecord | None = None
    arrays: Mapping[str, NDArray[Any]] = {}


def _arrays(record: ArrayRecord) -> Mapping[str, NDArray[Any]]:
    """A record's arrays, to be read and not to be written into."""
    if _Read.record is not record:
        _Read.arrays = {name: array.numpy() for name, array in record.items()}
        _Read.record = record
    return _Read.arrays


def _tensors(arrays: Mapping[str, NDArray[Any]], place: HospitalConfig) -> dict[str, Tensor]:
    device = torch.device(place.device)
    return {
        name: torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)
        for name, array in arrays.items()
    }


def _values(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def _partition(place: HospitalConfig) -> Partition:
    return read_partition(place.partition, place.hospital)


def _of_node(context: Context) -> HospitalConfig:
    """The place that a node's configuration tells."""
    config = context.node_config
    if "hospital-id" in config:
        return HospitalConfig(
            Path(str(config["raw" if "raw" in config else "partition"])),
            int(config["hospital-id"]),
            Path(str(config["folder"])),
            str(config.get("device", "cpu")),
            deployed=True,
            is_raw="raw" in config,
            minimum_count=int(config.get("minimum-count", MINIMUM_COUNT)),
        )
    run = context.run_config  # Flower's simulation: nodes are the dataset's hospitals, in order
    data = Path(str(run["data"]))
    hospitals = sorted(int(path.name) for path in (data / "hospitals").iterdir() if path.name.isdecimal())
    return HospitalConfig(data, hospitals[int(config["partition-id"])], Path(str(run["out"])), str(run["device"]))


app = make_app(_of_node)
