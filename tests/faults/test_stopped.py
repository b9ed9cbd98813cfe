"""A worker that is stopped past its deadline and continues later: the effect of its late outcome."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest
from lightningstore.client import LightningStore, RolloutConfig

from tests.faults.lab import Lab, until

#: Claims, sends a heartbeat every 0.1 s, and reports when requested; prints the results.
WORKER = """
import sys, threading
from lightningstore.client import LightningStore, LightningStoreError

with LightningStore(sys.argv[1]) as store:
    (claimed,) = store.dequeue_rollouts(1, worker_id="slow")
    names = (claimed.rollout_id, claimed.attempt.attempt_id)
    print(names[1], flush=True)
    over = threading.Event()

    def beat():
        while not over.wait(0.1):
            store.heartbeat("slow", attempts=[names])

    thread = threading.Thread(target=beat)
    thread.start()
    sys.stdin.readline()
    over.set()
    thread.join()
    stops = store.heartbeat("slow", attempts=[names]).stops
    print([str(stop.reason.value) for stop in stops], flush=True)
    try:
        done = store.update_attempt(*names, status="succeeded")
        print(done.attempt.status.value, flush=True)
    except LightningStoreError as error:
        print(error.reason, flush=True)
"""


#: Longer than a busy machine holds a worker up between two heartbeats.
UNRESPONSIVE_SECONDS = 2.0


@contextmanager
def beating(store: LightningStore, rollout_id: str, attempt_id: str) -> Iterator[None]:
    """Send heartbeats of an attempt."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.1):
            store.heartbeat("other", attempts=[(rollout_id, attempt_id)])

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("case", ["no retry", "retry waits", "retry runs"])
def test_late_word_of_a_stopped_worker(lab: Lab, case: str) -> None:
    lab.start()
    config = RolloutConfig(
        unresponsive_timeout=UNRESPONSIVE_SECONDS,
        max_attempts=1 if case == "no retry" else 2,
        retry_condition=["unresponsive"],
    )
    with LightningStore(lab.address) as store, ExitStack() as stack:
        store.enqueue_rollouts([{"input": 1, "rollout_id": "r", "config": config}])
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, lab.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert worker.stdin is not None
            assert worker.stdout is not None
            first = worker.stdout.readline().strip()
            worker.send_signal(signal.SIGSTOP)
            process = psutil.Process(worker.pid)
            until("stopped", lambda: process.status() == psutil.STATUS_STOPPED)
            until(
                "the expiry",
                lambda: store.get_attempt("r", first).status.value == "unresponsive",
            )
            if case == "retry runs":
                (again,) = store.dequeue_rollouts(1, worker_id="other", wait=30)
                assert again.attempt.attempt_id != first
                stack.enter_context(beating(store, "r", again.attempt.attempt_id))
            worker.send_signal(signal.SIGCONT)
            said, _ = worker.communicate("go on\n", timeout=30)
        finally:
            worker.kill()
            worker.communicate()
        rollout = store.get_rollout("r")
        status = store.get_attempt("r", first).status.value
        print(case, said.split("\n"), rollout.status.value, status)
        stops, word = said.strip().split("\n")
        assert (word, status) == ("succeeded", "succeeded")  # its outcome is recorded
        if case == "no retry":  # and changes nothing of a rollout that has finished
            assert (rollout.status.value, "finished" in stops) == ("failed", True)
        elif case == "retry waits":  # or spares the retry that waits
            assert (rollout.status.value, stops) == ("succeeded", "[]")
            assert store.dequeue_rollouts(1) == []
        else:  # or leaves its successor alone
            assert (rollout.status.value, "superseded" in stops) == ("preparing", True)
            assert rollout.latest_attempt.attempt_id == again.attempt.attempt_id
