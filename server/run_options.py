"""What a run configuration's options mean; read before anything starts, and by the app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from server.federation import check_settings
from server.federation_settings import FederationSettings, federation_settings
from shared_model import comma_lists
from shared_model.adaptation import adaptation, adaptations
from shared_model.errors import TemptError
from shared_model.settings import Settings, resolve


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
    settings = resolve(str(config["preset"]), _pairs("set", str(config["set"])))
    check_settings(settings)
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
    models = comma_lists.names("models", given) if given.strip() else list(adaptations())
    for model in models:
        adaptation(model)
    if len(set(models)) < len(models):
        raise TemptError(f"models '{config['models']}': a model is named twice")
    seeds = comma_lists.numbers("seeds", str(config["seeds"]), "42,43")
    return Options(settings, federation, tuple(models), tuple(seeds))


def _pairs(option: str, text: str) -> dict[str, str]:
    """Blank-separated NAME=VALUE: a run configuration knows no lists."""
    pairs = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise TemptError(f"{option} '{word}': expected NAME=VALUE")
        pairs[name] = value
    return pairs
