"""Federated tuning: each hospital adapts the pretrained encoder by itself, and tells its test metrics alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flwr.app import RecordDict
from flwr.serverapp import Grid

from server.exchange import Hospital, Plan, exchange, lifetime, metrics_of, within
from server.plain_message import array_record
from server.validation import Arrays, Rejected, count_of, number_of

_MOST = {"prauc": 1 + 1e-9, "jaccard": 1 + 1e-9, "f1": 1 + 1e-9, "medications": 1e6}
_MOST |= {"best_epoch": 1e9, "seconds.fit": 1e9, "seconds.evaluation": 1e9}


def tune(
    grid: Grid,
    plan: Plan,
    hospitals: Sequence[Hospital],
    shared: Arrays,
    models: Sequence[str],
    *,
    save_scores: bool,
    on_hospital: Callable[[str], None],
) -> tuple[dict[int, dict[str, float]], dict[int, str]]:
    """Let every hospital adapt the pretrained encoder and measure itself: one message each.

    Args:
        on_hospital: gets a label when a hospital has answered.

    Returns:
        each hospital's numbers, and why a hospital has none.
    """
    # Algorithm 1, lines 8-9
    encoder = array_record({name: array for name, array in shared.items() if name.startswith("encoder.")})
    config = plan.config(models=list(models), **{"save-scores": save_scores})
    content = RecordDict({"arrays": encoder, "config": config})
    timeout = plan.federation.timeout
    messages = {
        h.hospital: grid.create_message(content, "train.tune", h.node, "tune", lifetime(timeout))
        for h in hospitals
        if h.node is not None
    }
    plan.told.say(f"tuning: waiting {within(timeout)} for the metrics of {len(messages)} hospitals")
    found: dict[int, dict[str, float]] = {}
    without: dict[int, str] = {}
    by_id = {h.hospital: h for h in hospitals}
    for hospital, reply in exchange(grid, messages, timeout):
        try:
            if reply is None:
                raise Rejected("no reply")
            metrics = metrics_of(reply, by_id[hospital])
            told: dict[str, float] = {}
            for model in models:
                records, agreed = count_of(metrics, f"{model}.records"), by_id[hospital].test
                if records != agreed:
                    raise Rejected(f"tells {records} test records, expected {agreed} as at the start")
                told[f"{model}.records"] = records
                for name, most in _MOST.items():
                    told[f"{model}.{name}"] = number_of(metrics, f"{model}.{name}", least=0, most=most)
            found[hospital] = told
        except Rejected as why:
            without[hospital] = str(why)
            plan.told.say(f"tuning: hospital {hospital} is left out: {why}")
        on_hospital(f"tuning of hospital {hospital}, seed {plan.seed}")
    return found, without
