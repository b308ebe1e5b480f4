"""What a run configuration's options mean; read before anything starts, and by the app."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from server.federation import check_settings
from server.federation_settings import FederationSettings, federation_settings
from server.vocabulary_agreement import agreement_rules
from shared_model import comma_lists
from shared_model.adaptation import adaptation, adaptations, why_not_federated
from shared_model.errors import TemptError
from shared_model.files import read_json
from shared_model.fitting import own_settings
from shared_model.recommendation import is_default
from shared_model.run_directory import versions
from shared_model.settings import Settings, resolve
from shared_model.shipped_code import code_files
from shared_model.vocabulary_rules import AgreementRules


class Options(NamedTuple):
    """What a run configuration says, but for places and who takes part."""

    settings: Settings
    federation: FederationSettings
    models: tuple[str, ...]
    seeds: tuple[int, ...]


def options_of(config: Mapping[str, Any]) -> Options:
    """A run configuration's options.

    Raises:
        TemptError: one is unknown, ill-typed or out of its bounds.
    """
    federation = federation_settings(
        strategy=config["strategy"],
        options=_pairs("strategy-options", str(config["strategy-options"])),
        rounds=config["rounds"] or None,
        local_epochs=config["local-epochs"],
        local_optimizer=config["local-optimizer"],
        fraction=config["fraction"],
        quorum=config["quorum"],
        timeout=config["timeout"],
        largest_update=config["largest-update"],
        most_records=config["most-records"] or None,
        transport=config["transport"],
        changed_rows=config["changed-rows"],
    )
    given = str(config["models"])
    models = comma_lists.names("models", given) if given.strip() else _default_models()
    for model in models:
        if why := why_not_federated(adaptation(model)):
            raise TemptError(f"models {model}: {why}")
    if len(set(models)) < len(models):
        raise TemptError(f"models '{config['models']}': a model is named twice; name each once")
    own = own_settings({model: adaptation(model) for model in models})
    settings = resolve(str(config["preset"]), _pairs("set", str(config["set"])), own)
    check_settings(settings)
    seeds = comma_lists.numbers("seeds", str(config["seeds"]), "42,43")
    return Options(settings, federation, tuple(models), tuple(seeds))


def _default_models() -> list[str]:
    methods = {name: adaptation(name) for name in adaptations()}
    return [name for name, method in methods.items() if is_default(method) and not why_not_federated(method)]


def given_vocabulary(config: Mapping[str, Any]) -> Path:
    """The file of the vocabulary that a run configuration names, of a dataset perhaps."""
    return Path(str(config["vocabulary"] or config["data"])) / "vocabulary.json"


def rules_of(config: Mapping[str, Any]) -> AgreementRules | None:
    """The rules of an agreement on a vocabulary; None where a vocabulary is given.

    Raises:
        TemptError: a value is out of type or bounds.
    """
    if config["vocabulary"] or config["data"]:
        return None
    names = ("minimum_count", "min_records", "top_medications", "top_procedures")
    return agreement_rules(**{name: config[name.replace("_", "-")] for name in names})


def config_of(config: Mapping[str, Any], vocabulary: str | None) -> dict[str, Any]:
    """The content of a run's `config.json`: all that its results depend on, but for the hospitals' data.

    Args:
        vocabulary: the digest of the one that is given or was agreed on.

    Raises:
        TemptError: an option is unknown, ill-typed or out of its bounds, or the dataset can't be read.
    """
    settings, federation, models, seeds = options_of(config)
    rules, data = rules_of(config), str(config["data"])
    dataset: dict[str, Any] = {"vocabulary": vocabulary, "hospitals": int(config["hospitals"])}
    if data:  # of Flower's simulation, which sees it
        dataset["digest"] = read_json(Path(data) / "dataset.json").get("digest")
    return {
        "format": 1,
        "mode": "federated",
        "data": data,
        "dataset": dataset,
        "preset": config["preset"],
        "settings": settings.model_dump(mode="json"),
        "federation": federation.model_dump(),
        "models": list(models),
        "seeds": list(seeds),
        "device": config["device"],
        "save_scores": bool(config["save-scores"]),
        "versions": versions(),
        "code": code_files(),
    } | ({"agreement": rules.model_dump()} if rules is not None else {})


def _pairs(option: str, text: str) -> dict[str, str]:
    """Blank-separated NAME=VALUE: a run configuration knows no lists."""
    pairs = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise TemptError(f"{option} '{word}': expected NAME=VALUE")
        pairs[name] = value
    return pairs
