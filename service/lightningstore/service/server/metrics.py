"""Metrics for Prometheus: calls are counted as they end, everything else is read at each scrape."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter
from typing import Any

import grpc
import grpc.aio
from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.operations.store import Store
from lightningstore.service.security.interceptor import Guard
from lightningstore.service.security.permissions import OPEN, PERMISSIONS
from lightningstore.v1.attempt_pb2 import AttemptStatus
from lightningstore.v1.rollout_pb2 import RolloutStatus
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
#: Labels of calls by the path of their method. Calls of any other path have the label OTHER: callers of invented methods
#: must not be able to fill the memory with labels.
METHODS = {path: path.rpartition("/")[2] for path in (*PERMISSIONS, *OPEN)}
OTHER = "other"
#: How a handler is made and the attribute with its function, by whether requests and answers are streams.
_KINDS: dict[tuple[bool, bool], tuple[Any, str]] = {
    (False, False): (grpc.unary_unary_rpc_method_handler, "unary_unary"),
    (False, True): (grpc.unary_stream_rpc_method_handler, "unary_stream"),
    (True, False): (grpc.stream_unary_rpc_method_handler, "stream_unary"),
    (True, True): (grpc.stream_stream_rpc_method_handler, "stream_stream"),
}
Details = grpc.HandlerCallDetails
Handler = Any


class StoreCollector(Collector):
    """Reads the open stores at each scrape: without scrapes it costs nothing."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics. Runs in the thread that composes the page; reads numbers that the event loop writes."""
        stores = self._directory.open_stores()
        yield _by_status("rollouts", stores, RolloutStatus, "ROLLOUT_STATUS_")
        yield _by_status("attempts", stores, AttemptStatus, "ATTEMPT_STATUS_")
        for name, text, gauge in _GAUGES:
            yield _family(GaugeMetricFamily, name, text, stores, gauge)
        for name, text, counter in _COUNTERS:
            yield _family(CounterMetricFamily, name, text, stores, counter)
        refused = CounterMetricFamily(
            "lightningstore_refused_spans", "Spans rejected, by reason", labels=[LABEL, "reason"]
        )
        for store in stores:
            for reason, count in list(store.ingest.refused_spans.total.items()):
                refused.add_metric([store.engine.namespace, reason], count)
        yield refused
        yield GaugeMetricFamily(
            "lightningstore_namespaces", "Namespaces, open or not", len(self._directory)
        )


#: Label of the metrics of a store.
LABEL = "namespace"
_Reading = tuple[str, str, Callable[[Store], float]]
_GAUGES: tuple[_Reading, ...] = (
    (
        "queue_depth",
        "Rollouts in the queue, including those in back-off",
        lambda store: store.engine.live.queue_depth,
    ),
    (
        "waiters",
        "Open long polls, waits and watches",
        lambda store: store.engine.waiters.count + len(store.engine.polls),
    ),
    ("spans", "Spans stored", lambda store: store.engine.live.state.counters.spans),
    (
        "span_bytes",
        "Bytes of the spans stored",
        lambda store: store.engine.live.state.counters.span_bytes,
    ),
    (
        "claims_paused",
        "1 while claims are paused",
        lambda store: float(store.engine.live.paused),
    ),
    (
        "task_queues",
        "Task queues that hold rollouts",
        lambda store: len(store.engine.live.state.depths),
    ),
    (
        "pending_bytes",
        "Bytes that wait for the disk",
        lambda store: store.engine.committer.pending_bytes,
    ),
    (
        "storage_usable",
        "1 unless the storage has failed",
        lambda store: float(store.engine.committer.failure is None),
    ),
    (
        "watchdog_lag_seconds",
        "Maximum delay of the watchdog in the last one to two minutes",
        lambda store: store.engine.live.deadlines.watchdog_lag,
    ),
)
_COUNTERS: tuple[_Reading, ...] = (
    (
        "enqueued",
        "Rollouts enqueued or started",
        lambda store: store.engine.live.state.counters.rollout_key,
    ),
    ("claims", "Attempts started", lambda store: store.engine.live.state.counters.attempt_key),
    (
        "completions",
        "Rollouts finished",
        lambda store: store.engine.live.state.counters.completion_number,
    ),
    (
        "ingested_batches",
        "Batches of spans stored",
        lambda store: store.engine.live.state.counters.span_key,
    ),
    ("commits", "Commits", lambda store: store.engine.committer.commits),
    (
        "committed_bytes",
        "Bytes of changes committed",
        lambda store: store.engine.committer.committed_bytes,
    ),
    (
        "damaged_records",
        "Damaged records found",
        lambda store: store.engine.storage.damaged_records,
    ),
    (
        "evicted_spans",
        "Spans evicted from memory",
        lambda store: store.engine.live.shelf.evicted_count,
    ),
)


def _family(
    kind: Any, name: str, text: str, stores: list[Store], read: Callable[[Store], float]
) -> Metric:
    family = kind(f"lightningstore_{name}", text, labels=[LABEL])
    for store in stores:
        family.add_metric([store.engine.namespace], read(store))
    metric: Metric = family
    return metric


def _by_status(name: str, stores: list[Store], enum: Any, prefix: str) -> Metric:
    labels = [LABEL, "status"]
    family = GaugeMetricFamily(f"lightningstore_{name}", f"{name} by status", labels=labels)
    for store in stores:
        counts: dict[int, int] = getattr(store.engine.live.state.counters, name)
        for status, count in list(counts.items()):
            word = enum.Name(status).removeprefix(prefix).lower()
            family.add_metric([store.engine.namespace, word], count)
    return family


class GuardCollector(Collector):
    """Reads at each scrape the calls that were rejected for their tokens."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics. Runs in the thread that composes the page."""
        refused = CounterMetricFamily(
            "lightningstore_refused_calls",
            "Calls rejected for lack of a valid token or of permission",
            labels=["reason"],
        )
        for reason, count in list(self._guard.refused.items()):
            refused.add_metric([reason.removeprefix("ERROR_REASON_").lower()], count)
        yield refused
        yield GaugeMetricFamily(
            "lightningstore_tokens_usable",
            "1 unless the tokens file cannot be read",
            float(self._guard.tokens_usable),
        )


class Metrics(grpc.aio.ServerInterceptor):
    """The metrics of a server: counts and times its calls as they end."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._calls = Counter(
            "lightningstore_calls", "Calls by status", ["method", "code"], registry=self.registry
        )
        self._seconds = Histogram(
            "lightningstore_call_seconds",
            "Time from the first byte of a call to its end, including waits",
            ["method"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        #: The last handler of each method and its timed one, by path: those of the default namespace stay the same.
        self._handlers: dict[str, tuple[Handler, Handler]] = {}
        #: The metrics of the labels seen so far: the library takes longer to find them than to count.
        self._counters: dict[tuple[str, str], Counter] = {}
        self._timers: dict[str, Histogram] = {}

    def observe(self, directory: Directory, guard: Guard | None) -> None:
        """Add the metrics of the open stores, and of the tokens."""
        self.registry.register(StoreCollector(directory))
        if guard is not None:
            self.registry.register(GuardCollector(guard))

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler]], handler_call_details: Details
    ) -> Handler:
        """Return the handler of a call, timed."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        path = handler_call_details.method
        known, timed = self._handlers.get(path, (None, None))
        if known is not handler:
            timed = self._timing(path, handler)
            if path in METHODS:  # not of invented methods, which would fill the memory
                self._handlers[path] = (handler, timed)
        return timed

    def _timing(self, path: str, handler: Handler) -> Handler:
        """Return a handler that does the same and is timed."""
        name = METHODS.get(path, OTHER)
        make, kind = _KINDS[handler.request_streaming, handler.response_streaming]
        call = getattr(handler, kind)
        # A handler that streams answers may be a coroutine, which writes them to the context.
        streams = handler.response_streaming and inspect.isasyncgenfunction(call)
        timed = self._timed_stream if streams else self._timed
        return make(timed(name, call), handler.request_deserializer, handler.response_serializer)

    def _timed(self, name: str, call: Any) -> Any:
        async def timed(request: Any, context: Any) -> Any:
            began, code = perf_counter(), grpc.StatusCode.OK
            try:
                return await call(request, context)
            except Exception:
                code = grpc.StatusCode.UNKNOWN  # gRPC's answer where the call set no code
                raise
            finally:
                self._note(name, context, code, perf_counter() - began)

        return timed

    def _timed_stream(self, name: str, call: Any) -> Any:
        async def timed(request: Any, context: Any) -> Any:
            began, code = perf_counter(), grpc.StatusCode.OK
            try:
                async for answer in call(request, context):
                    yield answer
            except Exception:
                code = grpc.StatusCode.UNKNOWN
                raise
            finally:
                self._note(name, context, code, perf_counter() - began)

        return timed

    def count(self, name: str, code: str, seconds: float) -> None:
        """Count a call of a method that ended with a code, gRPC's name of it, and its duration in seconds."""
        if (counter := self._counters.get((name, code))) is None:
            counter = self._counters[name, code] = self._calls.labels(name, code)
        if (timer := self._timers.get(name)) is None:
            timer = self._timers[name] = self._seconds.labels(name)
        counter.inc()
        timer.observe(seconds)

    def _note(self, name: str, context: Any, code: Any, seconds: float) -> None:
        code = grpc.StatusCode.CANCELLED if context.cancelled() else context.code() or code
        self.count(name, getattr(code, "name", str(code)), seconds)
