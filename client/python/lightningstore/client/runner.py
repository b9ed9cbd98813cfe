"""Works on rollouts: claim, run a function, report, repeat."""

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

Agent = Callable[[Any, Mapping[str, Any], Tracer, RunContext], Any | Awaitable[Any]]


class Runner:
    """Claims rollouts and runs a function on each, several at a time.

    The function gets `(input, resources, tracer, context)`: the rollout's input; its resources by name
    (LLM, PromptTemplate, CustomResource; a ProxyLLM comes as the LLM routed to this attempt); an
    OpenTelemetry tracer whose spans are filed under the attempt; and a RunContext. It may be a coroutine
    function, which runs on the runner's event loop, or a plain one, which runs in a thread. It returns None,
    or a number: the reward, which becomes a span `agentlightning.annotation`.

    Returning is success. An exception is a failure with its type and message, retried as the rollout's
    config says; NonRetryable is not. A cancelled or superseded attempt is told: a coroutine is cancelled, a
    plain function sees `context.cancelled` and gets AttemptCancelled from `context.check()`. Whatever such
    an attempt returns, it is never reported as succeeded.

    Heartbeats go out from a thread of their own. While the server is away the runner goes on, keeps spans,
    and reports when it is back; no claim is lost.
    """

    def __init__(
        self,
        store: str | LightningStore | None,
        fn: Agent,
        *,
        worker_id: str | None = None,
        concurrency: int = 1,
        modes: Iterable[RolloutMode | str | int | None] = (),
        max_rollouts: int | None = None,
        poll_wait: float = 20.0,
        heartbeat_period: float = 10.0,
        outage: float = 600.0,
        grace: float = 5.0,
        tracer_provider: TracerProvider | None = None,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        """Take an address as LightningStore does, or a client, which then stays the caller's to close.

        `worker_id`: unset: made of host name, process id and chance. `concurrency`: rollouts at a time.
        `modes`: only these, None for those without a mode. `max_rollouts`: end after so many. `poll_wait`:
        seconds that one long poll lasts. `heartbeat_period`: seconds between two heartbeats, or a third of
        the shortest unresponsive timeout if that is less. `outage`: seconds for which a result waits for a
        server that is away. `grace`: seconds that cancelled functions get at a second `stop`.
        `tracer_provider`: one whose spans are filed too if they begin in the function's context, such as
        the global one that instrumentation uses. `connection`: what goes with an address, as for LightningStore.

        Raises ValueError for a concurrency below 1 and a worker id that is not valid UTF-8.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        check_function(fn)
        check_names(connection)
        self._owns_store = not isinstance(store, LightningStore)
        self._store = (
            store if isinstance(store, LightningStore) else LightningStore(store, **connection)
        )
        #: What the runner is called.
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
        )
        self._finishes = Finishes(self._store, self._on_finish)
        self._claims = Claims(self._store, self.worker_id, tuple(modes), poll_wait)
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
        """Work until `stop` is called, or SIGTERM or Ctrl-C arrives, or `max_rollouts` are done.

        The first signal lets what runs finish and claims no more; the second cancels it. Raises
        LightningStoreError for an error that waiting does not mend.
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
        with _signals(asyncio.get_running_loop(), self.stop):
            await self.arun()

    async def arun(self) -> None:
        """Do what `run` does, on the running event loop and without handling signals.

        Cancelling it cancels what runs. A runner runs once.
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
        """Log what the runner does, or print it to stderr where no logging is set up."""
        line = (
            f"runner {self.worker_id}: claiming from {self._store.address or 'its store'}, "
            f"concurrency {self._concurrency}, modes {self._claims.modes}, "
            + ("until stopped" if self._left is None else f"up to {self._left} rollouts")
        )
        if logger.hasHandlers():
            logger.info(line)
        else:
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    async def _claim_and_finish(self) -> None:
        try:
            await self._claim_and_start()
        except Exception as error:
            # What runs has outcomes to report: it ends first, then the error ends the runner.
            logger.error("no more claims, for this ends the runner: %s", error)
            if not isinstance(error, LightningStoreError):
                self._start_all(await self._claims.rescue())
            await self._finish()
            raise
        await self._finish()

    def stop(self) -> None:
        """Let what runs finish, and claim no more; called again: cancel what runs. From any thread."""
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
            except Exception:  # the other claims of the answer must not be lost with it
                logger.exception("the claim %r cannot be worked on", rollout)

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
            logger.exception("the outcome of %s is lost by a defect", execution.context)
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
        """Wait for what runs; once it has been cancelled, no longer than the grace allows."""
        until: float | None = None
        loop = asyncio.get_running_loop()
        while self._tasks:
            if self._stops > 1 and until is None:
                until = loop.time() + self._grace
            left = None if until is None else until - loop.time()
            if left is not None and left <= 0:
                self._abandon()
                left = None
                until = float("inf")
            try:
                await asyncio.wait_for(
                    self._wait_for_wakeup(), None if left == float("inf") else left
                )
            except TimeoutError:
                continue

    def _abandon(self) -> None:
        with self._lock:
            running = list(self._running.values())
        for execution in running:
            logger.warning(
                "attempt %s of rollout %s does not end though cancelled: left behind",
                execution.context.attempt_id,
                execution.context.rollout_id,
            )
            execution.abandon()

    def _stop_attempt(self, stop: Stop) -> None:
        """Pass on what the server said, from any thread."""
        with self._lock:
            execution = self._running.get((stop.rollout_id, stop.attempt_id))
        if execution is not None:
            execution.cancel(stop.reason)

    def _on_finish(self, rollout_id: str) -> None:
        """Ask by a heartbeat why a rollout has finished that is still worked on. From any thread."""
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


def _worker_id(given: str | None) -> str:
    """Return the worker id given, or a new one. Raises ValueError for one that is not valid UTF-8."""
    if given:
        check("worker_id", given)
        return given
    return f"{valid(socket.gethostname())}-{os.getpid()}-{uuid.uuid4().hex[:6]}"[-256:]


@contextlib.contextmanager
def _signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGTERM and Ctrl-C, where that is possible: in the main thread."""
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


def _leave_signals_to_the_parent() -> None:
    """Give the child of a fork the handling of signals that a process has at first.

    asyncio learns of signals by a socket that the child shares: a signal to the child, as
    multiprocessing.Pool sends to its processes at the end, would stop the runner of the parent.
    """
    if _handled:
        with contextlib.suppress(ValueError, OSError):
            signal.set_wakeup_fd(-1)
            for number in _handled:
                first = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, first)
        _handled.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_signals_to_the_parent)
