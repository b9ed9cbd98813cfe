"""Whatever lies between the end of a function and its report, the attempt ends, and says why."""

from __future__ import annotations

import asyncio
import builtins
import logging
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from lightningstore.client import (
    AttemptStatus,
    Failure,
    LightningStore,
    NonRetryable,
    PermissionDeniedError,
    RunContext,
    Runner,
)
from lightningstore.client._runner.execution import Work
from lightningstore.client._runner.failures import MESSAGE_LENGTH
from lightningstore.client._runner.heartbeats import Heartbeats
from lightningstore.v1 import (
    attempt_pb2,
    claim_pb2,
    resources_pb2,
    rollout_pb2,
    span_pb2,
    worker_pb2,
)

from .fakes import FakeServer, Fault, faults_first, rich
from .runners import Holding, Start, ended, plain


def coroutine(function: Callable[[], Any]) -> Any:
    async def agent(*_: Any) -> Any:
        await asyncio.sleep(0)
        return function()

    return agent


def ordinary(function: Callable[[], Any]) -> Any:
    return lambda *_: function()


KINDS = pytest.mark.parametrize("kind", [ordinary, coroutine])


def failure_of(
    store: LightningStore, start: Start, agent: Any, task: Any = 1, **options: Any
) -> Failure:
    rollout = store.enqueue_rollout(task, **options)
    start(agent, max_rollouts=1).join()
    attempt = ended(store, rollout)
    assert attempt.status is AttemptStatus.FAILED
    assert attempt.failure is not None
    return Failure(attempt.failure.type, attempt.failure.message, attempt.failure.retryable)


class Tensor:
    """Two elements: neither a truth value nor a number."""

    def __bool__(self) -> bool:
        raise RuntimeError("the truth value is ambiguous")

    def __float__(self) -> float:
        raise RuntimeError("only one element tensors can be converted")


class Exiting:
    def __float__(self) -> float:
        raise SystemExit(4)


class Hiding:
    @property
    def __float__(self) -> Any:
        raise KeyError("hidden")


@KINDS
@pytest.mark.parametrize(
    ("reward", "type_", "part"),
    [
        (float("nan"), "ValueError", "the reward must be None or a finite number, not nan"),
        (float("-inf"), "ValueError", "not -inf"),
        (10**400, "ValueError", "too large for a double"),
        (Tensor(), "RuntimeError", "only one element"),
        (Exiting(), "", "4"),
        (Hiding(), "KeyError", "hidden"),
        ({"reward": 1}, "TypeError", "not dict"),
    ],
    ids=["nan", "-inf", "10**400", "tensor", "exit", "property", "dict"],
)
def test_a_reward_that_is_not_a_finite_number_is_a_failure(
    store: LightningStore, start: Start, kind: Any, reward: Any, type_: str, part: str
) -> None:
    failure = failure_of(store, start, kind(lambda: reward))
    assert failure.type == (type_ or ("SystemExit" if kind is ordinary else "RuntimeError"))
    assert part in failure.message


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Dumb(Mute):
    def __repr__(self) -> str:
        raise SystemExit(1)


class Odd(Exception):
    """Its text is not a string, and it has no truth value."""

    def __str__(self) -> Any:
        return None  # noqa: PLE0307

    def __bool__(self) -> bool:
        raise ValueError("no truth value")


class Falsy(Exception):
    def __len__(self) -> int:
        return 0


def long_named() -> BaseException:
    return type("X" * 5000, (Exception,), {})("y")


def cyclic() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def non_retryable() -> BaseException:
    error = NonRetryable("why")
    error.__cause__ = Falsy()
    return error


@KINDS
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Mute("x"), Failure("Mute", "Mute('x')")),
        (
            Dumb,
            Failure(
                "Dumb", "The exception has no text: str() and repr() of Dumb fail or are empty"
            ),
        ),
        (lambda: Odd("x"), Failure("Odd", "Odd('x')")),
        (lambda: ValueError("half \ud800."), Failure("ValueError", "half \ufffd.")),
        (lambda: ValueError("\ud834\udd1e"), Failure("ValueError", "\U0001d11e")),
        (lambda: ValueError("z" * 10**7), Failure("ValueError", "z" * (MESSAGE_LENGTH - 1) + "…")),
        (long_named, Failure("X" * 255 + "…", "y")),
        (cyclic, Failure("ValueError", "first")),
        (non_retryable, Failure("Falsy", "why", False)),
        (lambda: KeyboardInterrupt("stop"), Failure("KeyboardInterrupt", "stop")),
        (lambda: GeneratorExit("over"), Failure("GeneratorExit", "over")),
        (lambda: BaseException("base"), Failure("BaseException", "base")),
    ],
    ids=lambda value: getattr(value, "__name__", "") or getattr(value, "type", "")[:20],
)
def test_an_exception_is_reported_whatever_it_is(
    store: LightningStore,
    start: Start,
    kind: Any,
    make: Callable[[], BaseException],
    expected: Failure,
) -> None:
    def fail() -> None:
        raise make()

    assert failure_of(store, start, kind(fail)) == expected


def test_a_group_of_exceptions_names_its_members(store: LightningStore, start: Start) -> None:
    group: Any = vars(builtins)["ExceptionGroup"]

    def fail() -> None:
        raise group("both", [ValueError("a \ud800"), group("inner", [Dumb()])])

    failure = failure_of(store, start, ordinary(fail))
    assert failure == Failure(
        "ExceptionGroup", "both (2 sub-exceptions): ValueError: a \ufffd; Dumb"
    )


def test_a_coroutine_that_cancels_itself_has_failed(store: LightningStore, start: Start) -> None:
    def fail() -> None:
        raise asyncio.CancelledError

    failure = failure_of(store, start, coroutine(fail))
    assert failure == Failure("AttemptCancelled", "cancelled")


def test_a_tracer_that_cannot_be_made_is_a_failure(
    store: LightningStore, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise LookupError("no tracer")

    monkeypatch.setattr("lightningstore.client._runner.tracing.Tracing.tracer", fail)
    assert failure_of(store, start, plain(1.0)) == Failure("LookupError", "no tracer")


def test_a_log_that_cannot_print_the_exception_keeps_no_report_back(
    store: LightningStore, start: Start
) -> None:
    class Refusing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:
                raise ValueError("no tracebacks here")

    logger = logging.getLogger("lightningstore.client._runner.execution")
    handler = Refusing()
    logger.addHandler(handler)
    try:
        assert failure_of(store, start, ordinary(lambda: 1 / 0)).type == "ZeroDivisionError"
    finally:
        logger.removeHandler(handler)


def test_cancelling_all_tasks_of_the_loop_reports_what_ran(store: LightningStore) -> None:
    rollout = store.enqueue_rollout(1)

    async def main() -> None:
        begun = asyncio.Event()

        async def agent(*_: Any) -> None:
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(Runner(store, agent, worker_id="w", grace=0.5).arun())
        await begun.wait()
        # As asyncio.run does when its coroutine returns.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert task.cancelled()

    asyncio.run(main())
    assert store.get_attempt(rollout.rollout_id).failure == Failure("Cancelled", "the runner stops")


# --- against a server that the test decides about ---------------------------------------------------


class Reports:
    """A server that hands out one claim, and refuses the first reports."""

    def __init__(
        self,
        server: FakeServer,
        *faults: Fault,
        task: bytes = b"1",
        resources_id: str = "",
        version: int = 0,
    ) -> None:
        self.more: dict[str, Any] = {}
        self.seen: list[Any] = []
        self._task, self._resources_id, self._version = task, resources_id, version
        self._faults = list(faults)
        self.claimed = 0
        server.on["DequeueRollouts"] = self._claim
        server.on["UpdateAttempt"] = self._update
        server.on["Heartbeat"] = lambda _: worker_pb2.HeartbeatResponse()
        server.on["IngestSpans"] = self._ingest

    def _claim(self, request: Any) -> Any:
        del request
        self.claimed += 1
        number = self.claimed
        rollout: dict[str, Any] = {"rollout_id": f"ro-{number}", "input_json": self._task}
        rollout |= self.more
        attempt = {"attempt_id": "at-1", "status": 1, "resources_id": self._resources_id}
        attempt["resources_version"] = self._version
        rollout["latest_attempt"] = {"rollout_id": rollout["rollout_id"], **attempt}
        return claim_pb2.DequeueRolloutsResponse(rollouts=[rollout])

    def _ingest(self, requests: Any) -> Any:
        list(requests)
        return span_pb2.IngestSpansResponse()

    def _update(self, request: Any) -> Any:
        self.seen.append(request)
        if self._faults:
            raise self._faults.pop(0)
        return attempt_pb2.UpdateAttemptResponse()


def refused() -> Fault:
    return Fault(*rich(grpc.StatusCode.INVALID_ARGUMENT, "ERROR_REASON_INVALID_ARGUMENT"))


def test_an_input_that_python_does_not_read_is_a_failure(server: FakeServer, start: Start) -> None:
    reports = Reports(server, task=b"9" * 5001)
    start(plain(1.0), address=server.address, max_rollouts=1).join()
    [report] = reports.seen
    assert report.attempt.failure.type == "ValueError"
    assert report.attempt.failure.message.startswith("input: Exceeds the limit")


def test_a_claim_that_came_without_its_input_is_filled(server: FakeServer, start: Start) -> None:
    reports = Reports(server, task=b"")
    reports.more = {"payloads_omitted": True}
    whole = rollout_pb2.Rollout(rollout_id="ro-1", input_json=b"7", metadata_json=b'{"a":1}')
    server.on["GetRollout"] = faults_first(1, rollout_pb2.GetRolloutResponse(rollout=whole))
    got: list[Any] = []

    def agent(task: Any, resources: Any, tracer: Any, context: RunContext) -> None:
        del resources, tracer
        got.extend((task, context.rollout.metadata))

    start(agent, address=server.address, max_rollouts=1).join()
    assert got == [7, {"a": 1}]
    assert reports.seen[0].attempt.status == attempt_pb2.ATTEMPT_STATUS_SUCCEEDED


def test_resources_that_python_does_not_read_are_a_failure(
    server: FakeServer, start: Start
) -> None:
    reports = Reports(server, resources_id="rs-1")
    weights = {"weights": {"custom": {"value_json": b"9" * 5001}}}
    server.on["GetResources"] = lambda _: resources_pb2.GetResourcesResponse(
        resources={"resources_id": "rs-1", "resources": weights}
    )
    start(plain(1.0), address=server.address, max_rollouts=1).join()
    [report] = reports.seen
    assert report.attempt.failure.type == "ValueError"
    assert "Exceeds the limit" in report.attempt.failure.message


def test_the_version_that_the_attempt_names_is_requested_once(
    server: FakeServer, start: Start
) -> None:
    Reports(server, resources_id="rs-1", version=3)

    def get(request: resources_pb2.GetResourcesRequest) -> resources_pb2.GetResourcesResponse:
        found = {"resources_id": "rs-1", "version": request.version}
        return resources_pb2.GetResourcesResponse(resources=found)

    server.on["GetResources"] = get
    start(plain(1.0), address=server.address, max_rollouts=1).join()
    assert [(r.resources_id, r.version) for r in server.requests("GetResources")] == [("rs-1", 3)]


def test_a_report_that_is_refused_is_sent_again_with_a_minimal_text(
    server: FakeServer, start: Start
) -> None:
    reports = Reports(server, refused())

    def fail() -> None:
        raise ValueError("what the server does not take")

    start(ordinary(fail), address=server.address, max_rollouts=1).join()
    first, second = reports.seen
    assert first.attempt.failure.message == "what the server does not take"
    assert second.attempt.status == first.attempt.status
    assert second.attempt.failure.type == "ValueError"
    assert second.attempt.failure.message.startswith(
        "The server rejected the text of the failure: INVALID_ARGUMENT"
    )


def test_a_report_that_is_refused_twice_is_logged(
    server: FakeServer, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    reports = Reports(server, refused(), refused())
    start(plain(), address=server.address, max_rollouts=1).join()
    assert len(reports.seen) == 2
    assert "the outcome of attempt at-1 of rollout ro-1 is not reported" in caplog.text


def test_a_defect_of_the_client_in_a_report_is_reported_minimally(
    server: FakeServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = Reports(server)
    send, calls = Work._send, []

    async def breaking(self: Work, context: Any, outcome: Any) -> None:
        calls.append(outcome)
        if len(calls) == 1:
            raise OverflowError("no message can hold this")
        await send(self, context, outcome)

    monkeypatch.setattr(Work, "_send", breaking)
    start(ordinary(lambda: 1 / 0), address=server.address, max_rollouts=1).join()
    [report] = reports.seen
    assert report.attempt.failure.type == "ZeroDivisionError"
    assert "no message can hold this" in report.attempt.failure.message


def test_what_runs_is_reported_when_claims_come_to_an_end(server: FakeServer, start: Start) -> None:
    reports = Reports(server)
    claim = server.on["DequeueRollouts"]
    refused_claim = threading.Event()

    def once(request: Any) -> Any:
        if reports.claimed:
            refused_claim.set()
            raise Fault(grpc.StatusCode.PERMISSION_DENIED, "the token was revoked")
        return claim(request)

    server.on["DequeueRollouts"] = once
    holding = Holding()
    running = start(holding, address=server.address, concurrency=2)
    assert refused_claim.wait(10)
    holding.go.set()
    running.join()
    assert isinstance(running.error, PermissionDeniedError)
    [report] = reports.seen
    assert report.attempt.status == attempt_pb2.ATTEMPT_STATUS_SUCCEEDED


def test_a_heartbeat_that_fails_in_any_way_is_followed_by_others(
    server: FakeServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    Reports(server)
    beats, broken = threading.Semaphore(0), [True]

    def stats(self: Runner) -> Any:
        del self
        if broken:
            broken.clear()
            raise TypeError("no statistics")
        return {}

    def beat(request: Any) -> Any:
        del request
        beats.release()
        # About the attempt that runs, with a callback that fails.
        stop = {"attempt": {"rollout_id": "ro-1", "attempt_id": "at-1"}, "reason": 1}
        return worker_pb2.HeartbeatResponse(stops=[stop])

    def deaf(self: Runner, stop: Any) -> None:
        del self
        raise LookupError(stop)

    monkeypatch.setattr(Runner, "_stats", stats)
    monkeypatch.setattr(Runner, "_stop_attempt", deaf)
    server.on["Heartbeat"] = beat
    holding = Holding()
    start(holding, address=server.address, heartbeat_period=0.05, max_rollouts=1)
    for _ in range(3):
        assert beats.acquire(timeout=10)
    holding.go.set()


def test_heartbeats_for_many_attempts_go_out_in_parts(server: FakeServer) -> None:
    seen: list[int] = []

    def beat(request: Any) -> Any:
        seen.append(len(request.attempts))
        return worker_pb2.HeartbeatResponse(stops=[{"attempt": request.attempts[0], "reason": 1}])

    server.on["Heartbeat"] = beat
    stops: list[Any] = []
    with LightningStore(server.address) as store:
        beats = Heartbeats(
            store, "w", period=9.0, on_stop=stops.append, stats=dict, publish_number=lambda: 7
        )
        assert beats._beat([("ro-1", str(number)) for number in range(2500)], 9.0)
    assert seen == [1000, 1000, 500]
    assert [stop.attempt_id for stop in stops] == ["0", "1000", "2000"]


def test_one_call_claims_no_more_than_it_may(server: FakeServer, start: Start) -> None:
    asked = threading.Event()
    limits: list[int] = []

    def claim(request: Any) -> Any:
        limits.append(request.limit)
        asked.set()
        return claim_pb2.DequeueRolloutsResponse()

    Reports(server)
    server.on["DequeueRollouts"] = claim
    start(plain(), address=server.address, concurrency=20_000)
    assert asked.wait(10)
    assert limits[0] == 1000


def test_a_worker_id_is_valid_utf8() -> None:
    with pytest.raises(ValueError, match="worker_id must be valid UTF-8"):
        Runner("127.0.0.1:1", plain(), worker_id="w\udcff")
