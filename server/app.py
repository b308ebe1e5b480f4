"""The Flower ServerApp: it reads its run's configuration, runs the federation, and writes the run directory.

The same app serves `flwr run .` (Flower's simulation) and a deployment; a hospital's rows come from what it told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.federation import Federation
from server.rounds import rounds_of
from server.run_options import config_of, given_vocabulary, options_of, rules_of
from server.told import StatusFile
from server.vocabulary_agreement import agree
from server.weights import LARGEST_SHARE
from shared_model import run_directory
from shared_model.adaptation import adaptation
from shared_model.errors import TemptError
from shared_model.files import read_json, write_json, write_text
from shared_model.fitting import PRETRAINING, FitFiles
from shared_model.randomness import WHOLE_CONSORTIUM
from shared_model.recommendation import needs_of
from shared_model.results import FitName, write_results
from shared_model.vocabulary import Vocabulary, read_vocabulary, write_vocabulary
from shared_model.vocabulary_rules import AgreementRules

_AGREEMENT = "agreement.json"
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run's configuration describes."""
    config = context.run_config
    told = StatusFile(Path(str(config["status-file"])) if config["status-file"] else None)
    try:
        run_federation(grid, config, told)
    except TemptError as error:
        told.ended(error.status, str(error))
        raise
    told.ended(0)


def run_federation(grid: Grid, config: Mapping[str, Any], told: StatusFile | None = None) -> dict[str, Any]:
    """The federation of a run configuration, from its checkpoint on if it has one; the content of `results.json`.

    Raises:
        TemptError: an option is out of bounds, or the vocabulary is missing.
        TooFewHospitals: the agreement on a vocabulary, a round or the tuning ended below the quorum.
    """
    run, told = Path(str(config["out"])), StatusFile() if told is None else told
    settings, federation, models, seeds = options_of(config)
    expected = int(config["hospitals"])
    least = federation.needed(expected)
    rules = rules_of(config)
    if rules is None:
        vocabulary, agreed = read_vocabulary(given_vocabulary(config)), None
    else:
        vocabulary, agreed = _agreed(grid, run, rules, told, timeout=federation.timeout, expected=expected, least=least)
    whole = Federation(
        run=run,
        vocabulary=vocabulary,
        settings=settings,
        federation=federation,
        models=models,
        save_scores=bool(config["save-scores"]),
        expected=expected,
        least=least,
        told=told,
        min_records=rules.min_records if rules is not None else 0,
        keeps_told=True,
        largest_share=LARGEST_SHARE,  # what hospitals hold they alone know
    )
    about = config_of(config, vocabulary.digest)

    def fill(directory: Path) -> Mapping[str, Any]:
        write_vocabulary(directory / "vocabulary.json", vocabulary)
        if agreed is not None:
            write_json(directory / _AGREEMENT, agreed)
        return about

    if not (run / run_directory.CONFIG).is_file():
        run_directory.create(run, fill, force=False)
    with run_directory.held(run):
        run_directory.compare(run, about)  # an older run of other options is not gone on with
        return _federate(grid, whole, seeds, {"agreement": agreed} if agreed is not None else {})


def _agreed(
    grid: Grid, run: Path, rules: AgreementRules, told: StatusFile, *, timeout: float | None, expected: int, least: int
) -> tuple[Vocabulary, dict[str, Any]]:
    """The vocabulary that the run's hospitals agreed on, now or when it began, and what became of their parts in it."""
    if (run / run_directory.CONFIG).is_file():
        path = run / _AGREEMENT
        return read_vocabulary(run / "vocabulary.json"), read_json(path) if path.is_file() else {}
    agreement = agree(grid, rules, told, timeout=timeout, expected=expected, least=least)
    vocabulary = agreement.vocabulary
    sizes = f"{len(vocabulary.diagnoses)}, {len(vocabulary.procedures)} and {len(vocabulary.medications)}"
    told.say(f"agreed on {sizes} diagnoses, procedures and medications")
    return vocabulary, agreement.content()


def _federate(grid: Grid, whole: Federation, seeds: Sequence[int], more: Mapping[str, Any]) -> dict[str, Any]:
    history = whole.run / "history.jsonl"
    rows: list[dict[str, Any]] = []
    for seed in seeds:  # of runs that ended before
        files = FitFiles.of(whole.run, seed, PRETRAINING, WHOLE_CONSORTIUM)
        kept = (files.read() or {}).get("history") or rounds_of(files)
        rows += [{"model": PRETRAINING, "seed": seed, "hospital": WHOLE_CONSORTIUM} | row for row in kept]
    write_text(history, "".join(json.dumps(row) + "\n" for row in rows))
    done: dict[FitName, dict[str, Any]] = {}
    told: dict[str, Any] = {}

    def on_round(fit: FitName, row: dict[str, Any]) -> None:
        with history.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"model": fit.model, "seed": fit.seed, "hospital": fit.hospital} | row) + "\n")
        score = "no score" if row["score"] is None else f"score {row['score']:.4f}"
        whole.told.say(f"seed {fit.seed}, round {row['epoch']}: loss {row['loss']:.4f}, {score}")

    for seed in seeds:
        results, told[str(seed)] = whole.seed(grid, seed, on_round=on_round, on_done=whole.told.say)
        done |= results
    head = {
        "mode": "federated",
        "dataset": {
            "vocabulary": whole.vocabulary.digest,
            "hospitals": len({fit.hospital for fit in done if fit.hospital}),
        },
        "federation": whole.federation.model_dump() | {"seeds": told} | dict(more),
        "versions": run_directory.versions(),
    }
    needs = {name: needs_of(adaptation(name)) for name in whole.models}
    return write_results(whole.run, head, done, needs, seeds)
