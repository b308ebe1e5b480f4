"""The Flower ServerApp: it reads its run's configuration, runs the federation, and writes the run directory.

The same app serves `flwr run .` (Flower's simulation) and a deployment; a hospital's rows come from what it told.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.federation import Federation
from server.federation_settings import federation_settings
from shared_model.adaptation import adaptation, adaptations
from shared_model.errors import TemptError
from shared_model.files import write_json
from shared_model.results import FitName, write_results
from shared_model.settings import resolve
from shared_model.vocabulary import read_vocabulary, write_vocabulary

log = logging.getLogger("tempt.server")
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run's configuration describes."""
    run_federation(grid, context.run_config)


def run_federation(grid: Grid, config: Mapping[str, Any]) -> dict[str, Any]:
    """The federation of a run configuration, from its checkpoint on if it has one; the content of `results.json`.

    Raises:
        TemptError: an option is out of bounds, or the vocabulary is missing.
        TooFewHospitals: a round or the tuning ended below the quorum.
    """
    run = Path(str(config["out"]))
    settings = resolve(str(config["preset"]), _pairs("set", str(config["set"])))
    federation = federation_settings(
        strategy=config["strategy"],
        options=_pairs("strategy-options", str(config["strategy-options"])),
        rounds=config["rounds"] or None,
        local_epochs=config["local-epochs"],
        local_optimizer=config["local-optimizer"],
        fraction=config["fraction"],
        quorum=config["quorum"],
        timeout=config["timeout"],
        transport=config["transport"],
        changed_rows=config["changed-rows"],
    )
    models = _words(str(config["models"])) or list(adaptations())
    for model in models:
        adaptation(model)
    seeds = [int(seed) for seed in _words(str(config["seeds"]))]
    vocabulary = read_vocabulary(Path(str(config["vocabulary"] or config["data"])) / "vocabulary.json")
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_vocabulary(run / "vocabulary.json", vocabulary)
    about = {
        "format": 1,
        "mode": "federated",
        "settings": settings.model_dump(mode="json"),
        "federation": federation.model_dump(),
        "models": models,
        "seeds": seeds,
    }
    write_json(run / "config.json", about)
    whole = Federation(
        run=run,
        vocabulary=vocabulary,
        settings=settings,
        federation=federation,
        models=tuple(models),
        save_scores=bool(config["save-scores"]),
        expected=int(config["hospitals"]),
    )
    done: dict[FitName, dict[str, Any]] = {}
    told: dict[str, Any] = {}

    def on_round(fit: FitName, row: dict[str, Any]) -> None:
        with (run / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"model": fit.model, "seed": fit.seed, "hospital": fit.hospital} | row) + "\n")
        log.info("seed %d, round %d: loss %.4f", fit.seed, row["epoch"], row["loss"])

    for seed in seeds:
        results, told[str(seed)] = whole.seed(grid, seed, on_round=on_round, on_done=log.info)
        done |= results
    hospitals = {fit.hospital for fit in done if fit.hospital}
    head = {
        "mode": "federated",
        "dataset": {"vocabulary": vocabulary.digest, "hospitals": len(hospitals)},
        "federation": federation.model_dump() | {"seeds": told},
    }
    return write_results(run, head, done, models, seeds)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _pairs(option: str, text: str) -> dict[str, str]:
    """Blank-separated NAME=VALUE: a run configuration knows no lists."""
    pairs = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals:
            raise TemptError(f"{option} '{word}': expected NAME=VALUE")
        pairs[name] = value
    return pairs
