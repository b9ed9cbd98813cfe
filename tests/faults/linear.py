"""Tells whether a history of concurrent calls could have happened one after the other.

The search is Wing's and Gong's with Lowe's memory of configurations: take any call without a predecessor, ask the
model whether its answer is right there, go on; step back where it is not. A call without an answer may have
happened at any time after it began, or never.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

QUEUED = ("queuing", "requeuing")
FINISHED = ("succeeded", "failed", "cancelled")
MOST_ATTEMPTS = 3


class Operation(NamedTuple):
    """One call. `answer` is None, and `end` infinite, where none came.

    `word`: what a report or an acknowledgement says, or the queues of a claim, with commas between them. `attempt`: of
    a report; the count of the delivery that is acknowledged.
    """

    begin: float
    end: float
    what: str
    rollout: str
    attempt: int
    word: str
    answer: Any


class Rollout(NamedTuple):
    """What the model knows of one."""

    status: str
    attempts: tuple[str, ...]
    queue: str = ""


class State(NamedTuple):
    """What waits, in all task queues, and the rollouts, first enqueued first.

    `finished`: those that have finished, in that order; `deliveries`: of each that was delivered, the count, and whether
    it is held, released, or acknowledged ("consumed").
    """

    queue: tuple[str, ...]
    rollouts: tuple[tuple[str, Rollout], ...]
    paused: bool = False
    finished: tuple[str, ...] = ()
    deliveries: tuple[tuple[str, tuple[int, str]], ...] = ()


def start(names: list[str], queues: Sequence[str] = ()) -> State:
    """Return the state after an enqueue of these rollouts, each with up to three attempts.

    `queues`: their task queues; none: the default one.
    """
    named = zip(names, queues or [""] * len(names), strict=True)
    return State(
        tuple(names), tuple((name, Rollout("queuing", (), queue)) for name, queue in named)
    )


def step(state: State, operation: Operation) -> tuple[State, Any]:
    """Return what comes of a call: the state after it, and its answer."""
    if operation.what in ("pause", "resume"):
        return state._replace(paused=operation.what == "pause"), "ok"
    if operation.what == "pull":
        return _pull(state)
    if operation.what == "acknowledge":
        return _acknowledge(state, operation)
    if operation.what == "claim":
        rollouts, queues = dict(state.rollouts), operation.word.split(",")
        waiting = [name for name in state.queue if rollouts[name].queue in queues]
        if not waiting or state.paused:
            return state, "empty"
        name = waiting[0]
        old = rollouts[name]
        claimed = old._replace(status="preparing", attempts=(*old.attempts, "preparing"))
        return _put(state, name, claimed), (name, len(claimed.attempts))
    old = dict(state.rollouts)[operation.rollout]
    if operation.what == "cancel":
        new = old if old.status in FINISHED else old._replace(status="cancelled")
        return _put(state, operation.rollout, new), new.status
    return _report(state, operation, old)


def _pull(state: State) -> tuple[State, Any]:
    deliveries = dict(state.deliveries)
    again = [n for n in state.finished if deliveries.get(n, (0, ""))[1] == "released"]
    waiting = again + [n for n in state.finished if n not in deliveries]
    if not waiting:
        return state, "empty"
    count = deliveries.get(waiting[0], (0, ""))[0] + 1
    return _deliver(state, waiting[0], count, "held"), (waiting[0], count)


def _acknowledge(state: State, operation: Operation) -> tuple[State, Any]:
    count, word = dict(state.deliveries).get(operation.rollout, (0, ""))
    if count < operation.attempt:
        return state, "impossible"
    if count > operation.attempt or word != "held":
        return state, "refused"
    return _deliver(state, operation.rollout, count, operation.word), "ok"


def _deliver(state: State, name: str, count: int, word: str) -> State:
    deliveries = {**dict(state.deliveries), name: (count, word)}
    return state._replace(deliveries=tuple(sorted(deliveries.items())))


def _report(state: State, operation: Operation, old: Rollout) -> tuple[State, Any]:
    number, word = operation.attempt, operation.word
    if number > len(old.attempts):
        return state, "impossible"
    before, latest = old.attempts[number - 1], number == len(old.attempts)
    if before == word:
        return state, "ok"
    if before != "preparing" and latest and old.status != "cancelled":
        return state, "refused"
    attempts = (*old.attempts[: number - 1], word, *old.attempts[number:])
    status = old.status
    if latest and status not in FINISHED:
        status = word
        if word == "failed" and number < MOST_ATTEMPTS:
            status = "requeuing"
    return _put(state, operation.rollout, old._replace(status=status, attempts=attempts)), "ok"


def _put(state: State, name: str, rollout: Rollout) -> State:
    queue = state.queue
    if name in queue and rollout.status not in QUEUED:
        queue = tuple(n for n in queue if n != name)
    elif name not in queue and rollout.status in QUEUED:
        queue = (*queue, name)
    rollouts = tuple((n, rollout if n == name else r) for n, r in state.rollouts)
    finished = state.finished
    if name not in finished and rollout.status in FINISHED:
        finished = (*finished, name)
    return state._replace(queue=queue, rollouts=rollouts, finished=finished)


def linearizable(state: State, history: list[Operation]) -> bool:
    """Tell whether some order of the calls, which no answer contradicts, ends in the answers given."""
    operations = sorted(history, key=lambda operation: operation.begin)
    seen: set[tuple[int, State]] = set()
    stack = [(0, state)]
    while stack:
        done, state = stack.pop()
        if (done, state) in seen:
            continue
        seen.add((done, state))
        waiting = [n for n in range(len(operations)) if not done >> n & 1]
        earliest = min((operations[n].end for n in waiting), default=math.inf)
        if earliest == math.inf:
            return True  # what is left was never answered, and need not have happened
        answered, open_ = [], []
        for n in waiting:
            operation = operations[n]
            if operation.begin > earliest:
                break
            after, answer = step(state, operation)
            if operation.answer in (None, answer) and answer != "impossible":
                place = open_ if operation.answer is None else answered
                place.append((done | 1 << n, after))
        # The last is tried first: what was never answered only where nothing else explains the rest.
        stack += open_ + answered[::-1]
    return False
