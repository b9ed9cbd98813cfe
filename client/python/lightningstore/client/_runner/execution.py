"""One attempt in a runner: run the function, flush its spans, report how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from lightningstore.client._runner.claims import is_retryable
from lightningstore.client._runner.context import AttemptCancelled, RunContext, current
from lightningstore.client._runner.failures import failure_of, minimal
from lightningstore.client._runner.rewards import emit_reward
from lightningstore.client._runner.tracing import Tracing
from lightningstore.client._sync.store import LightningStore
from lightningstore.client._values.rewards import finite
from lightningstore.client.errors import (
    FailedPreconditionError,
    LightningStoreError,
    NotFoundError,
    UnavailableError,
)
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

#: Deadline in seconds of one try of a call.
TRY = 5.0
#: Minimum seconds between two tries: an error may arrive at once and name no delay.
PAUSE = 0.1
#: Maximum cached resources, so that a batch of rollouts fetches them once.
CACHED_RESOURCES = 4
#: Statuses of an attempt that has not ended.
LIVE = (AttemptStatus.PREPARING, AttemptStatus.RUNNING)

#: The reward of a function, and what it raised; None for each if there is none.
_Ending = tuple[float | None, BaseException | None]


class Outcome(NamedTuple):
    """How an attempt ended."""

    status: AttemptStatus
    failure: Failure | None = None
    #: What the function returned; None if it returned nothing.
    reward: float | None = None


class Execution:
    """A function that works on an attempt."""

    def __init__(self, context: RunContext, loop: asyncio.AbstractEventLoop) -> None:
        self.context = context
        self._loop = loop
        self._ended: asyncio.Future[_Ending] = loop.create_future()
        self._task: asyncio.Task[_Ending] | None = None
        self._pid = os.getpid()

    def cancel(self, reason: StopReason | None) -> None:
        """Cancel the function, from any thread. `reason`: why the server wants it; None: the runner stops."""
        if self.context.cancelled.is_set():
            return
        self.context.stop_reason = reason
        self.context.cancelled.set()
        self._later(self._cancel_task)

    @property
    def is_at_work(self) -> bool:
        """Whether the function has yet to end."""
        return not self._ended.done()

    def when_ended(self, function: Callable[[], object]) -> None:
        """Call a function on the event loop when the agent's function has ended, before its report."""
        self._ended.add_done_callback(lambda _: function())

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def abandon(self) -> None:
        """Wait for the function no longer."""
        self._later(self._settle, None, AttemptCancelled("abandoned"))

    async def run(self, function: Callable[..., Any], *arguments: Any) -> _Ending:
        """Run the function. Return its reward and what it raised, None for each if there is none.

        The reward is converted where the function runs, because that may run code of the agent, which may take long and
        raise anything.
        """
        context = contextvars.copy_context()
        context.run(current.set, self.context)
        if _is_coroutine_function(function):
            context.run(self._start_task, self._guarded(function, arguments))
        else:
            # A daemon thread: a function that never ends must not keep the process from ending.
            threading.Thread(
                target=context.run,
                args=(self._run_in_thread, function, arguments),
                name=f"lightningstore-{self.context.attempt_id}",
                daemon=True,
            ).start()
        return await self._ended

    def _start_task(self, coroutine: Coroutine[Any, Any, _Ending]) -> None:
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._take_from_task)
        if self.context.cancelled.is_set():
            self._task.cancel()

    def _take_from_task(self, task: asyncio.Task[_Ending]) -> None:
        if task.cancelled():
            self._settle(None, AttemptCancelled("cancelled"))
        elif (error := task.exception()) is not None:
            self._settle(None, error)
        else:
            self._settle(*task.result())

    async def _guarded(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> _Ending:
        reward, raised = None, None
        try:
            reward = _reward(await function(*arguments))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            # Returned, not raised: a task that raises KeyboardInterrupt ends the event loop of all attempts.
            raised = error
        self._end_child(raised)
        if isinstance(raised, SystemExit):
            exited, raised = raised, RuntimeError(f"sys.exit({raised.code!r}) was called")
            raised.__cause__ = exited
        return reward, raised

    def _run_in_thread(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        reward, raised = None, None
        try:
            reward = _reward(function(*arguments))
        except BaseException as error:
            raised = error
        self._end_child(raised)
        self._later(self._settle, reward, raised)

    def _end_child(self, error: BaseException | None) -> None:
        """End this process if the function has forked it: the parent reports the attempt.

        The child has a copy of the runner, which would also report, and claim rollouts.
        """
        if os.getpid() == self._pid:
            return
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        else:
            code = int(error is not None)
        if error is not None and code:
            _log_failure(f"process {os.getpid()}, forked in {self.context},", error)
        logging.shutdown()
        os._exit(code)

    def _later(self, function: Callable[..., Any], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(function, *arguments)

    def _settle(self, reward: float | None, error: BaseException | None) -> None:
        if not self._ended.done():
            self._ended.set_result((reward, error))


def _is_coroutine_function(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


class Work:
    """What a runner does for each claim."""

    def __init__(
        self,
        store: LightningStore,
        function: Callable[..., Any],
        exporter: SpanExporter,
        tracing: Tracing,
        outage: float,
    ) -> None:
        """Prepare the work. `outage`: maximum seconds to wait for a server that is away."""
        self._store = store.with_timeout(TRY)
        self._function = function
        self._exporter = exporter
        self._tracing = tracing
        self._outage = outage
        self._hurried = False
        self._resources: dict[tuple[str, int], Resources] = {}
        #: Publish number of the resources that the function was called with last. None: it was not, or without any.
        self.publish_number: int | None = None
        self._threads = ThreadPoolExecutor(32, thread_name_prefix="lightningstore-runner")

    def hurry(self) -> None:
        """Stop waiting for a server that is away."""
        self._hurried = True

    def close(self) -> None:
        """Release the threads."""
        self._threads.shutdown(wait=False)

    async def do(self, execution: Execution) -> None:
        """Work on a claim, from fetching its resources to reporting its outcome.

        Every error on the way is reported as the outcome. A cancelled task reports too.
        """
        outcome = await self._outcome(execution)
        try:
            await self._flush()
        except asyncio.CancelledError:
            execution.cancel(None)
        except Exception:
            logger.exception("the spans of %s could not be flushed", execution.context)
        for _ in range(2):
            try:
                await self._report(execution.context, outcome)
                return
            except asyncio.CancelledError:  # report again: a repeated report changes nothing
                execution.cancel(None)
        logger.error("the outcome of %s is not reported: cancelled twice", execution.context)

    async def _outcome(self, execution: Execution) -> Outcome:
        context = execution.context
        try:
            tracer = context.tracer = self._tracing.tracer(context)
            if context.rollout.payloads_omitted:
                context.rollout.fill(
                    await self._retried(lambda: self._store.get_rollout(context.rollout_id))
                )
            resources = await self._get_resources(context)
            reward, error = await self._run(execution, resources, tracer)
        except asyncio.CancelledError:
            execution.cancel(None)
            return _cancelled(context)
        except Exception as wrong:
            error = wrong
        if context.cancelled.is_set():
            return _cancelled(context)  # whatever it returned
        if error is None:
            try:
                if reward is not None:
                    emit_reward(reward, tracer=tracer)
                return Outcome(AttemptStatus.SUCCEEDED, reward=reward)
            except Exception as wrong:
                error = wrong
        _log_failure(context, error)
        return Outcome(AttemptStatus.FAILED, failure_of(error))

    async def _get_resources(self, context: RunContext) -> Mapping[str, Any]:
        attempt = context.attempt
        if not attempt.resources_id:
            return {}
        key = (attempt.resources_id, attempt.resources_version)
        resources = self._resources.get(key)
        if resources is None:
            resources = await self._retried(
                lambda: self._store.get_resources(key[0], version=key[1])
            )
            # Servers of versions before publish numbers return the current version.
            self._resources[resources.resources_id, resources.version] = resources
            while len(self._resources) > CACHED_RESOURCES:
                del self._resources[next(iter(self._resources))]
        self.publish_number = resources.publish_number or None
        return {
            name: value.routed(context.rollout_id, context.attempt_id)
            if isinstance(value, ProxyLLM)
            else value
            for name, value in Resources(resources.message).resources.items()
        }

    async def _run(
        self, execution: Execution, resources: Mapping[str, Any], tracer: Tracer
    ) -> _Ending:
        context = execution.context
        if context.cancelled.is_set():
            return None, AttemptCancelled(context.why)
        return await execution.run(
            self._function, context.rollout.input, resources, tracer, context
        )

    async def _flush(self) -> None:
        """Wait until the spans are stored: the outcome must not be visible before them."""

        def flush() -> None:
            if not self._exporter.force_flush(1000):
                raise UnavailableError("spans are not stored yet")

        try:
            await self._retried(flush)
        except LightningStoreError:
            logger.warning("the outcome is reported before all spans are stored")

    async def _report(self, context: RunContext, outcome: Outcome) -> None:
        if context.stop_reason is not None:  # it may have arrived while the spans were flushed
            outcome = _cancelled(context)
        try:
            if context.cancelled.is_set() and not await self._is_live(context):
                return
            try:
                await self._send(context, outcome)
            except (NotFoundError, FailedPreconditionError):
                raise
            except Exception as error:
                if isinstance(error, LightningStoreError) and is_retryable(error):
                    raise
                logger.warning("the report of %s was rejected: %s", context, error)
                # A server of an earlier version rejects rewards; it has the span.
                failure = outcome.failure and minimal(outcome.failure, error)
                outcome = Outcome(outcome.status, failure)
                await self._send(context, outcome)
        except Exception as error:
            # No traceback for an error of the server: its text is enough.
            known = isinstance(error, LightningStoreError)
            logger.log(
                logging.WARNING if known else logging.ERROR,
                "the outcome of %s is not reported: %s",
                context,
                error,
                exc_info=None if known else error,
            )

    async def _send(self, context: RunContext, outcome: Outcome) -> None:
        ids = (context.rollout_id, context.attempt_id)
        update = await self._retried(
            lambda: self._store.update_attempt(
                *ids,
                status=outcome.status,
                failure=UNSET if outcome.failure is None else outcome.failure,
                reward=UNSET if outcome.reward is None else outcome.reward,
                sent_span_count=self._exporter.sent_count(*ids),
            )
        )
        if update.missing_span_count:
            logger.warning("%d span(s) of %s are missing", update.missing_span_count, context)

    async def _is_live(self, context: RunContext) -> bool:
        """Tell whether a cancelled attempt has no outcome yet. The watchdog may have ended it."""
        if context.stop_reason is StopReason.UNKNOWN_ATTEMPT:
            return False
        attempt = await self._retried(
            lambda: self._store.get_attempt(context.rollout_id, context.attempt_id)
        )
        return attempt.status in LIVE

    async def _retried(self, function: Callable[[], T]) -> T:
        """Call the server, again while it is away."""
        until = time.monotonic() + self._outage
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await loop.run_in_executor(self._threads, function)
            except LightningStoreError as error:
                if not is_retryable(error) or self._hurried or time.monotonic() >= until:
                    raise
                await asyncio.sleep(max(error.retry_delay or 0.0, PAUSE))


def _cancelled(context: RunContext) -> Outcome:
    return Outcome(AttemptStatus.FAILED, Failure("Cancelled", context.why))


def _reward(value: Any) -> float | None:
    return None if value is None else finite(value, "None or a finite number")


def _log_failure(what: object, error: BaseException) -> None:
    try:
        logger.warning("%s failed", what, exc_info=(type(error), error, error.__traceback__))
    except Exception:  # a handler that cannot print the exception
        logger.warning("%s failed; its traceback cannot be printed", what)
