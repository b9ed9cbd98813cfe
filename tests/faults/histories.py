"""Clients that call at random and write down what they were answered, for linear.py."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from lightningstore.v1 import attempt_pb2, claim_pb2, consumer_pb2, rollout_pb2

from tests.faults.lab import until
from tests.faults.linear import MOST_ATTEMPTS, Operation, State, start

CLIENTS = 5
CALLS = 9
ROLLOUTS = 6
#: Task queues that claims name.
CLAIMED = ["", "gpu", ",gpu"]
ROLLOUT = {4: "succeeded", 5: "failed", 6: "cancelled"}
WORDS = {"succeeded": 3, "failed": 4}
OUTCOMES = {"consumed": 1, "released": 2}


def queues_of(names: Sequence[str]) -> list[str]:
    """Return the task queue of each rollout."""
    return ["gpu" if n % 2 else "" for n in range(len(names))]


def beginning(names: list[str]) -> State:
    """Return the state in which a history begins."""
    return start(names, queues_of(names))


def consumer_of(names: Sequence[str]) -> str:
    """Return the name of the consumer of these rollouts. Its deadlines do not pass during a history."""
    return f"of-{names[0]}"


class Client:
    """Calls at random and writes down what it asked, when, and what came back."""

    def __init__(
        self,
        stub: Any,
        names: list[str],
        seed: int,
        known: dict[Any, str],
        given: dict[Any, str],
    ) -> None:
        self.stub, self.names, self.dice = stub, names, random.Random(seed)
        #: Attempt ids by rollout and sequence number, of all clients.
        self.known = known
        #: Delivery ids by rollout and count, of all clients.
        self.given = given
        self.consumer = consumer_of(names)
        #: How often it asks at most.
        self.tries = [1, 60]
        self.history: list[Operation] = []

    def work(self, pause: float) -> None:
        for _ in range(CALLS):
            time.sleep(pause * self.dice.random())
            act = self.dice.choice(
                [
                    *(self._claim, self._claim, self._claim, self._report, self._report),
                    *(self._cancel, self._pause, self._resume),
                    *(self._pull, self._pull, self._acknowledge, self._acknowledge),
                ]
            )
            act()

    def _note(
        self, what: str, call: Any, rollout: str = "", attempt: int = 0, word: str = ""
    ) -> None:
        begin = time.monotonic()
        answer, end = None, math.inf
        for _ in range(self.dice.choice(self.tries)):  # some ask again, with the same request id
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
                    grpc.StatusCode.CANCELLED,  # it reached a server that was shutting down
                ), error
                time.sleep(0.05)
        end = end or time.monotonic()
        self.history.append(Operation(begin, end, what, rollout, attempt, word, answer))

    def _request_id(self) -> str:
        return f"{self.dice.getrandbits(96):x}"

    def _claim(self) -> None:
        queues = self.dice.choice(CLAIMED)
        request = claim_pb2.DequeueRolloutsRequest(
            limit=1, request_id=self._request_id(), queues=queues.split(",")
        )

        def call() -> Any:
            reply = self.stub.DequeueRollouts(request, timeout=5)
            if not reply.rollouts:
                return "empty"
            latest = reply.rollouts[0].latest_attempt
            place = (latest.rollout_id, latest.sequence_number)
            assert self.known.setdefault(place, latest.attempt_id) == latest.attempt_id
            return place

        self._note("claim", call, word=queues)

    def _pause(self) -> None:
        request = claim_pb2.PauseClaimsRequest(request_id=self._request_id())

        def call() -> str:
            self.stub.PauseClaims(request, timeout=5)
            return "ok"

        self._note("pause", call)

    def _resume(self) -> None:
        request = claim_pb2.ResumeClaimsRequest(request_id=self._request_id())

        def call() -> str:
            self.stub.ResumeClaims(request, timeout=5)
            return "ok"

        self._note("resume", call)

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

    def _pull(self) -> None:
        request = consumer_pb2.PullFinishedRequest(
            consumer=self.consumer, request_id=self._request_id()
        )

        def call() -> Any:
            reply = self.stub.PullFinished(request, timeout=5)
            if not reply.deliveries:
                return "empty"
            delivery = reply.deliveries[0]
            place = (delivery.item_id, delivery.delivery_count)
            first = self.given.setdefault(place, delivery.delivery_id)
            assert first == delivery.delivery_id, f"two deliveries with one count: {place}"
            return place

        self._note("pull", call)

    def _acknowledge(self) -> None:
        if self.given:
            name, count = self.dice.choice(list(self.given))
            self._end(name, count, self.dice.choice(list(OUTCOMES)))

    def end_all(self) -> None:
        """Acknowledge every delivery, whatever became of it, and pull what is left."""
        for name, count in list(self.given):
            self._end(name, count, "consumed")
        for _ in self.names:
            self._pull()

    def _end(self, name: str, count: int, word: str) -> None:
        request = consumer_pb2.AcknowledgeRequest(
            consumer=self.consumer,
            delivery_ids=[self.given[name, count]],
            outcome=OUTCOMES[word],  # type: ignore[arg-type]
            request_id=self._request_id(),
        )

        def call() -> str:
            self.stub.Acknowledge(request, timeout=5)
            return "ok"

        self._note("acknowledge", call, name, count, word)

    def _cancel(self) -> None:
        name = self.dice.choice(self.names)
        request = rollout_pb2.CancelRolloutsRequest(
            rollout_ids=[name], request_id=self._request_id()
        )

        def call() -> str:
            return ROLLOUT[self.stub.CancelRollouts(request, timeout=5).rollouts[0].status]

        self._note("cancel", call, name)


def record(
    stubs: Sequence[Any],
    dice: random.Random,
    names: list[str],
    trouble: Callable[[], None],
    pause: float = 0.0,
    calm: float = 0.05,
    *,
    patient: bool = False,
) -> list[Operation]:
    """Have clients work at once on rollouts while there is trouble, and return what they wrote down.

    Args:
        stubs: What each client calls.
        dice: Chance.
        names: Ids of the rollouts.
        trouble: Makes trouble, in a thread of its own.
        pause: Maximum seconds that a client pauses before a call.
        calm: Maximum seconds before the trouble.
        patient: Whether every client asks again, so that a wrong history is soon known to be wrong.
    """
    config = {"max_attempts": MOST_ATTEMPTS, "retry_condition": [4]}
    specs = [
        {"rollout_id": name, "input_json": b"1", "config": config, "queue": queue}
        for name, queue in zip(names, queues_of(names), strict=True)
    ]
    known: dict[Any, str] = {}
    given: dict[Any, str] = {}
    clients = [Client(stub, names, dice.getrandbits(32), known, given) for stub in stubs]
    for client in clients if patient else ():
        client.tries = [60]
    consumer = consumer_pb2.Consumer(name=consumer_of(names))  # of what finishes from now on
    surely(stubs[0].CreateConsumer, consumer_pb2.CreateConsumerRequest(consumer=consumer))
    surely(stubs[0].EnqueueRollouts, rollout_pb2.EnqueueRolloutsRequest(rollouts=specs))
    timer = threading.Timer(dice.random() * calm, trouble)
    timer.start()
    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(lambda client: client.work(pause), clients))
    timer.join()
    clients[0].end_all()
    # The next history begins with empty queues, and without a pause.
    surely(stubs[0].ResumeClaims, claim_pb2.ResumeClaimsRequest())
    surely(stubs[0].CancelRollouts, rollout_pb2.CancelRolloutsRequest(rollout_ids=names))
    end = consumer_pb2.DeleteConsumerRequest(name=consumer.name, allow_missing=True)
    surely(stubs[0].DeleteConsumer, end)
    return [operation for client in clients for operation in client.history]


def surely(call: Any, request: Any) -> None:
    """Call until it is answered. The call may be repeated."""

    def answered() -> bool:
        try:
            call(request, timeout=5)
        except grpc.RpcError:
            return False
        return True

    until("an answer", answered)
