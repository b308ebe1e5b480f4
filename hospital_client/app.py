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
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import Tensor

from hospital_client import admission, egress, local_tuning, one_agreement, vocabulary_counts
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
from shared_model.federated_algorithm import ASKED, AskedHere
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.settings import Settings
from shared_model.transport import Transport
from shared_model.vocabulary import Vocabulary, read_vocabulary
from shared_model.vocabulary_rules import MINIMUM_COUNT

log = logging.getLogger("tempt.hospital")
_EXPERIMENT = re.compile(r"[0-9a-z-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Place:
    """Where a hospital is.

    Attributes:
        partition: the dataset directory that holds its records, or its own raw tables.
        folder: what the hospital keeps, in a run directory's layout.
        threads: of torch; the last bits of what it computes depend on them.
        alone: the folder is this hospital's alone, as in a deployment: so its policy binds, and it also says what the
            hospital's own models are made with.
        is_raw: the partition is raw tables, from which records are prepared once there is a vocabulary.
        minimum_count: a code that fewer of its stays have is not named, whatever the server asks for.
    """

    partition: Path
    hospital: int
    folder: Path
    device: str = "cpu"
    threads: int = 1
    alone: bool = False
    is_raw: bool = False
    minimum_count: int = MINIMUM_COUNT

    def prepared(self, config: ConfigRecord) -> Place:
        """The same place with the dataset directory of the vocabulary that a message stands on."""
        if not self.is_raw:
            return self
        digest = str(config["vocabulary"])
        if not _DIGEST.fullmatch(digest):
            raise ValueError("the vocabulary's digest is none")  # it becomes a folder's
        one_agreement.check_vocabulary(self.folder, digest)
        return replace(self, partition=self.folder / "prepared" / digest, is_raw=False)

    def policy(self) -> Policy | None:
        """What a deployed hospital lets a server ask for and learn; in simulations there is none."""
        return read_policy(self.folder) if self.alone else None

    def ledger(self) -> Path:
        return self.folder / "egress" / f"{self.hospital}.jsonl"

    def kept_state(self, config: ConfigRecord) -> KeptState:
        """Where the hospital keeps its state of the federation that a message is of."""
        experiment = str(config["experiment"])
        if not _EXPERIMENT.fullmatch(experiment):
            raise ValueError("the experiment's name is none")  # it becomes a folder's
        seed = _integer(config, "seed")
        folder = self.folder / "kept" / experiment / f"seed-{seed}" / str(self.hospital)
        return KeptState(folder, str(config.get("algorithm", "")))


Handler = Callable[[RecordDict, Place], Reply]


def make_app(place_of: Callable[[Context], Place], *, simulated: bool = False) -> ClientApp:
    """The ClientApp of the hospital that a context belongs to.

    Args:
        simulated: server and hospitals are one user's, who is told in words what to mend (`TemptError`).
    """
    app = ClientApp()

    def answer(kind: str, handler: Handler) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            place: Place | None = None
            request: dict[str, Any] = {}
            try:
                place = place_of(context)
                torch.set_num_threads(place.threads)
                config = message.content.config_records["config"]
                limit = float(cast(float, config.get("limit", 0.0)))
                with time_limit(work_limit(limit) if place.alone else limit):
                    request |= _request(config)
                    policy = place.policy()
                    if policy is not None:
                        settings = _settings(config) if "settings" in config else None
                        number = admission.admit(place.folder, policy, kind, message.content, settings)
                        request |= {} if number is None else {"request": number}
                    reply = handler(message.content, place)
                if policy is not None:
                    reply = without_too_few(kind, reply, policy)
                return Message(_checked(kind, message.content, reply, place, request), reply_to=message)
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
                        egress.record(place.ledger(), kind, 0, {}, {}, {"error": where}, request=request)
                return Message(Error(code=HOSPITALS_ERROR, reason=where), reply_to=message)

        return handle

    app.query("vocabulary_counts")(answer("vocabulary_counts", _vocabulary_counts))
    app.query("vocabulary_remaining")(answer("vocabulary_remaining", _vocabulary_remaining))
    app.query("hello")(answer("hello", _hello))
    app.train("pretrain")(answer("pretrain", _pretrain))
    app.train("tune")(answer("tune", _tune))
    return app


def _request(config: ConfigRecord) -> dict[str, Any]:
    """What the ledger says of a message: its seed, settings and what its algorithm asks, as far as it has them."""
    found: dict[str, Any] = {"seed": _integer(config, "seed")} if "seed" in config else {}
    if "algorithm" in config:
        found |= {"algorithm": str(config["algorithm"]), "exchange": _integer(config, "exchange")}
        found |= {name: value for name, value in config.items() if name.startswith(ASKED)}
    return found | ({"settings": _settings(config).model_dump(mode="json")} if "settings" in config else {})


def _mistake(error: Exception) -> TemptError | None:
    """What whoever runs the machine can mend, if the error is of that kind."""
    return error if isinstance(error, TemptError) else of_the_system(error) if isinstance(error, OSError) else None


def _vocabulary_counts(content: RecordDict, place: Place) -> Reply:
    """Which codes raw tables hold, and in how many stays; of prepared records their vocabulary's digest alone."""
    if not place.is_raw:
        texts = {"vocabulary": read_vocabulary(place.partition / "vocabulary.json").digest}
        return Reply({"hospital": place.hospital}, {}, texts)
    minimum = _minimum_count(content, place)
    told = vocabulary_counts.counts(_tables(place), minimum)
    digest = egress.digest_of(told.arrays, told.texts)
    one_agreement.hold_counts(place.folder, minimum, digest)
    return Reply({"hospital": place.hospital, "minimum-count": minimum}, {"arrays": told.arrays}, {}, told.texts)


def _vocabulary_remaining(content: RecordDict, place: Place) -> Reply:
    """What remains under the cut that came in, if the hospital has not answered for another one."""
    minimum, min_records = _minimum_count(content, place), _integer(content.config_records["config"], "min-records")
    cut = one_agreement.cut_of(content.config_records["cut"], minimum, min_records)
    one_agreement.hold_cut(place.folder, cut)
    told = vocabulary_counts.remaining(_tables(place), cut)
    one_agreement.hold_remaining(place.folder, told.numbers["records"], egress.digest_of(told.arrays, told.texts))
    return Reply({"hospital": place.hospital, **told.numbers}, {"arrays": told.arrays}, {}, told.texts)


def _tables(place: Place) -> Tables:
    return read_tables(place.partition, PreparationOptions(), hospital=place.hospital)


def _minimum_count(content: RecordDict, place: Place) -> int:
    return max(place.minimum_count, _integer(content.config_records["config"], "minimum-count"))


def _hello(content: RecordDict, place: Place) -> Reply:
    """Who answers, how many records it has, and the digests that both sides compare.

    Raw tables are prepared under the vocabulary that came in, once, if the hospital has not answered for another one.
    Of a hospital that has no part in the agreement no record is told.
    """
    config = content.config_records["config"]
    if place.is_raw:
        vocabulary = Vocabulary.of(content.config_records["vocabulary"])
        if vocabulary.digest != config["vocabulary"]:
            raise ValueError("the vocabulary has another digest than the message says")
        cut = one_agreement.hold_vocabulary(place.folder, vocabulary.content())
        directory = place.prepared(config).partition
        records = prepare_agreed(
            place.partition, place.hospital, vocabulary, directory, least=place.minimum_count, cut=cut
        )
        if not records:
            log.warning("hospital %d has no part: too few records, or the vocabulary lacks its codes", place.hospital)
            none = {"train": 0, "validation": 0, "test": 0}
            return Reply({"hospital": place.hospital, **none}, {}, {"vocabulary": vocabulary.digest})
        one_agreement.hold_records(place.folder, records)
    partition = _partition(place.prepared(config))
    split = partition.split(_integer(config, "seed"))
    parts = {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)}
    texts = {"vocabulary": partition.vocabulary.digest}
    return Reply({"hospital": place.hospital, **parts}, {}, texts, parts=parts)


def _pretrain(content: RecordDict, place: Place) -> Reply:
    """Score what came in, then local epochs, as the message asks."""
    config = content.config_records["config"]
    settings, seed, place = _settings(config), _integer(config, "seed"), place.prepared(config)
    local = local_pretraining(place.partition, place.hospital, place.device, settings, seed)
    transport = _transport(config)
    received = transport.decode(_arrays(content.array_records["arrays"]))
    shared = _tensors(received, place)
    numbers: dict[str, int | float] = {"hospital": place.hospital, "num-examples": local.records}
    if config["score"]:
        numbers["score-sum"] = local.score_sum(shared)
    parts = {"train": local.records, "validation": local.validation_records}
    if not config["train"] or not local.records:
        return Reply(numbers, {}, {}, parts=parts)
    work = LocalWork(
        first_epoch=_integer(config, "first-epoch"),
        epochs=_integer(config, "epochs"),
        stream=WHOLE_CONSORTIUM if config["alone"] else place.hospital,
    )
    algorithm, exchange = algorithm_of(str(config["algorithm"])), _integer(config, "exchange")
    if exchange not in range(algorithm.exchanges):
        raise ValueError(f"the exchange {exchange} is none of the algorithm's")
    more = {
        part: _tensors(transport.decode(_arrays(record)), place)
        for part, record in content.array_records.items()
        if part != "arrays"
    }
    asked = AskedHere(
        more,
        admission.asked_numbers(config, algorithm),
        exchange,
        _integer(config, "taken"),
        arriving=lambda gradient: _tensors(transport.decode(transport.encode(_values(gradient))), place),
    )
    keeps = bool(config["keep-optimizer"])
    state = place.kept_state(config) if keeps or algorithm.hospital_keeps else None
    kept = state.after(asked.last_taken, torch.device(place.device)) if state is not None else None
    begun = local.begin(shared, work, kept if keeps else None)
    answer, to_keep = algorithm.local(begun, asked, kept)
    if to_keep and not algorithm.hospital_keeps:
        raise ValueError("the algorithm keeps what it does not say that it keeps")
    if state is not None:
        state.propose(_integer(config, "serial"), (begun.optimizer_state() if keeps else {}) | dict(to_keep))
    arrays = {}
    for part, kind in algorithm.tells.items():
        encode = partial(transport.encode_update, before=received) if kind == "update" else transport.encode
        arrays[part] = encode(_values(answer.arrays[part]))
    return Reply({**numbers, **answer.numbers, "loss": answer.loss}, arrays, {}, parts=parts)


def _tune(content: RecordDict, place: Place) -> Reply:
    """Adapt the encoder that came in by each method asked for; the metrics on test records leave."""
    config = content.config_records["config"]
    place = place.prepared(config)
    place.kept_state(config).forget()  # rounds are over
    partition, settings, seed = _partition(place), _settings(config), _integer(config, "seed")
    tune = partial(local_tuning.tune_own, experiment=str(config["experiment"])) if place.alone else local_tuning.tune
    results = tune(
        partition,
        place.folder,
        _tensors(_arrays(content.array_records["arrays"]), place),
        cast(list[str], config["models"]),
        settings,
        seed,
        torch.device(place.device),
        save_scores=bool(config["save-scores"]),
    )
    split = partition.split(seed)
    parts = {"validation": len(split.validation), "test": len(split.test)}
    numbers = {"hospital": place.hospital, **local_tuning.numbers(results, place.hospital)}
    return Reply(numbers, {}, {}, parts=parts)


def _checked(kind: str, content: RecordDict, reply: Reply, place: Place, request: Mapping[str, Any]) -> RecordDict:
    """The reply's content, once it holds nothing but what its kind allows and stands in the ledger."""
    config = content.config_records["config"]
    records: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {"metrics": MetricRecord(dict(reply.numbers))}
    if kind.startswith("vocabulary_"):
        cut = {name: len(cast(list[Any], codes)) for name, codes in content.config_records.get("cut", {}).items()}
        egress.check(kind, reply.numbers, reply.texts)
        egress.check_agreement(kind, reply.arrays.get("arrays", {}), reply.codes, cut, _minimum_count(content, place))
    elif kind == "pretrain":
        shapes = {name: tuple(array.shape) for name, array in content.array_records["arrays"].items()}
        algorithm = algorithm_of(str(config["algorithm"]))
        egress.check(kind, reply.numbers, reply.texts, algorithm.numbers)
        egress.check_arrays(reply.arrays, algorithm, shapes, _transport(config))
    else:
        egress.check(kind, reply.numbers, reply.texts)
        egress.check_arrays(reply.arrays, None, {}, Transport())
    everything: dict[str, NDArray[Any]] = {}
    for part, arrays in reply.arrays.items():
        if arrays:
            records[part] = ArrayRecord({key: Array(array) for key, array in arrays.items()})
        everything |= {key if part == "arrays" else f"{part}/{key}": array for key, array in arrays.items()}
    number = int(cast(int, config.get("round", 0)))
    came = next((content.config_records[name] for name in ("cut", "vocabulary") if name in content), None)
    asked = one_agreement.sizes_and_digest(came) if came is not None else None
    egress.record(place.ledger(), kind, number, everything, reply.numbers, reply.texts, reply.codes, asked, request)
    if reply.texts:
        records["config"] = ConfigRecord(dict(reply.texts))
    if reply.codes:
        records["codes"] = ConfigRecord(dict(reply.codes))
    return RecordDict(records)


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


def _tensors(arrays: Mapping[str, NDArray[Any]], place: Place) -> dict[str, Tensor]:
    device = torch.device(place.device)
    return {
        name: torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)
        for name, array in arrays.items()
    }


def _values(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def _transport(config: ConfigRecord) -> Transport:
    return Transport(bfloat16=bool(config["bfloat16"]), changed_rows=bool(config["changed-rows"]))


def _settings(config: ConfigRecord) -> Settings:
    return _parsed(str(config["settings"]))


@lru_cache(maxsize=1)
def _parsed(text: str) -> Settings:
    return Settings.model_validate_json(text)


def _integer(config: ConfigRecord, name: str) -> int:
    return int(cast(int, config[name]))


def _partition(place: Place) -> Partition:
    return read_partition(place.partition, place.hospital)


def _of_node(context: Context) -> Place:
    """The place that a node's configuration tells."""
    config = context.node_config
    if "hospital-id" in config:
        return Place(
            Path(str(config["raw" if "raw" in config else "partition"])),
            int(config["hospital-id"]),
            Path(str(config["folder"])),
            str(config.get("device", "cpu")),
            alone=True,
            is_raw="raw" in config,
            minimum_count=int(config.get("minimum-count", MINIMUM_COUNT)),
        )
    run = context.run_config  # Flower's simulation: nodes are the dataset's hospitals, in order
    data = Path(str(run["data"]))
    hospitals = sorted(int(path.name) for path in (data / "hospitals").iterdir() if path.name.isdecimal())
    return Place(data, hospitals[int(config["partition-id"])], Path(str(run["out"])), str(run["device"]))


app = make_app(_of_node)
