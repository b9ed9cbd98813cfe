"""Runners at work, for tests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from lightningstore.client import (
    LightningStore,
    Rollout,
    RunContext,
    Runner,
)

Start = Callable[..., "Running"]


class Running:
    """A runner at work in a thread."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.runner.run()
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()

    def stop(self) -> None:
        """End it, however it stands."""
        if self._thread.is_alive():
            self.runner.stop()
            self.runner.stop()
            self.join()


def results(store: LightningStore, *rollouts: Rollout) -> list[Rollout]:
    """Return rollouts when they have finished, in the order given."""
    stream = store.wait_for_rollouts([r.rollout_id for r in rollouts], timeout=30)
    found = {rollout.rollout_id: rollout for rollout in stream}
    assert not stream.open_rollout_ids
    return [found[rollout.rollout_id] for rollout in rollouts]


def ended(store: LightningStore, rollout: Rollout, attempt_id: str = "latest") -> Any:
    """Return an attempt when it has ended."""
    while (attempt := store.get_attempt(rollout.rollout_id, attempt_id)).end_time is None:
        time.sleep(0.01)  # pytest's own timeout ends it
    return attempt


def plain(reward: Any = None) -> Any:
    def agent(task: Any, resources: Any, tracer: Any, context: RunContext) -> Any:
        del resources, context
        with tracer.start_as_current_span("step") as span:
            span.set_attribute("task", str(task))
        return reward

    return agent


def asynchronous(reward: Any = None) -> Any:
    async def agent(*arguments: Any) -> Any:
        await asyncio.sleep(0)
        return plain(reward)(*arguments)

    return agent


class Holding:
    """A function that runs until it is released, and records what it saw."""

    def __init__(self, then: Callable[[RunContext], Any] = lambda _: 1.0) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.contexts: list[RunContext] = []
        self._then = then

    def __call__(self, task: Any, resources: Any, tracer: Any, context: RunContext) -> Any:
        del task, resources, tracer
        self.contexts.append(context)
        self.begun.set()
        while not self.go.is_set() and not context.cancelled.is_set():
            self.go.wait(0.005)
        return self._then(context)
