"""A whole federation: for each seed who is there, pretraining, tuning; resumed where it ended (Algorithm 1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid

from server import exchange, rounds, tuning
from server.contributions import forget_contributions
from server.federation_settings import FederationSettings
from server.told import StatusFile
from shared_model import checkpoint
from shared_model.batching import TokenRows
from shared_model.errors import TemptError, TooFewHospitals
from shared_model.federated_algorithm import Arrays
from shared_model.fitting import PRETRAINING, FitFiles
from shared_model.metric_names import MEASURED
from shared_model.pretraining import shared_parameters
from shared_model.pretrainings.tempt import PretrainingNetwork
from shared_model.randomness import WHOLE_CONSORTIUM, generator
from shared_model.results import FitName
from shared_model.settings import Settings
from shared_model.vocabulary import Vocabulary

OnRound = Callable[[FitName, dict[str, Any]], None]
Results = dict[FitName, dict[str, Any]]


@dataclass(frozen=True)
class Federation:
    """What a federation is run with.

    Attributes:
        run: the server's run directory.
        expected: hospitals to wait for at the start of each seed.
        least: hospitals without which it does not begin, and without whose metrics it does not end.
        data_digest: names the hospitals' data, where the server can know it.
        told: where the operator reads what goes on.
        min_records: a hospital with fewer is left out.
        keeps_told: the metrics that hospitals told are kept, for a resumption at which they may be away.
        largest_share: of all records, that one hospital counts for; None where the server knows what hospitals hold.
    """

    run: Path
    vocabulary: Vocabulary
    settings: Settings
    federation: FederationSettings
    models: tuple[str, ...]
    save_scores: bool
    expected: int
    least: int
    data_digest: str = ""
    told: StatusFile = field(default_factory=StatusFile)
    min_records: int = 0
    keeps_told: bool = False
    largest_share: float | None = None

    def experiment(self) -> str:
        """Names the run by what its tensors depend on, so that no other run's kept state is gone on with."""
        shaping = {"strategy", "options", "local_epochs", "local_optimizer", "fraction", "transport", "changed_rows"}
        parts: list[Any] = [self.settings.model_dump(mode="json"), self.vocabulary.digest, self.data_digest]
        parts.append(self.federation.model_dump(mode="json", include=shaping))
        if self.federation.most_records is not None or self.largest_share is not None:
            parts.append([self.federation.most_records, self.largest_share])
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def initial(self, seed: int) -> Arrays:
        """The first shared tensors: those that the centralized run of the seed begins with."""
        # Algorithm 1, line 1
        rows = TokenRows(len(self.vocabulary.diagnoses), len(self.vocabulary.procedures))
        draws = generator(torch.device("cpu"), seed, f"{PRETRAINING}/initial", WHOLE_CONSORTIUM)
        network = PretrainingNetwork(self.settings.encoder, rows, draws, self.settings.pretraining.output_bias)
        return {name: parameter.detach().numpy() for name, parameter in shared_parameters(network).items()}

    def seed(
        self, grid: Grid, seed: int, *, on_round: OnRound, on_done: Callable[[str], None]
    ) -> tuple[Results, dict[str, Any]]:
        """One seed's phases.

        Args:
            on_round: gets each round's history row.
            on_done: gets a label when pretraining, or a hospital's tuning, is done.

        Returns:
            what each fit measured, and what stands in `results.json` about the rounds.

        Raises:
            TooFewHospitals: fewer are there than `least`, or a round ended below the quorum.
            TemptError: the run directory holds a damaged file, or the strategy left what is no number.
        """
        plan = exchange.SeedPlan(
            self.experiment(),
            seed,
            self.settings,
            self.federation,
            self.vocabulary,
            self.told,
            self.expected,
            self.largest_share,
        )
        hospitals, refused = exchange.greet(grid, plan, min_records=self.min_records)
        self._enough("the start", len(hospitals), refused)
        files = FitFiles.of(self.run, seed, PRETRAINING, WHOLE_CONSORTIUM)
        pretraining = FitName(PRETRAINING, seed, WHOLE_CONSORTIUM)
        result = files.read()
        if result is None:
            result = rounds.pretrain(
                grid, plan, hospitals, self.initial(seed), files, lambda row: on_round(pretraining, row)
            )
        forget_contributions(files)
        on_done(f"federated pretraining, seed {seed}")
        tensors, _ = checkpoint.load(files.tensors)
        shared = {name: tensor.numpy() for name, tensor in tensors.items()}
        numbers, without = tuning.tune(
            grid,
            plan,
            hospitals,
            shared,
            self.models,
            save_scores=self.save_scores,
            on_hospital=on_done,
            least=self.least,
            folder=self.run / "told" / f"seed-{seed}" if self.keeps_told else None,
        )
        # at a resumption, one that is away was not asked
        without |= {int(h): "it is not there" for h in result["hospitals"] if int(h) not in {*numbers, *without}}
        self._enough("tuning", len(numbers), {f"hospital {hospital}": why for hospital, why in without.items()})
        about = _about(result, without, refused)
        if few := _too_few(hospitals, numbers):
            about["too_few_records"] = few
        return {pretraining: result} | _tuned(numbers, self.models, seed, result.get("bounded", {})), about

    def _enough(self, phase: str, found: int, without: Mapping[str, str]) -> None:
        if found < self.least:
            who = next((f"; {name}: {why}" for name, why in without.items()), "")
            raise TooFewHospitals(f"{phase}: {found} hospitals of {self.expected}, expected at least {self.least}{who}")


def _tuned(
    numbers: Mapping[int, Mapping[str, float]], models: Sequence[str], seed: int, bounded: Mapping[str, Any]
) -> Results:
    """What hospitals told, in the form of a fit's result; no metrics where a policy has too few test records."""
    found: Results = {}
    for hospital, told in numbers.items():
        for model in models:
            measured = {}
            if "least-test" not in told:
                values: dict[str, Any] = {"records": int(told[f"{model}.records"])}
                values |= {name: told.get(f"{model}.{name}") for name in MEASURED}
                if (test := bounded.get(str(hospital), {}).get("test")) is not None:
                    values["counted"] = test["counted"]
                measured[str(hospital)] = values
            found[FitName(model, seed, hospital)] = {
                "hospital": hospital,
                "best_epoch": int(told.get(f"{model}.best_epoch", 0)),
                "hospitals": measured,
                "seconds": {name: told[f"{model}.seconds.{name}"] for name in ("fit", "evaluation")},
                "history": [],
            }
    return found


def _too_few(
    hospitals: Sequence[exchange.Hospital], numbers: Mapping[int, Mapping[str, float]]
) -> dict[str, list[str]]:
    """The parts of hospitals' records that count as none, as they are too few by the hospitals' policies."""
    found: dict[str, list[str]] = {}
    parts: list[str] = ["train", "validation", "test"]
    for h in hospitals:
        told = [part for part in parts if f"least-{part}" in numbers.get(h.hospital, {})]
        if few := [part for part in parts if part in (*h.too_few, *told)]:
            found[str(h.hospital)] = few
    return found


def check_settings(settings: Settings) -> None:
    """Refuse settings that a federation does not follow.

    Raises:
        TemptError: a federation does not follow it.
    """
    if settings.tuning.selection == "common":
        raise TemptError(
            "tuning.selection=common: a federation tunes each hospital by itself; use tuning.selection=hospital"
        )


def _about(result: Mapping[str, Any], without: Mapping[int, str], refused: Mapping[str, str]) -> dict[str, Any]:
    sent = [part["bytes_to_hospital"] + part["bytes_from_hospital"] for part in result["hospitals"].values()]
    return {
        "rounds": result["rounds"],
        "best_round": result["best_epoch"],
        "megabytes_a_hospital": round(sum(sent) / len(sent) / 1e6, 3),
        "hospitals": result["hospitals"],
        "left_out": dict(refused),
        "not_tuned": {str(hospital): why for hospital, why in without.items()},
    } | ({"bounded": result["bounded"]} if "bounded" in result else {})
