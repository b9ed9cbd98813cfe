"""An exporter of the OpenTelemetry SDK that streams spans into a store."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightningstore.client._exporter import outbox
from lightningstore.client._exporter.losses import Losses
from lightningstore.client._exporter.outbox import Item
from lightningstore.client._sync.store import LightningStore
from lightningstore.client._values.text import check
from lightningstore.client.connection import ConnectionOptions, check_names
from lightningstore.client.errors import (
    CancelledCallError,
    DeadlineExceededError,
    InternalError,
    LightningStoreError,
    UnavailableError,
)
from lightningstore.client.values import IngestResult, Rejection, Stop
from lightningstore.v1.span_pb2 import IngestSpansRequest
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import export as sdk

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)

MIB = 1 << 20
#: A stream is closed, and thereby acknowledged, after this number of bytes.
STREAM_BYTES = 16 * MIB
#: Seconds after which a stream that got no answer is sent again.
STREAM_TIMEOUT = 60.0
FIRST_DELAY = 0.1
LONGEST_DELAY = 2.0
#: A server that fails so often on the same spans will not take them.
MOST_DEFECTS = 5
#: Attempts whose spans are counted; the oldest are forgotten.
MOST_COUNTS = 10_000
#: Milliseconds that a span in the child of a fork waits until it is stored.
CHILD_WAIT = 5_000.0
#: Milliseconds that the end of a process waits for spans.
EXIT_WAIT = 4_000.0

_NO_ATTEMPT = (
    "no rollout and attempt id; those in a span's attributes may have fallen victim to its limit of "
    "attributes, in a resource they cannot"
)
_OVER_LIMIT = "has lost attributes to the limit of its tracer provider: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT raises it"

_exporters: weakref.WeakSet[SpanExporter] = weakref.WeakSet()


class SpanExporter(sdk.SpanExporter):
    """Streams spans to a store, each to the attempt that it belongs to, and holds nobody up.

    `export` encodes the spans and puts them into a buffer; a thread sends them over IngestSpans, keeps them
    until the server says that they are stored, and sends them again after a break: stored twice they count
    once. So nothing is lost while a server restarts. Beyond `max_buffer_bytes` new spans are dropped.
    Dropped spans are counted in `dropped_count` and logged: the first of a kind at once, then a summary a
    minute.

    In the child of a fork `export` waits until the spans are stored, for at most 5 seconds: such a child
    may end at any moment, without running anything that could send them.

    Which attempt: the attributes `agentlightning.rollout_id` and `agentlightning.attempt_id` of the span,
    else those of its resource, else the ids given here. Use it with SimpleSpanProcessor: the buffer of a
    BatchSpanProcessor would only drop spans of its own.
    """

    def __init__(
        self,
        store: str | LightningStore | None = None,
        *,
        rollout_id: str = "",
        attempt_id: str = "",
        max_buffer_bytes: int = 64 * MIB,
        max_span_bytes: int = 4 * MIB,
        delay: float = 0.2,
        on_stop: Callable[[Stop], object] | None = None,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        """Take an address as LightningStore does, or a client, which then stays the caller's to close.

        `max_span_bytes`: the server's limit; a larger span is dropped with an error in the log. `delay`:
        seconds that a span may wait for others to travel with. `on_stop`: called, in the sending thread,
        for each attempt that the server wants stopped. `connection`: what goes with an address, as for
        LightningStore.

        Raises ValueError for an id that is not valid UTF-8, and what LightningStore raises.
        """
        check("rollout_id", rollout_id)
        check("attempt_id", attempt_id)
        check_names(connection)
        self._owns_store = not isinstance(store, LightningStore)
        self._store = (
            store if isinstance(store, LightningStore) else LightningStore(store, **connection)
        )
        self._ids = (rollout_id, attempt_id)
        self._max_buffer_bytes = max_buffer_bytes
        self._max_span_bytes = max_span_bytes
        self._delay = delay
        self._on_stop = on_stop
        self._child_wait = 0.0
        self._flush_at_exit: Callable[[], object] | None = None
        self._reset()
        _exporters.add(self)

    def _reset(self) -> None:
        """Begin empty: at first, and in the child of a fork, whose parent sends what it had."""
        self._changed = threading.Condition()
        self._queue: deque[Item] = deque()
        self._bytes = 0  # in the queue and on their way
        self._added = 0
        self._settled = 0
        self._hurry_to = 0  # send without delay until so many are settled
        self._stop_at: float | None = None
        self._exit_timed_out = False  # the end of the process has waited for spans in vain
        self._thread: threading.Thread | None = None
        self._counts: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._losses = Losses()

    @property
    def dropped_count(self) -> int:
        """Spans lost so far: beyond the buffer, too large, refused, or without an attempt."""
        return self._losses.dropped

    # --- the agent's side -----------------------------------------------------------------------

    def export(self, spans: Sequence[ReadableSpan]) -> sdk.SpanExportResult:
        """Queue spans, without waiting but in the child of a fork. FAILURE only after `shutdown`."""
        return self.file(spans, None)

    def file(
        self, spans: Sequence[ReadableSpan], ids: Mapping[str, str] | None
    ) -> sdk.SpanExportResult:
        """Queue spans, those without ids of their own under these."""
        if self._stop_at is not None:
            self._losses.drop(len(spans), "shutdown", "the exporter is shut down")
            return sdk.SpanExportResult.FAILURE
        items = self._encode(spans, ids)
        self._put(items)
        if self._child_wait and items:
            self._wait_in_child()
        return sdk.SpanExportResult.SUCCESS

    def _put(self, items: Sequence[Item]) -> None:
        with self._changed:
            for item in items:
                attempt = (item.origin.rollout_id, item.origin.attempt_id)
                self._counts[attempt] = self._counts.pop(attempt, 0) + 1
                if self._bytes + item.size > self._max_buffer_bytes:
                    self._drop(1, "buffer full", f"the buffer of {self._max_buffer_bytes} bytes")
                    continue
                self._queue.append(item)
                self._bytes += item.size
                self._added += 1
            while len(self._counts) > MOST_COUNTS:
                self._counts.popitem(last=False)
            if self._thread is None and self._queue:
                self._thread = threading.Thread(
                    target=self._run, name="lightningstore-exporter", daemon=True
                )
                self._thread.start()
                _at_exit(self)
            self._changed.notify_all()

    def _wait_in_child(self) -> None:
        if not self.force_flush(self._child_wait):
            # Once: the agent must not be held up for each span while the server is away.
            self._child_wait = 0.0
            logger.warning(
                "the spans of process %d, the child of a fork, are not stored yet: they are lost if it "
                "ends before the server is back",
                os.getpid(),
            )

    def send_in_background(self) -> None:
        """Do not wait in `export`, not in the child of a fork either: its owner flushes."""
        self._child_wait = 0.0

    def _encode(self, spans: Sequence[ReadableSpan], ids: Mapping[str, str] | None) -> list[Item]:
        found: list[Item] = []
        for span in spans:
            if span.dropped_attributes:
                self._losses.note(1, "attributes", "cut", f"{span.name!r} {_OVER_LIMIT}")
        try:
            for item in outbox.encode(spans, *self._ids, ids):
                if item is None:
                    self._drop(1, "no attempt", _NO_ATTEMPT)
                elif len(item.span) > self._max_span_bytes:
                    self._drop(
                        1,
                        "too large",
                        f"{item.name!r} has {len(item.span)} bytes, over the limit of "
                        f"{self._max_span_bytes}",
                        logging.ERROR,
                    )
                else:
                    found.append(item)
        except Exception:
            if len(spans) > 1:  # one spoils all: the others go without it
                return [item for span in spans for item in self._encode([span], ids)]
            self._drop(len(spans) - len(found), "no OTLP", "cannot be encoded")
            logger.exception("spans could not be encoded")
        return found

    def sent_count(self, rollout_id: str, attempt_id: str) -> int:
        """Return how many spans of an attempt were exported, dropped ones included.

        It is what UpdateAttempt takes as sent_span_count, to be told how many are missing.
        """
        with self._changed:
            return self._counts.get((rollout_id, attempt_id), 0)

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Wait until all that was exported so far is stored, or given up. False if time ran out."""
        with self._changed:
            target = self._added
            self._hurry_to = max(self._hurry_to, target)
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: self._settled >= target, max(timeout_millis, 0) / 1000
            )

    def shutdown(self, timeout_millis: float = 4_000) -> None:
        """Send what is left within the time, and end. What could not be sent is lost, and warned about."""
        with self._changed:
            if self._stop_at is not None:
                return
            if self._exit_timed_out:
                timeout_millis = 0
            self._stop_at = time.monotonic() + timeout_millis / 1000
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_millis / 1000)
        if self._flush_at_exit is not None:
            atexit.unregister(self._flush_at_exit)
        if self._owns_store:
            self._store.close()  # ends a call that still runs
        with self._changed:
            left = self._added - self._settled
        if left:
            self._drop(left, "shutdown", "not stored before the exporter was shut down")
        self._losses.summarize(everything=True)

    def _drop(self, count: int, kind: str, why: str, level: int = logging.WARNING) -> None:
        self._losses.drop(count, kind, why, level)

    # --- the sending thread -----------------------------------------------------------------------

    def _run(self) -> None:
        # What this thread does over gRPC must not become spans itself.
        otel_context.attach(
            otel_context.set_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY, True)
        )
        while (items := self._take()) is not None:
            try:
                if not self._deliver(items):
                    return  # shut down: `shutdown` says what is lost
            except Exception:
                self._drop(len(items), "defect", "see the traceback")
                logger.exception("spans could not be sent")
            with self._changed:
                self._settled += len(items)
                self._bytes -= sum(item.size for item in items)
                self._changed.notify_all()
                self._on_settled()

    def _on_settled(self) -> None:
        """Is called, with the lock held, when spans were stored or given up."""

    def _take(self) -> list[Item] | None:
        """Wait for spans and return those of one stream; None at the end."""
        with self._changed:
            while not self._changed.wait_for(
                lambda: self._queue or self._stop_at is not None, self._losses.until_summary()
            ):
                self._losses.summarize()
            self._changed.wait_for(self._is_urgent, self._delay)
            if self._stop_at is not None and (not self._queue or self._is_late()):
                return None
            items: list[Item] = []
            size = 0
            while self._queue and size < STREAM_BYTES:
                items.append(self._queue.popleft())
                size += items[-1].size
            return items

    def _is_urgent(self) -> bool:
        return (
            self._stop_at is not None
            or self._settled < self._hurry_to
            or self._bytes >= outbox.BATCH_BYTES
        )

    def _is_late(self) -> bool:
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    def _deliver(self, items: list[Item]) -> bool:
        """Send spans until each is stored or refused; False if the time of a shutdown is over."""
        messages = outbox.into_messages(items)
        while messages:
            try:
                result = self._send(messages)
            except LightningStoreError as error:
                self._give_up(messages, error)
                return True
            if result is None:
                return False
            for stop in result.stops:
                self._pass_on(stop)
            messages = self._sort_out(messages, result)
        return True

    def _pass_on(self, stop: Stop) -> None:
        if self._on_stop is not None:
            try:
                self._on_stop(stop)
            except Exception:
                logger.exception("on_stop failed")

    def _sort_out(self, messages: list[list[Item]], result: IngestResult) -> list[list[Item]]:
        """Return what is to be sent again: a bad span fails its whole batch, but only it is bad."""
        again: list[list[Item]] = []
        told = 0
        for rejection in result.rejections:
            members = messages[rejection.message_index]
            # Fewer than all: single spans, such as those whose ids are taken; the others are stored.
            some = 0 < rejection.span_count < len(members)
            refused = rejection.span_count if some else len(members)
            told += refused
            if len(members) == 1 or some or _is_about_attempt(rejection):
                self._drop(
                    refused,
                    rejection.reason,
                    f"refused by the server: {rejection.message}",
                    logging.ERROR,
                )
            else:
                again.extend([item] for item in members)
        if told < result.rejected_count:
            # Only the first refusals are told. What follows them goes again; what is stored, is skipped.
            last = max((r.message_index for r in result.rejections), default=len(messages) - 1)
            rest = messages[last + 1 :]
            again.extend(rest)
            if not rest:
                self._drop(
                    result.rejected_count - told,
                    "no reason",
                    "refused by the server without a reason",
                    logging.ERROR,
                )
        return again

    def _send(self, messages: list[list[Item]]) -> IngestResult | None:
        """Send messages over one stream until it is answered; None if a shutdown ended the tries.

        Raises LightningStoreError for what waiting does not mend.
        """
        delay = FIRST_DELAY
        defects = 0
        while True:
            try:
                return self._try(messages)
            except (UnavailableError, DeadlineExceededError) as error:
                failure: LightningStoreError = error
            except CancelledCallError:
                if self._stop_at is None:
                    raise
                return None
            except LightningStoreError as error:
                defects += isinstance(error, InternalError)
                perhaps = isinstance(error, InternalError) and defects < MOST_DEFECTS
                if error.retry_delay is None and not perhaps:
                    raise
                failure = error
            logger.debug("spans not sent yet: %s", failure)
            if not self._pause(max(delay, failure.retry_delay or 0.0)):
                return None
            delay = min(delay * 2, LONGEST_DELAY)

    def _pause(self, delay: float) -> bool:
        """Wait before another try; False if there is no time for one."""
        with self._changed:
            if self._stop_at is not None:
                time_left = self._stop_at - time.monotonic()
                self._changed.wait(max(min(delay, time_left), 0))
                return time_left > delay
            # A flush does not hurry a server that is not there; a shutdown gets one more try.
            self._changed.wait_for(lambda: self._stop_at is not None, delay)
            return True

    def _try(self, messages: list[list[Item]]) -> IngestResult:
        timeout = STREAM_TIMEOUT
        if self._stop_at is not None:
            timeout = min(timeout, max(self._stop_at - time.monotonic(), 0.001))

        def requests() -> Iterator[IngestSpansRequest]:
            for members in messages:
                yield IngestSpansRequest(batch=outbox.to_batch(members))

        answer: Any = self._store._transport.client_stream("IngestSpans", requests(), timeout)
        return IngestResult.from_message(answer.result)

    def _give_up(self, messages: list[list[Item]], error: LightningStoreError) -> None:
        count = sum(len(members) for members in messages)
        self._drop(count, type(error).__name__, f"refused by the server: {error}", logging.ERROR)


def _is_about_attempt(rejection: Rejection) -> bool:
    """Tell whether all spans of a batch are refused for what they have in common."""
    return rejection.reason.endswith("_NOT_FOUND")


def _at_exit(exporter: SpanExporter) -> None:
    """Flush an exporter when this process ends, if nobody has shut it down by then.

    A child of multiprocessing ends without the functions of atexit, but with its own finalizers.
    """
    known = weakref.ref(exporter)

    def flush() -> None:
        found = known()
        if found is not None and found._stop_at is None and not found.force_flush(EXIT_WAIT):
            # A tracer provider may shut the exporter down after this: it does not wait as long again.
            found._exit_timed_out = True
            logger.warning("the process ends before its spans are stored")

    exporter._flush_at_exit = atexit.register(flush)
    # Not imported for those who do not use it: it takes milliseconds.
    process, util = map(sys.modules.get, ("multiprocessing.process", "multiprocessing.util"))
    if process is not None and util is not None and process.parent_process() is not None:
        util.Finalize(None, flush, exitpriority=10)


def _after_fork() -> None:
    for exporter in list(_exporters):
        exporter._reset()
        exporter._child_wait = CHILD_WAIT


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
