"""Federated tuning: each hospital adapts the pretrained encoder by itself, and tells its test metrics alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flwr.serverapp import Grid

from server.exchange import (
    Hospital,
    SeedPlan,
    come_back,
    content_of,
    error_of,
    exchange,
    is_missing,
    least_of,
    lifetime,
    metrics_of,
    within,
)
from server.plain_message import array_record
from server.validation import Rejected, count_of, number_of
from shared_model.adaptation import adaptation
from shared_model.federated_algorithm import Arrays
from shared_model.file_forms import Form, read_form
from shared_model.files import private_directory, write_json
from shared_model.messages import TENSORS, Tune
from shared_model.metric_names import MEASURED, OF_SCORES
from shared_model.recommendation import gives_scores

_METRICS = dict.fromkeys(MEASURED, 1 + 1e-9) | {"medications": 1e6}
_SECONDS = {"seconds.fit": 1e9, "seconds.evaluation": 1e9}
_EPOCH = {"best_epoch": 1e9}


class _Told(Form):
    """What the server keeps of a hospital's metrics."""

    numbers: dict[str, float]


Numbers = dict[str, float]


def tune(
    grid: Grid,
    plan: SeedPlan,
    hospitals: Sequence[Hospital],
    shared: Arrays,
    models: Sequence[str],
    *,
    save_scores: bool,
    on_hospital: Callable[[str], None],
    least: int = 1,
    folder: Path | None = None,
) -> tuple[dict[int, Numbers], dict[int, str]]:
    """Let every hospital adapt the pretrained encoder and measure itself: one message each.

    Args:
        on_hospital: gets a label when a hospital has answered.
        least: hospitals whose numbers are waited for, as long again as for an exchange, where replies can be lost.
        folder: keeps what each hospital tells. Those whose numbers are there are not asked again, and count also if
            they are away.

    Returns:
        each hospital's numbers, and why a hospital has none.
    """
    # Algorithm 1, lines 8-9
    encoder = {name: array for name, array in shared.items() if name.startswith("encoder.")}
    request = Tune(**plan.common(), models=list(models), save_scores=save_scores)
    content = content_of(request, {TENSORS: array_record(encoder)})
    timeout, until = plan.federation.timeout, None
    by_id = {h.hospital: h for h in hospitals}
    basis = {"experiment": plan.experiment, "encoder": _digest(encoder)}
    found = {} if folder is None else _kept(folder, basis, by_id, models)
    if found:
        plan.told.say(f"tuning: the metrics of {len(found)} hospitals are kept from before")
    without: dict[int, str] = {}
    asked = [h for h in hospitals if h.hospital not in found]
    while asked:
        messages = {
            h.hospital: grid.create_message(content, request.route, h.node, "tune", lifetime(timeout))
            for h in asked
            if h.node is not None
        }
        plan.told.say(f"tuning: waiting {within(timeout)} for the metrics of {len(messages)} hospitals")
        missing: list[Hospital] = []
        for hospital, reply in exchange(grid, messages, timeout):
            without.pop(hospital, None)
            try:
                if reply is None or is_missing(reply):
                    missing.append(by_id[hospital])
                    raise Rejected("no reply" if reply is None else error_of(reply))
                told = _numbers(metrics_of(reply, by_id[hospital]), models, by_id[hospital])
                if folder is not None:
                    private_directory(folder)
                    write_json(folder / f"{hospital}.json", basis | {"numbers": told})
                found[hospital] = told
            except Rejected as why:
                without[hospital] = str(why)
                plan.told.say(f"tuning: hospital {hospital} is left out: {why}")
            on_hospital(f"tuning of hospital {hospital}, seed {plan.seed}")
        asked = []
        if timeout is not None and len(found) < least <= len(found) + len(missing):
            until = time.monotonic() + timeout if until is None else until
            seconds = max(0.0, until - time.monotonic())
            plan.told.say(
                f"tuning: {len(found)} hospitals have told their metrics, {least} are needed; waiting up to "
                f"{seconds:.0f} s for others to come back"
            )
            if come_back(grid, [h.node for h in missing], least - len(found), until):
                asked = missing
    return dict(sorted(found.items())), without


def _numbers(metrics: Mapping[str, object], models: Sequence[str], hospital: Hospital | None) -> Numbers:
    """A hospital's numbers of each model, without those that stand on too few records by its policy.

    Args:
        hospital: as it was greeted, if it is there. One that had too few test records by its policy then has too few
            still, also if its operator has loosened it since.

    Raises:
        Rejected: one is missing, or out of bounds.
    """
    greeted = () if hospital is None else hospital.too_few
    few = {
        part: least
        for part in ("validation", "test")
        if (least := least_of(metrics, part)) or (part == "test" and part in greeted)
    }
    told: Numbers = {f"least-{part}": least for part, least in few.items()}
    expected = _SECONDS | ({} if "validation" in few else _EPOCH) | ({} if "test" in few else _METRICS)
    for model in models:
        without = frozenset() if gives_scores(adaptation(model)) else OF_SCORES
        if "test" not in few:
            records = count_of(metrics, f"{model}.records")
            if hospital is not None and records != hospital.test:
                raise Rejected(f"tells {records} test records, expected {hospital.test} as at the start")
            told[f"{model}.records"] = records
        for name, most in expected.items():
            if name in without:
                continue
            told[f"{model}.{name}"] = number_of(metrics, f"{model}.{name}", least=0, most=most)
    return told


def _kept(
    folder: Path, basis: Mapping[str, str], by_id: Mapping[int, Hospital], models: Sequence[str]
) -> dict[int, Numbers]:
    """What hospitals told of the same experiment and encoder before the server ended."""
    found = {}
    for path in sorted(folder.glob("[0-9]*.json")):
        content, hospital = read_form(path, _Told, "delete it to ask the hospital again"), int(path.stem)
        try:
            if all(content.get(name) == value for name, value in basis.items()):
                found[hospital] = _numbers(content["numbers"], models, by_id.get(hospital))
        except Rejected:
            continue  # of other models or records: it is asked again
    return found


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()
