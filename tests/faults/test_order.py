"""Claims, reports and cancellations of many clients, cut connections and restarts: as if one after the other."""

from __future__ import annotations

import math
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from lightningstore.v1 import attempt_pb2, claim_pb2, rollout_pb2
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub

from tests.faults.lab import Lab, until
from tests.faults.linear import MOST_ATTEMPTS, Operation, linearizable, start, step
from tests.faults.proxy import Proxy

CLIENTS = 5
CALLS = 9
ROLLOUTS = 6
ROLLOUT = {4: "succeeded", 5: "failed", 6: "cancelled"}
WORDS = {"succeeded": 3, "failed": 4}


class Client:
    """Calls at random and writes down what it asked, when, and what came back."""

    def __init__(self, stub: Any, names: list[str], seed: int, known: dict[Any, str]) -> None:
        self.stub, self.names, self.dice = stub, names, random.Random(seed)
        #: Attempt ids by rollout and sequence number, of all clients.
        self.known = known
        self.history: list[Operation] = []

    def work(self) -> None:
        for _ in range(CALLS):
            act = self.dice.choice(
                [self._claim, self._claim, self._report, self._report, self._cancel]
            )
            act()

    def _note(
        self, what: str, call: Any, rollout: str = "", attempt: int = 0, word: str = ""
    ) -> None:
        begin = time.monotonic()
        answer, end = None, math.inf
        for _ in range(self.dice.choice([1, 60])):  # some ask again, with the same request id
            try:
                answer, end = call(), 0.0
                break
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    answer, end = "refused", 0.0
                    break
                assert error.code() in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                ), error
                time.sleep(0.05)
        end = end or time.monotonic()
        self.history.append(Operation(begin, end, what, rollout, attempt, word, answer))

    def _request_id(self) -> str:
        return f"{self.dice.getrandbits(96):x}"

    def _claim(self) -> None:
        request = claim_pb2.DequeueRolloutsRequest(limit=1, request_id=self._request_id())

        def call() -> Any:
            reply = self.stub.DequeueRollouts(request, timeout=5)
            if not reply.rollouts:
                return "empty"
            latest = reply.rollouts[0].latest_attempt
            place = (latest.rollout_id, latest.sequence_number)
            assert self.known.setdefault(place, latest.attempt_id) == latest.attempt_id
            return place

        self._note("claim", call)

    def _report(self) -> None:
        if not self.known:
            return
        name, number = self.dice.choice(list(self.known))
        word = self.dice.choice(list(WORDS))
        attempt = {
            "rollout_id": name,
            "attempt_id": self.known[name, number],
            "status": WORDS[word],
        }
        request = attempt_pb2.UpdateAttemptRequest(attempt=attempt, request_id=self._request_id())

        def call() -> str:
            self.stub.UpdateAttempt(request, timeout=5)
            return "ok"

        self._note("report", call, name, number, word)

    def _cancel(self) -> None:
        name = self.dice.choice(self.names)
        request = rollout_pb2.CancelRolloutsRequest(
            rollout_ids=[name], request_id=self._request_id()
        )

        def call() -> str:
            return ROLLOUT[self.stub.CancelRollouts(request, timeout=5).rollouts[0].status]

        self._note("cancel", call, name)


def record(lab: Lab, proxy: Proxy, dice: random.Random, turn: int, fault: str) -> list[Operation]:
    """Have five clients work at once on six rollouts, and return what they wrote down."""
    channels = [grpc.insecure_channel(proxy.address, OPTIONS) for _ in range(CLIENTS)]
    stubs = [LightningStoreServiceStub(channel) for channel in channels]
    names = [f"h{turn}-{n}" for n in range(ROLLOUTS)]
    config = {"max_attempts": MOST_ATTEMPTS, "retry_condition": [4]}
    specs = [{"rollout_id": name, "input_json": b"1", "config": config} for name in names]
    known: dict[Any, str] = {}
    clients = [Client(stub, names, dice.getrandbits(32), known) for stub in stubs]
    surely(stubs[0].EnqueueRollouts, rollout_pb2.EnqueueRolloutsRequest(rollouts=specs))
    trouble = threading.Timer(dice.random() * 0.05, make_trouble, [lab, proxy, fault])
    trouble.start()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(Client.work, clients))
    trouble.join()
    # The next history begins with an empty queue.
    surely(stubs[0].CancelRollouts, rollout_pb2.CancelRolloutsRequest(rollout_ids=names))
    for channel in channels:
        channel.close()
    return [operation for client in clients for operation in client.history]


def surely(call: Any, request: Any) -> None:
    """Call until it is answered. Both calls may be repeated."""

    def answered() -> bool:
        try:
            call(request, timeout=5)
        except grpc.RpcError:
            return False
        return True

    until("an answer", answered)


OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
]


def make_trouble(lab: Lab, proxy: Proxy, fault: str) -> None:
    if fault == "cut":
        proxy.cut()
    elif fault == "restart":
        lab.kill()
        lab.start()


def test_histories_are_linearizable_through_cuts_and_crashes(
    lab: Lab, dice: random.Random, tries
) -> None:
    lab.start()
    unanswered = calls = 0
    with Proxy(lab.port) as proxy:
        for turn in range(tries("histories")):
            fault = dice.choice(["", "cut", "cut", "restart"])
            names = [f"h{turn}-{n}" for n in range(ROLLOUTS)]
            history = record(lab, proxy, dice, turn, fault)
            calls += len(history)
            unanswered += sum(operation.answer is None for operation in history)
            assert linearizable(start(names), history), history
    print(f"{calls} calls, {unanswered} without an answer")


NAMES = ["a", "b"]


def claim(begin: float, end: float, answer: Any) -> Operation:
    return Operation(begin, end, "claim", "", 0, "", answer)


def report(begin: float, end: float, name: str, number: int, word: str, answer: Any) -> Operation:
    return Operation(begin, end, "report", name, number, word, answer)


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
    "cancelled first": [cancel(0, 5, "a", "cancelled"), claim(1, 4, ("b", 1))],
}
BAD = {
    "claimed twice": [claim(0, 1, ("a", 1)), claim(2, 3, ("a", 1))],
    "out of order": [claim(0, 1, ("b", 1)), claim(2, 3, ("a", 1))],
    "lost": [claim(0, 1, ("a", 1)), claim(2, 3, "empty")],
    "claimed after its cancellation": [cancel(0, 1, "a", "cancelled"), claim(2, 3, ("a", 1))],
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
    state, history = start(names), []
    for now in range(CLIENTS * CALLS):
        what = dice.choice(["claim", "claim", "report", "report", "cancel"])
        begin, end = now - 3 * dice.random(), now + 3 * dice.random()
        operation = Operation(
            *(begin, end, what, dice.choice(names), dice.choice([1, 1, 2])),
            *(dice.choice(list(WORDS)), None),
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
    for _ in range(tries("made histories")):
        history = made_history(dice)
        assert linearizable(start(names), history), history
        assert not linearizable(start(names), damaged(history, dice))
