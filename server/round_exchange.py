"""One exchange of federated pretraining: its messages, what a reply must be, and what came of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from server.exchange import (
    Hospital,
    content_of,
    error_of,
    exchange,
    is_missing,
    least_of,
    lifetime,
    metrics_of,
    size_of,
    within,
)
from server.plain_message import array_record
from server.round_state import RoundState
from server.validation import BadNumbers, Rejected, count_of, gradient_of, number_of, size_of_tensors, update_of
from shared_model.errors import TemptError
from shared_model.federated_algorithm import NOW, Algorithm, Arrays, Asked, Told, Unusable
from shared_model.messages import TENSORS, Pretrain
from shared_model.pretrainings.tempt import least_loss, slope

_LARGEST_LOSS = float(np.finfo(np.float32).max)  # a batch's loss is a float32, whatever gamma, tau and mu are


class _Checked(NamedTuple):
    """What a hospital's reply to a round holds, once it is checked; no score where its policy has too few records."""

    score: float | None
    loss: float = 0.0
    told: Told | None = None


@dataclass
class Came:
    """What came of an exchange.

    Attributes:
        doing: what was asked for, in words.
        score: summed over validation records, `scored` of them, as they count; of `unscored` none may be told.
        loss: summed over training records, `weight` of them, as they count.
        sound: replies that hold what they should.
        gathered: of the algorithm, of those that were taken.
        taken: hospitals whose update was taken, with its weight; of `kept` the server keeps something.
        why_not: why a hospital's reply was not taken; of these `missing` did not answer, `bad` made no sound numbers.
    """

    doing: str
    gathered: Any
    score: float = 0.0
    scored: int = 0
    unscored: int = 0
    loss: float = 0.0
    weight: int = 0
    sound: int = 0
    taken: dict[int, int] = field(default_factory=dict)
    kept: list[int] = field(default_factory=list)
    why_not: dict[int, str] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)
    bad: set[int] = field(default_factory=set)

    @property
    def blames_the_tensors(self) -> bool:
        """Whether no fewer hospitals could make no number of what came in than could use it."""
        return 0 < len(self.bad) >= self.sound


def exchange_of(state: RoundState, grid: Grid, number: int, asked: Sequence[int]) -> Came:
    """Ask for the last round's scores, and those who are asked to train for their updates."""
    plan, algorithm = state.plan, state.chosen.algorithm
    came = Came(f"round {number}" if asked else "the last round's score", algorithm.gather(state.state))
    scoring = state.selects and state.open_row is not None
    by_id = {h.hospital: h for h in state.hospitals if h.hospital in asked or (scoring and h.validation)}
    what = algorithm.ask(state.state, state.chosen.options, state.exchange)
    if not state.exchange and not _same(what.tensors, state.current):
        raise TemptError(
            f"strategy '{state.chosen.name}': a round's first exchange asks for other tensors than '{NOW}'"
        )
    if strange := sorted(what.numbers.keys() ^ algorithm.asks.keys()):
        raise TemptError(
            f"strategy '{state.chosen.name}': the number '{strange[0]}' is asked and not declared, or not asked"
        )
    messages = _messages(state, what, grid, list(by_id.values()), number, asked, scoring)
    for hospital in [h for h in by_id if h not in messages]:
        state.parts[hospital].missed += 1
        came.why_not[hospital] = "it is not there"
        came.missing.add(hospital)
    if by_id:
        limit = within(plan.federation.timeout)
        plan.told.say(f"{came.doing}: waiting {limit} for the replies of {len(messages)} hospitals")
    for hospital, reply in exchange(grid, messages, plan.federation.timeout):
        part, expected, counts = state.parts[hospital], by_id[hospital], state.counts[hospital]
        part.bytes_to_hospital += size_of(messages[hospital].content)
        if reply is None or is_missing(reply):
            part.missed += 1
            came.why_not[hospital] = "no reply" if reply is None else error_of(reply)
            came.missing.add(hospital)
            continue
        try:
            answer = _checked(state, what, reply, expected, trains=hospital in asked, scores=scoring)
            kept = None if answer.told is None else _accepted(algorithm, came.gathered, answer.told)
        except Rejected as why:
            part.rejected.append(f"{came.doing}: {why}")
            came.why_not[hospital] = str(why)
            came.bad |= {hospital} if isinstance(why, BadNumbers) else set()
            continue
        part.bytes_from_hospital += size_of(reply.content)
        came.sound += 1
        if scoring and answer.score is None:
            came.unscored += counts.validation
        elif scoring and answer.score is not None:
            part_counted = counts.validation / expected.validation if expected.validation else 1.0
            came.score, came.scored = came.score + answer.score * part_counted, came.scored + counts.validation
        if answer.told is not None:
            if kept is not None:
                state.contributions.keep(hospital, state.serial, kept)
                came.kept.append(hospital)
            came.loss, came.weight = came.loss + answer.loss * counts.train, came.weight + counts.train
            came.taken[hospital] = counts.train
    return came


def _messages(
    state: RoundState,
    what: Asked,
    grid: Grid,
    hospitals: Sequence[Hospital],
    number: int,
    asked: Sequence[int],
    scoring: bool,
) -> dict[int, Message]:
    """A round's messages; they share the tensors that go out."""
    federation, lives = state.plan.federation, lifetime(state.plan.federation.timeout)
    arrays = array_record(federation.encoding.encode(what.tensors))
    more = {part: array_record(federation.encoding.encode(of)) for part, of in what.more.items()}
    fixed = Pretrain(
        **state.plan.common(),
        round=number,
        serial=state.serial,
        exchange=state.exchange,
        train=False,
        score=False,
        first_epoch=(number - 1) * federation.local_epochs + 1,
        epochs=federation.local_epochs,
        only_hospital=len(state.hospitals) == 1,
        last_accepted=0,
        algorithm=federation.strategy,
        keep_optimizer=federation.local_optimizer == "keep",
        bfloat16=federation.encoding.bfloat16,
        changed_rows=federation.encoding.changed_rows,
        asked=what.numbers,
    )
    found = {}
    for h in hospitals:
        if h.node is None:
            continue
        train = h.hospital in asked
        request = replace(
            fixed,
            train=train,
            score=scoring and h.validation > 0,
            last_accepted=(state.accepted.get(h.hospital) or [0])[-1],
        )
        content = content_of(request, {TENSORS: arrays, **(more if train else {})})
        found[h.hospital] = grid.create_message(content, request.route, h.node, str(number), lives)
    return found


def _checked(
    state: RoundState, what: Asked, reply: Message, expected: Hospital, *, trains: bool, scores: bool
) -> _Checked:
    """What a reply holds, if all of it is as it should be."""
    metrics = metrics_of(reply, expected)
    if expected.train and (least := least_of(metrics, "train")):
        raise Rejected(f"has fewer than {least} training records, too few by its policy")
    # one that was greeted with too few by its policy counts for none, also if its operator has loosened it since
    if expected.train and number_of(metrics, "num-examples") != expected.train:
        raise Rejected(f"tells {metrics['num-examples']} training records, expected {expected.train} as at the start")
    score: float | None = 0.0
    if scores and expected.validation and least_of(metrics, "validation"):
        score = None
    elif scores and expected.validation:
        score = number_of(metrics, "score-sum", least=0, most=expected.validation * (1 + 1e-6))
    if not trains:
        return _Checked(score)
    pretraining = state.plan.settings.pretraining
    loss = number_of(metrics, "loss", least=least_loss(pretraining, expected.train), most=_LARGEST_LOSS)
    return _Checked(score, loss, _told(state, what, reply, expected.hospital, loss))


def _told(state: RoundState, what: Asked, reply: Message, hospital: int, loss: float) -> Told:
    """The algorithm's part of a reply."""
    algorithm, federation = state.chosen.algorithm, state.plan.federation
    records = reply.content.array_records
    encoding, largest = federation.encoding, federation.largest_update
    arrays, bounds, size = {}, {}, size_of_tensors(what.tensors)
    for part, kind in algorithm.tells.items():
        if kind == "update":
            bounds[part] = largest * size
            arrays[part] = update_of(records.get(part), what.tensors, encoding, largest)
        else:
            steep = largest * slope(state.plan.settings.pretraining)
            bounds[part] = steep * size
            arrays[part] = gradient_of(part, records.get(part), what.tensors, encoding, steep)
    metrics = reply.content.metric_records["metrics"]
    numbers = {
        name: count_of(metrics, name, least=least, most=most) if name in metrics else least
        for name, (least, most) in algorithm.numbers.items()
    }
    weight, kept = state.counts[hospital].train, state.kept.get(hospital)
    before = state.contributions.of(hospital, kept[-1]) if kept else None
    return Told(hospital, arrays, numbers, loss, weight, weight / state.records, before, bounds)


def _accepted(algorithm: Algorithm, gathered: Any, told: Told) -> Arrays | None:
    """Take an answer; what the server is to keep.

    Raises:
        BadNumbers: the algorithm can't use it.
    """
    try:
        kept = algorithm.accept(gathered, told)
    except Unusable as why:
        raise BadNumbers(str(why)) from None
    return kept if algorithm.server_keeps else None


def _same(tensors: Arrays, current: Arrays) -> bool:
    return tensors.keys() == current.keys() and all(
        array is current[name] or np.array_equal(array, current[name]) for name, array in tensors.items()
    )
