"""The runner: claims rollouts, runs a function on each, reports the outcomes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lightningstore.client._runner.claims import Claims
from lightningstore.client._runner.context import AttemptCancelled, NonRetryable, RunContext
from lightningstore.client._runner.execution import Execution, Work
from lightningstore.client._runner.finishes import Finishes
from lightningstore.client._runner.heartbeats import Heartbeats
from lightningstore.client._runner.signature import check_function
from lightningstore.client._runner.tracing import Tracing
from lightningstore.client._sync.store import LightningStore
from lightningstore.client._values.convert import ids
from lightningstore.client._values.text import check, valid
from lightningstore.client.connection import ConnectionOptions, check_names
from lightningstore.client.errors import LightningStoreError
from lightningstore.client.exporter import SpanExporter
from lightningstore.client.values import Rollout, RolloutMode, Stop
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AttemptCancelled", "NonRetryable", "RunContext", "Runner"]

logger = logging.getLogger(__name__)

#: Signals that a runner of this process handles.
_handled: set[int] = set()
#: The mask of signals of a thread that forks, as it was before.
_masks = threading.local()

#: Type of the function of a runner.
Agent = Callable[[Any, Mapping[str, Any], Tracer, RunContext], Any | Awaitable[Any]]


class Runner:
    """Claims rollouts and runs a function on each, several at a time.

    The function is called with four arguments:

    - the input of the rollout;
    - its resources by name: LLM, PromptTemplate or CustomResource objects. A ProxyLLM is passed as the LLM with the URL
      of the attempt;
    - an OpenTelemetry tracer whose spans are stored under the attempt;
    - a RunContext.

    A coroutine function runs on the event loop of the runner, a plain function in a thread. It returns None or a number:
    the reward, which is stored as a span named `agentlightning.annotation`. If it returns, the attempt has succeeded. If
    it raises, the attempt has failed, with the type and message of the exception, and is retried according to the
    rollout's config, unless the exception is NonRetryable.

    When an attempt is cancelled, finished otherwise or superseded, a coroutine is cancelled; a plain function sees
    `context.cancelled` and gets AttemptCancelled from `context.check()`. Such an attempt is never reported as
    succeeded. A cancellation arrives within about a second.

    Heartbeats are sent from a separate thread. While the server is away the runner continues, keeps its spans, and
    reports when the server is back. No claim is lost.

    Args:
        store: Address of the server, as for `LightningStore`, or a client, which the runner does not close.
        fn: The function, called with `(input, resources, tracer, context)`.
        worker_id: Id of the worker. None: made of host name, process id and a random part.
        concurrency: Maximum number of rollouts at a time.
        modes: Only rollouts with one of these modes; None stands for rollouts without a mode. Empty: any.
        queues: Task queues to claim from; "" is the default queue. Empty: the default queue only.
        max_rollouts: Number of rollouts after which the runner ends. None: unlimited.
        poll_wait: Seconds of one long poll.
        heartbeat_period: Maximum seconds between heartbeats. A third of the shortest unresponsive timeout, if that is
            less.
        outage: Seconds for which a result is kept for a server that is away.
        grace: Seconds that cancelled functions have to end after the second `stop`.
        tracer_provider: A provider whose spans are also stored if they start in the context of the function, such as
            the global provider, which instrumentation uses.
        publish_number: Returns the publish number that heartbeats report, such as that of the weights which the
            worker's model has loaded; None: unchanged. Called in the thread of the heartbeats. None: that of the
            resources which the function was called with last.
        **connection: Options of the connection, see `ConnectionOptions`. Used with an address only.

    Attributes:
        worker_id: Id of the worker.

    Raises:
        ValueError: `concurrency` is less than 1, or the worker id is not valid UTF-8.
        TypeError: The function cannot be called with these arguments, `queues` is a single string, or an option is
            unknown.

    Example:
        def agent(task, resources, tracer, context):
            with tracer.start_as_current_span("think"):
                context.check()  # raises if the attempt should stop
            return 1.0

        store.enqueue_rollout({"question": 1})
        Runner(store, agent, concurrency=4, max_rollouts=1).run()
    """

    def __init__(
        self,
        store: str | LightningStore | None,
        fn: Agent,
        *,
        worker_id: str | None = None,
        concurrency: int = 1,
        modes: Iterable[RolloutMode | str | int | None] = (),
        queues: Iterable[str] = (),
        max_rollouts: int | None = None,
        poll_wait: float = 20.0,
        heartbeat_period: float = 10.0,
        outage: float = 600.0,
        grace: float = 5.0,
        tracer_provider: TracerProvider | None = None,
        publish_number: Callable[[], int | None] | None = None,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        check_function(fn)
        check_names(connection)
        self._owns_store = not isinstance(store, LightningStore)
        self._store = (
            store if isinstance(store, LightningStore) else LightningStore(store, **connection)
        )
        self.worker_id = _worker_id(worker_id)
        self._concurrency = concurrency
        self._left = max_rollouts
        self._exporter = SpanExporter(self._store, on_stop=self._stop_attempt)
        self._heartbeats = Heartbeats(
            self._store,
            self.worker_id,
            period=heartbeat_period,
            on_stop=self._stop_attempt,
            stats=self._stats,
            publish_number=publish_number or (lambda: self._work.publish_number),
        )
        self._finishes = Finishes(self._store, self._on_finish)
        self._claims = Claims(
            self._store, self.worker_id, tuple(modes), poll_wait, ids(queues, "queues")
        )
        self._work = Work(
            self._store, fn, self._exporter, Tracing(self._exporter, tracer_provider), outage
        )
        self._grace = grace
        self._lock = threading.Lock()
        self._running: dict[tuple[str, str], Execution] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wakeup = asyncio.Event()
        self._stops = 0
        self._finished = 0

    def run(self) -> None:
        """Work until `stop`, SIGTERM or Ctrl-C, or until `max_rollouts` are done.

        After the first signal the runner finishes the attempts in progress and claims no more. The second signal cancels
        them. It says so on stderr, and then returns: the process exits with 0. A runner can run once.

        Raises:
            LightningStoreError: A claim failed, and the error is not retryable.
            RuntimeError: An event loop runs in this thread, as in a notebook: use `await runner.arun()`.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            asyncio.run(self._run_with_signals())
        else:
            raise RuntimeError(
                "an event loop already runs in this thread, as in a notebook: use `await runner.arun()` "
                "instead of `runner.run()`"
            )

    async def _run_with_signals(self) -> None:
        with _signals(asyncio.get_running_loop(), self._stop_on_signal):
            await self.arun()
        if self._stops:
            self._say(f"stopped, {_attempts(self._finished)} finished")

    def _stop_on_signal(self) -> None:
        """Stop, and say what that means: whoever pressed Ctrl-C waits for it."""
        self.stop()
        running = _attempts(len(self._running))
        if self._stops > 1:
            self._say(f"cancelling {running}, for up to {self._grace:g} s")
        elif self._running:
            self._say(f"claiming no more, finishing {running}; a second signal cancels them")
        else:
            self._say("claiming no more; no attempt is running")

    async def arun(self) -> None:
        """Do the same as `run` on the current event loop, without handling signals.

        Cancelling the task cancels the attempts in progress.

        Raises:
            LightningStoreError: A claim failed, and the error is not retryable.
        """
        self._loop = asyncio.get_running_loop()
        self._announce()
        self._exporter.send_in_background()  # it is flushed before each report
        self._heartbeats.start()
        try:
            await self._claim_and_finish()
        except asyncio.CancelledError:
            self.stop()
            self.stop()
            self._start_all(await self._claims.rescue())
            await self._finish()
            raise
        finally:
            await asyncio.shield(self._close())

    def _announce(self) -> None:
        """Say what the runner does."""
        self._say(
            f"claiming from {self._store.address or 'its store'}, "
            f"namespace {self._store.namespace or 'default'}, concurrency {self._concurrency}, "
            f"modes {self._claims.modes}, "
            + (f"queues {self._claims.queues}, " if self._claims.queues else "")
            + ("until stopped" if self._left is None else f"up to {self._left} rollouts")
        )

    def _say(self, text: str) -> None:
        """Log a line, or print it to stderr where no logging is set up."""
        line = f"runner {self.worker_id}: {text}"
        if logger.hasHandlers():
            logger.info(line)
        else:
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    async def _claim_and_finish(self) -> None:
        try:
            await self._claim_and_start()
        except Exception as error:
            # Attempts in progress still report their outcomes; then the error ends the runner.
            logger.error("the runner claims no more and ends: %s", error)
            if not isinstance(error, LightningStoreError):
                self._start_all(await self._claims.rescue())
            await self._finish()
            raise
        await self._finish()

    def stop(self) -> None:
        """Finish the attempts in progress and claim no more. The second call cancels them. From any thread."""
        with self._lock:
            self._stops += 1
            forced = self._stops > 1
            running = list(self._running.values())
        self._claims.stop()
        if forced:
            self._work.hurry()
            for execution in running:
                execution.cancel(None)
        self._wake()

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._wakeup.set)

    async def _claim_and_start(self) -> None:
        while not self._stops and self._left != 0:
            free = self._concurrency - len(self._tasks)
            if self._left is not None:
                free = min(free, self._left)
            if free <= 0:
                await self._wait_for_wakeup()
                continue
            self._start_all(await self._claims.claim(free))

    async def _wait_for_wakeup(self) -> None:
        await self._wakeup.wait()
        self._wakeup.clear()

    def _start_all(self, rollouts: Iterable[Rollout]) -> None:
        for rollout in rollouts:
            try:
                self._start(rollout)
            except Exception:  # the other claims of the response must not be lost
                logger.exception("work on the claim %r could not start", rollout)

    def _start(self, rollout: Rollout) -> None:
        if self._left is not None:
            self._left = max(self._left - 1, 0)
        context = RunContext(rollout, self.worker_id)
        execution = Execution(context, asyncio.get_running_loop())
        key = (context.rollout_id, context.attempt_id)
        with self._lock:
            self._running[key] = execution
            forced = self._stops > 1
        if forced:
            execution.cancel(None)
        self._heartbeats.add(rollout)
        self._finishes.add(rollout)
        execution.when_ended(lambda: self._finishes.remove(*key))
        task = asyncio.create_task(self._run_one(key, execution))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _run_one(self, key: tuple[str, str], execution: Execution) -> None:
        try:
            await self._work.do(execution)
        except Exception:
            logger.exception("the outcome of %s is lost because of a defect", execution.context)
        finally:
            self._heartbeats.remove(*key)
            self._finishes.remove(*key)
            with self._lock:
                del self._running[key]
                self._finished += 1

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wakeup.set()

    async def _finish(self) -> None:
        """Wait for the attempts in progress; once they are cancelled, for the grace at most."""
        until: float | None = None
        loop = asyncio.get_running_loop()
        while self._tasks:
            if self._stops > 1 and until is None:
                until = loop.time() + self._grace
            remaining = None if until is None else until - loop.time()
            if remaining is not None and remaining <= 0:
                self._abandon()
                remaining = None
                until = float("inf")
            try:
                # Not `wait_for`: in Python 3.11 it ignores a cancellation as the wait ends.
                async with asyncio.timeout(None if remaining == float("inf") else remaining):
                    await self._wait_for_wakeup()
            except TimeoutError:
                continue

    def _abandon(self) -> None:
        with self._lock:
            running = list(self._running.values())
        for execution in running:
            logger.warning(
                "attempt %s of rollout %s is cancelled but does not end: the runner no longer waits for it",
                execution.context.attempt_id,
                execution.context.rollout_id,
            )
            execution.abandon()

    def _stop_attempt(self, stop: Stop) -> None:
        """Cancel an attempt that the server wants stopped. From any thread."""
        with self._lock:
            execution = self._running.get((stop.rollout_id, stop.attempt_id))
        if execution is not None:
            execution.cancel(stop.reason)

    def _on_finish(self, rollout_id: str) -> None:
        """Send a heartbeat, which says why a rollout has finished that is still being worked on. From any thread."""
        with self._lock:
            running = list(self._running.items())
        if any(key[0] == rollout_id and execution.is_at_work for key, execution in running):
            self._heartbeats.hurry()

    def _stats(self) -> dict[str, Any]:
        return {
            "running": len(self._running),
            "finished": self._finished,
            "concurrency": self._concurrency,
            "dropped_spans": self._exporter.dropped_count,
        }

    async def _close(self) -> None:
        self._heartbeats.stop()
        self._finishes.stop()
        self._claims.stop()
        await asyncio.to_thread(self._exporter.shutdown)
        self._work.close()
        if self._owns_store:
            self._store.close()


def _attempts(count: int) -> str:
    return f"{count} attempt{'' if count == 1 else 's'}"


def _worker_id(requested: str | None) -> str:
    """Return the requested worker id, or a new one. Raises ValueError if it is not valid UTF-8."""
    if requested:
        check("worker_id", requested)
        return requested
    return f"{valid(socket.gethostname())}-{os.getpid()}-{uuid.uuid4().hex[:6]}"[-256:]


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGTERM and Ctrl-C. Possible in the main thread only."""
    taken = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, stop)
                taken.append(number)
    _handled.update(taken)
    try:
        yield
    finally:
        _handled.difference_update(taken)
        for number in taken:
            loop.remove_signal_handler(number)


def _hold_signals() -> None:
    """Keep the signals that the runner handles from this thread while it forks."""
    if _handled:
        _masks.former = signal.pthread_sigmask(signal.SIG_BLOCK, _handled)


def _take_signals() -> None:
    """Undo `_hold_signals`."""
    former = _masks.__dict__.pop("former", None)
    if former is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _leave_signals_to_the_parent() -> None:
    """Restore the default signal handlers in the child of a fork.

    asyncio is notified of signals by a socket that the child shares. A signal to the child, as multiprocessing.Pool
    sends to its processes at the end, would stop the runner of the parent. A signal that the child got since the
    fork waits until its default handler is there.
    """
    if _handled:
        with contextlib.suppress(ValueError, OSError):
            signal.set_wakeup_fd(-1)
            for number in _handled:
                first = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, first)
        _handled.clear()
    _take_signals()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_hold_signals,
        after_in_parent=_take_signals,
        after_in_child=_leave_signals_to_the_parent,
    )
