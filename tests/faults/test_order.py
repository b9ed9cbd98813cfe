"""Claims, reports, cancellations and deliveries of many clients, cut connections and restarts: as if one after the other."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import grpc
import pytest
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub

from tests.faults.histories import (
    CALLS,
    CLAIMED,
    CLIENTS,
    OUTCOMES,
    ROLLOUTS,
    WORDS,
    beginning,
    record,
)
from tests.faults.lab import Lab
from tests.faults.linear import MOST_ATTEMPTS, Operation, linearizable, start, step
from tests.faults.proxy import Proxy

OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
]


def make_trouble(lab: Lab, proxy: Proxy, fault: str, mutant: str = "") -> None:
    if fault == "cut":
        proxy.cut()
    elif fault == "restart":
        lab.kill()
        lab.start(mutant=mutant)


def record_through(
    lab: Lab, proxy: Proxy, dice: random.Random, names: list[str], mutant: str = ""
) -> list[Operation]:
    """Record a history of clients whose connections are cut, or whose server is restarted.

    A mutant always is, in the middle of a longer history.
    """
    fault = "restart" if mutant else dice.choice(["", "cut", "cut", "restart"])
    channels = [grpc.insecure_channel(proxy.address, OPTIONS) for _ in range(CLIENTS)]
    stubs = [LightningStoreServiceStub(channel) for channel in channels]
    times = (0.1, 0.6) if mutant else (0.0, 0.05)
    trouble = functools.partial(make_trouble, lab, proxy, fault, mutant)
    history = record(stubs, dice, names, trouble, *times, patient=bool(mutant))
    for channel in channels:
        channel.close()
    return history


def test_histories_are_linearizable_through_cuts_and_crashes(
    lab: Lab, dice: random.Random, tries
) -> None:
    lab.start()
    unanswered = calls = 0
    with Proxy(lab.port) as proxy:
        for turn in range(tries("histories")):
            names = [f"h{turn}-{n}" for n in range(ROLLOUTS)]
            history = record_through(lab, proxy, dice, names)
            calls += len(history)
            unanswered += sum(operation.answer is None for operation in history)
            assert linearizable(beginning(names), history), history
    print(f"{calls} calls, {unanswered} without an answer")


FINDINGS = "not linearizable|two deliveries with one count"


@pytest.mark.parametrize("mutant", ["no stored acknowledgements", "no stored cursors"])
def test_histories_of_servers_that_forget_are_not_linearizable(
    lab: Lab, dice: random.Random, mutant: str
) -> None:
    lab.start(mutant=mutant)
    with Proxy(lab.port) as proxy, pytest.raises(AssertionError, match=FINDINGS):
        for turn in range(40):
            names = [f"h{turn}-{n}" for n in range(ROLLOUTS)]
            history = record_through(lab, proxy, dice, names, mutant)
            assert linearizable(beginning(names), history), "not linearizable"


NAMES = ["a", "b"]


def claim(begin: float, end: float, answer: Any, queues: str = "") -> Operation:
    return Operation(begin, end, "claim", "", 0, queues, answer)


def pause(begin: float, end: float, what: str = "pause", answer: Any = "ok") -> Operation:
    return Operation(begin, end, what, "", 0, "", answer)


def report(begin: float, end: float, name: str, number: int, word: str, answer: Any) -> Operation:
    return Operation(begin, end, "report", name, number, word, answer)


def pull(begin: float, end: float, answer: Any) -> Operation:
    return Operation(begin, end, "pull", "", 0, "", answer)


def acknowledge(begin: float, end: float, count: int, word: str, answer: Any = "ok") -> Operation:
    return Operation(begin, end, "acknowledge", "a", count, word, answer)


def cancel(begin: float, end: float, name: str, answer: Any) -> Operation:
    return Operation(begin, end, "cancel", name, 0, "", answer)


GOOD = {
    "one after the other": [claim(0, 1, ("a", 1)), claim(2, 3, ("b", 1)), claim(4, 5, "empty")],
    "at once, in either order": [claim(0, 9, ("b", 1)), claim(1, 8, ("a", 1))],
    "a lost answer that took effect": [claim(0, math.inf, None), claim(1, 2, ("b", 1))],
    "a lost answer that did not": [claim(0, math.inf, None), claim(1, 2, ("a", 1))],
    "a retry": [
        claim(0, 1, ("a", 1)),
        report(2, 3, "a", 1, "failed", "ok"),
        claim(4, 5, ("b", 1)),
        claim(6, 7, ("a", 2)),
    ],
    "another queue is empty": [claim(0, 1, "empty", "gpu"), claim(2, 3, ("a", 1), "gpu,")],
    "before the pause or after it": [
        pause(0, 9),
        claim(1, 4, ("a", 1)),
        claim(5, 8, "empty"),
    ],
    "paused and resumed": [
        pause(0, 1),
        claim(2, 3, "empty"),
        pause(4, 5, "resume"),
        claim(6, 7, ("a", 1)),
    ],
    "a lost pause": [pause(0, math.inf, answer=None), claim(1, 2, "empty")],
    "delivered, released and delivered again": [
        cancel(0, 1, "a", "cancelled"),
        pull(2, 3, ("a", 1)),
        pull(4, 5, "empty"),
        acknowledge(6, 7, 1, "released"),
        pull(8, 9, ("a", 2)),
        acknowledge(10, 11, 1, "consumed", "refused"),
        acknowledge(12, 13, 2, "consumed"),
        pull(14, 15, "empty"),
    ],
    "a lost pull that took effect": [
        cancel(0, 1, "a", "cancelled"),
        pull(2, math.inf, None),
        pull(3, 4, "empty"),
    ],
    "cancelled first": [cancel(0, 5, "a", "cancelled"), claim(1, 4, ("b", 1))],
}
BAD = {
    "delivered before it has finished": [claim(0, 1, ("a", 1)), pull(2, 3, ("a", 1))],
    "at two pullers": [
        cancel(0, 1, "a", "cancelled"),
        pull(2, 5, ("a", 1)),
        pull(2, 5, ("a", 2)),
    ],
    "a delivery lost": [cancel(0, 1, "a", "cancelled"), pull(2, 3, "empty")],
    "acknowledged twice": [
        cancel(0, 1, "a", "cancelled"),
        pull(2, 3, ("a", 1)),
        acknowledge(4, 5, 1, "consumed"),
        acknowledge(6, 7, 1, "consumed"),
    ],
    "delivered after it was acknowledged": [
        cancel(0, 1, "a", "cancelled"),
        pull(2, 3, ("a", 1)),
        acknowledge(4, 5, 1, "consumed"),
        pull(6, 7, ("a", 2)),
    ],
    "claimed twice": [claim(0, 1, ("a", 1)), claim(2, 3, ("a", 1))],
    "out of order": [claim(0, 1, ("b", 1)), claim(2, 3, ("a", 1))],
    "lost": [claim(0, 1, ("a", 1)), claim(2, 3, "empty")],
    "claimed after its cancellation": [cancel(0, 1, "a", "cancelled"), claim(2, 3, ("a", 1))],
    "of another queue": [claim(0, 1, ("a", 1), "gpu")],
    "claimed while claims are paused": [pause(0, 1), claim(2, 3, ("a", 1))],
    "still paused": [pause(0, 1), pause(2, 3, "resume"), claim(4, 5, "empty")],
    "resumed by a lost answer and paused again": [
        pause(0, 1),
        pause(2, math.inf, "resume", None),
        claim(3, 4, ("a", 1)),
        claim(5, 6, "empty"),
    ],
    "a retry that never came": [
        claim(0, 1, ("a", 1)),
        claim(2, 3, ("b", 1)),
        report(4, 5, "a", 1, "failed", "ok"),
        claim(6, 7, "empty"),
    ],
    "a word forgotten": [
        claim(0, 1, ("a", 1)),
        report(2, 3, "a", 1, "succeeded", "ok"),
        report(4, 5, "a", 1, "failed", "ok"),
    ],
    "revived": [
        claim(0, 1, ("a", 1)),
        cancel(2, 3, "a", "cancelled"),
        report(4, 5, "a", 1, "failed", "ok"),
        claim(6, 7, ("b", 1)),
        claim(8, 9, ("a", 2)),
    ],
}


@pytest.mark.parametrize("case", GOOD)
def test_checker_accepts(case: str) -> None:
    assert linearizable(start(NAMES), GOOD[case])


@pytest.mark.parametrize("case", BAD)
def test_checker_rejects(case: str) -> None:
    assert not linearizable(start(NAMES), BAD[case])


def made_history(dice: random.Random) -> list[Operation]:
    """Return a history that is right by its making: each call happens at an instant between begin and end."""
    names = [f"n{n}" for n in range(ROLLOUTS)]
    state, history = beginning(names), []
    words = {"claim": CLAIMED, "acknowledge": list(OUTCOMES)}
    for now in range(CLIENTS * CALLS):
        what = dice.choice(
            [
                *("claim", "claim", "claim", "report", "report", "cancel"),
                *("pause", "resume", "resume", "pull", "pull", "acknowledge"),
            ]
        )
        begin, end = now - 3 * dice.random(), now + 3 * dice.random()
        operation = Operation(
            *(begin, end, what, dice.choice(names), dice.choice([1, 1, 2])),
            *(dice.choice(words.get(what, list(WORDS))), None),
        )
        after, answer = step(state, operation)
        if answer == "impossible":
            continue
        if dice.random() < 0.04:  # its answer is lost; it took effect or not
            state = dice.choice([state, after])
            history.append(operation._replace(end=math.inf))
        else:
            state = after
            history.append(operation._replace(answer=answer))
    return history


def damaged(history: list[Operation], dice: random.Random) -> list[Operation]:
    """Return the history with one impossible answer: a claim returned twice, or one that does not exist."""
    claims = [n for n, o in enumerate(history) if o.what == "claim" and o.answer is not None]
    given = [n for n in claims if history[n].answer != "empty"]
    source = history[dice.choice(given)].answer
    place = dice.choice([n for n in claims if history[n].answer != source])
    wrong = dice.choice([source, (source[0], source[1] + MOST_ATTEMPTS)])
    return [o._replace(answer=wrong) if n == place else o for n, o in enumerate(history)]


def test_checker_accepts_made_histories_and_rejects_each_once_damaged(
    dice: random.Random, tries
) -> None:
    names = [f"n{n}" for n in range(ROLLOUTS)]
    left = tries("made histories")
    while left:
        history = made_history(dice)
        assert linearizable(beginning(names), history), history
        # One history of two hundred has no claims with two answers, so none that could take the other's.
        if len({o.answer for o in history if o.what == "claim" and o.answer is not None}) > 1:
            assert not linearizable(beginning(names), damaged(history, dice))
            left -= 1
