"""One attempt in a runner: run the function, flush its spans, report how it ended."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from lightningstore.client import _context
from lightningstore.client._context import AttemptCancelled, NonRetryable, RunContext
from lightningstore.client._errors import (
    DeadlineExceededError,
    LightningStoreError,
    UnavailableError,
)
from lightningstore.client._rewards import emit_reward
from lightningstore.client._sync import LightningStore
from lightningstore.client._tracing import Tracing
from lightningstore.client.exporter import SpanExporter
from lightningstore.client.values import (
    UNSET,
    AttemptStatus,
    Failure,
    ProxyLLM,
    Resources,
    StopReason,
)
from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds of one try at something that the server has to answer.
TRY = 5.0
#: Characters of a failure's message that are kept.
LONGEST_MESSAGE = 16_384
#: Resources kept, so that a batch of rollouts fetches them once.
KEPT_RESOURCES = 4
LIVE = (AttemptStatus.PREPARING, AttemptStatus.RUNNING)


class Outcome(NamedTuple):
    """How an attempt ended."""

    status: AttemptStatus
    failure: Failure | None = None


class Execution:
    """A function at work on an attempt."""

    def __init__(self, context: RunContext, loop: asyncio.AbstractEventLoop) -> None:
        """Take the claim."""
        self.context = context
        self._loop = loop
        self._ended: asyncio.Future[Any] = loop.create_future()
        self._task: asyncio.Task[Any] | None = None

    def cancel(self, reason: StopReason | None) -> None:
        """Tell the function to stop, from any thread. `reason`: the server's; None: the runner's."""
        if self.context.cancelled.is_set():
            return
        self.context.stop_reason = reason
        self.context.cancelled.set()
        self._later(self._cancel_task)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def abandon(self) -> None:
        """Wait for the function no more."""
        self._later(self._settle, None, AttemptCancelled("left behind"))

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the function returns, and what it raises, or None."""
        context = contextvars.copy_context()
        context.run(_context.current.set, self.context)
        if _is_coroutine_function(function):
            context.run(self._start_task, _guarded(function, arguments))
        else:
            # Daemon threads: one that is stuck for good must not keep the process from ending.
            threading.Thread(
                target=context.run,
                args=(self._run_in_thread, function, arguments),
                name=f"lightningstore-{self.context.attempt_id}",
                daemon=True,
            ).start()
        return await self._ended

    def _start_task(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._take_from_task)
        if self.context.cancelled.is_set():
            self._task.cancel()

    def _take_from_task(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._settle(None, AttemptCancelled("cancelled"))
        else:
            self._settle(task.result() if task.exception() is None else None, task.exception())

    def _run_in_thread(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            result = function(*arguments)
        except BaseException as error:
            self._later(self._settle, None, error)
        else:
            self._later(self._settle, result, None)

    def _later(self, function: Callable[..., Any], *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self._ended.done():
            return
        self._ended.set_result((result, error))


async def _guarded(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return await function(*arguments)
    except SystemExit as error:  # would end the runner's event loop
        raise RuntimeError(f"sys.exit({error.code!r}) was called") from error


def _is_coroutine_function(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


class Work:
    """What a runner does for each of its claims."""

    def __init__(
        self,
        store: LightningStore,
        function: Callable[..., Any],
        exporter: SpanExporter,
        tracing: Tracing,
        outage: float,
    ) -> None:
        """Take the function, and the seconds for which a server that is away is waited for."""
        self._store = store.with_timeout(TRY)
        self._function = function
        self._exporter = exporter
        self._tracing = tracing
        self._outage = outage
        self._hurried = False
        self._resources: dict[tuple[str, int], Resources] = {}
        self._threads = ThreadPoolExecutor(32, thread_name_prefix="lightningstore-runner")

    def hurry(self) -> None:
        """Wait for a server that is away no longer."""
        self._hurried = True

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False)

    async def do(self, execution: Execution) -> None:
        """Work on a claim, from its resources to its report."""
        context = execution.context
        tracer = context.tracer = self._tracing.tracer(context)
        try:
            resources = await self._get_resources(context)
        except LightningStoreError as error:
            outcome = Outcome(AttemptStatus.FAILED, _failure_of(error))
        else:
            outcome = await self._run(execution, resources, tracer)
        await self._flush()
        await self._report(context, outcome)

    async def _get_resources(self, context: RunContext) -> Mapping[str, Any]:
        attempt = context.attempt
        if not attempt.resources_id:
            return {}
        key = (attempt.resources_id, attempt.resources_version)
        found = self._resources.get(key)
        if found is None:
            found = await self._patiently(lambda: self._store.get_resources(attempt.resources_id))
            self._resources[found.resources_id, found.version] = found
            while len(self._resources) > KEPT_RESOURCES:
                del self._resources[next(iter(self._resources))]
        return {
            name: value.routed(context.rollout_id, context.attempt_id)
            if isinstance(value, ProxyLLM)
            else value
            for name, value in Resources(found.message).resources.items()
        }

    async def _run(
        self, execution: Execution, resources: Mapping[str, Any], tracer: Tracer
    ) -> Outcome:
        context = execution.context
        if context.cancelled.is_set():
            return _cancelled(context)
        result, error = await execution.run(
            self._function, context.rollout.input, resources, tracer, context
        )
        if context.cancelled.is_set():
            return _cancelled(context)  # whatever it returned: its word counts no more
        if error is None:
            try:
                if result is not None:
                    emit_reward(_reward(result), tracer=tracer)
                return Outcome(AttemptStatus.SUCCEEDED)
            except TypeError as wrong:
                error = wrong
        logger.warning(
            "attempt %s of rollout %s failed",
            context.attempt_id,
            context.rollout_id,
            exc_info=error,
        )
        return Outcome(AttemptStatus.FAILED, _failure_of(error))

    async def _flush(self) -> None:
        """Wait until the spans are stored, for an outcome must not be there before them."""

        def flush() -> None:
            if not self._exporter.force_flush(1000):
                raise UnavailableError("spans are not stored yet")

        try:
            await self._patiently(flush)
        except LightningStoreError:
            logger.warning("reporting before all spans are stored")

    async def _report(self, context: RunContext, outcome: Outcome) -> None:
        ids = (context.rollout_id, context.attempt_id)
        if context.stop_reason is not None:  # perhaps said while the spans were flushed
            outcome = _cancelled(context)
        try:
            if context.cancelled.is_set() and not await self._is_live(context):
                return
            update = await self._patiently(
                lambda: self._store.update_attempt(
                    *ids,
                    status=outcome.status,
                    failure=UNSET if outcome.failure is None else outcome.failure,
                    sent_span_count=self._exporter.sent_count(*ids),
                )
            )
        except LightningStoreError as error:
            logger.warning("attempt %s of rollout %s not reported: %s", ids[1], ids[0], error)
            return
        if update.missing_span_count:
            logger.warning(
                "attempt %s of rollout %s lacks %d span(s)",
                *reversed(ids),
                update.missing_span_count,
            )

    async def _is_live(self, context: RunContext) -> bool:
        """Tell whether a cancelled attempt still waits for its end: the watchdog's word stays."""
        if context.stop_reason is StopReason.UNKNOWN_ATTEMPT:
            return False
        attempt = await self._patiently(
            lambda: self._store.get_attempt(context.rollout_id, context.attempt_id)
        )
        return attempt.status in LIVE

    async def _patiently(self, function: Callable[[], T]) -> T:
        """Do something that the server has to answer, again while it is away."""
        until = time.monotonic() + self._outage
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await loop.run_in_executor(self._threads, function)
            except LightningStoreError as error:
                if not _mends(error) or self._hurried or time.monotonic() >= until:
                    raise


def _mends(error: LightningStoreError) -> bool:
    return (
        isinstance(error, UnavailableError | DeadlineExceededError) or error.retry_delay is not None
    )


def _cancelled(context: RunContext) -> Outcome:
    return Outcome(AttemptStatus.FAILED, Failure("Cancelled", context.why))


def _reward(value: Any) -> float:
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"None or a number is wanted as reward, not {type(value).__name__}")
    return float(value)


def _failure_of(error: BaseException) -> Failure:
    kind: BaseException = error
    retryable = None
    if isinstance(error, NonRetryable):
        kind = error.__cause__ or error
        retryable = False
    message = str(error) or repr(error)
    return Failure(type(kind).__qualname__, message[:LONGEST_MESSAGE], retryable)
