"""Clients after a fork. In processes of their own: a test run is nothing to fork."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from lightningstore.client import LightningStore

from .fakes import RealServer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no fork")

BLOCKING = """
store = LightningStore(address, timeout=5.0)
store.get_statistics()
held = store._transport._holder._lock
with held:  # as if another thread was at it
    children = [fork(store.get_statistics) for _ in range(2)]
assert wait(children) == [0, 0]
store.get_statistics()
store.close()
"""

ASYNCIO = """
import asyncio
store = AsyncLightningStore(address, timeout=5.0)

async def use():
    await store.get_statistics()
    stream = store.watch_rollouts()
    await stream.registered()
    rollout = await store.enqueue_rollout(1)
    await store.cancel_rollouts([rollout.rollout_id])
    found = await anext(stream)
    assert found.rollout_id == rollout.rollout_id, found
    await stream.aclose()
    batch = SpanBatch(rollout_id=rollout.rollout_id, attempt_id="at-1")
    batch.spans.add()
    assert (await store.ingest_spans([batch] * 40)).rejected_count == 40
    try:
        await store.get_rollout("nobody")
    except NotFoundError:
        pass
    else:
        raise AssertionError

asyncio.run(use())
assert wait([fork(lambda: asyncio.run(use()))]) == [0]
asyncio.run(use())

async def inside():
    await store.get_statistics()
    child = fork(lambda: (asyncio._set_running_loop(None), asyncio.run(use())))
    assert wait([child]) == [0]
    await store.close()

asyncio.run(inside())
"""

EXPORTER = """
from opentelemetry.sdk.trace import TracerProvider
attempt = LightningStore(address).start_rollout(1).attempt
exporter = SpanExporter(address, rollout_id=attempt.rollout_id, attempt_id=attempt.attempt_id)

def export(name):
    span = TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span(name)
    span.end()
    exporter.export([span])

def child():
    export("child")
    assert exporter.sent_count(attempt.rollout_id, attempt.attempt_id) == 1
    assert exporter.force_flush(30_000)

export("first")
assert exporter.force_flush(30_000)
export("parent")
with exporter._changed:  # as if its thread was at it
    pid = fork(child)
assert wait([pid]) == [0]
assert exporter.force_flush(30_000)
names = sorted(s.name for s in LightningStore(address).query_spans(attempt.rollout_id))
assert names == ["child", "first", "parent"], names
"""

# An agent whose children end at once: by os._exit, as multiprocessing ends them, and by a signal.
RUNNER = """
import functools, multiprocessing

def step(tracer, name):
    tracer.start_span(name).end()

def pooled(name):
    step(held[0], name)

held = []

def agent(task, resources, tracer, context):
    held.append(tracer)
    forked = multiprocessing.get_context("fork")
    assert wait([fork(functools.partial(step, tracer, "os.fork"))]) == [0]
    child = forked.Process(target=step, args=(tracer, "process"))
    child.start()
    child.join()
    assert child.exitcode == 0
    with forked.Pool(2) as pool:  # terminates its processes
        pool.map(pooled, ["pool-1", "pool-2"])
    emit_reward(1.0)

store = LightningStore(address)
rollout = store.enqueue_rollout(1)
Runner(address, agent, max_rollouts=1).run()
assert store.get_rollout(rollout.rollout_id).status == "succeeded"
names = sorted(s.name for s in store.query_spans(rollout.rollout_id))
assert names == ["agentlightning.annotation", "os.fork", "pool-1", "pool-2", "process"], names
"""

# A child that comes back from the function, with a reward and with an exception.
RETURNING = """
async def asynchronous(*arguments):
    return plain(*arguments)

def plain(task, *_):
    codes = []
    for reward in (0.25, None):
        pid = os.fork()
        if not pid:
            if reward is None:
                raise ValueError("in the child")
            return reward
        codes += wait([pid])
    assert codes == [0, 1], codes
    return 1.0

store = LightningStore(address)
for agent in (plain, asynchronous):
    rollout = store.enqueue_rollout(1)
    Runner(address, agent, max_rollouts=1).run()
    assert store.get_rollout(rollout.rollout_id).status == "succeeded"
    spans = list(store.query_spans(rollout.rollout_id))
    assert [s.attributes["agentlightning.reward.0.value"] for s in spans] == [1.0], spans
"""

# A child that is ended by a signal, while the runner of its parent handles that signal.
SIGNALLED = """
import signal

def agent(task, resources, tracer, context):
    for number in (signal.SIGTERM, signal.SIGTERM):
        begun, begins = os.pipe()
        pid = fork(lambda: (os.write(begins, b"."), signal.sigtimedwait([signal.SIGUSR1], 20)))
        os.read(begun, 1)
        os.kill(pid, number)
        assert wait([pid]) == [-number]
    assert not context.cancelled.wait(0.2)

store = LightningStore(address)
rollout = store.enqueue_rollout(1)
Runner(address, agent, max_rollouts=1).run()
assert store.get_rollout(rollout.rollout_id).status == "succeeded"
"""

# The same for a signal that comes before anything else happens in the child.
AT_ONCE = """
import os, signal
numbers = []
os.register_at_fork(after_in_child=lambda: numbers and os.kill(os.getpid(), numbers.pop()))
"""
SIGNALLED_AT_ONCE = """
def agent(task, resources, tracer, context):
    numbers.append(signal.SIGTERM)
    assert wait([fork(lambda: None)]) == [-signal.SIGTERM]
    numbers.clear()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    assert wait([fork(lambda: os._exit(len(signal.pthread_sigmask(signal.SIG_BLOCK, []))))]) == [0]
    assert not context.cancelled.wait(0.2)

store = LightningStore(address)
rollout = store.enqueue_rollout(1)
runner = Runner(address, agent, max_rollouts=2)
store.enqueue_rollout(1)
runner.run()
assert store.get_statistics().queue_depth == 0
assert store.get_rollout(rollout.rollout_id).status == "succeeded"
"""

# Exporters made in a child that ends as soon as its work is done.
MADE_THERE = """
import multiprocessing
from tests.unit.client.forked import export_and_end

store = LightningStore(address)
attempt = store.start_rollout(1).attempt
for method in ("fork", "forkserver", "spawn"):
    child = multiprocessing.get_context(method).Process(
        target=export_and_end, args=(address, attempt.rollout_id, attempt.attempt_id, method)
    )
    child.start()
    child.join()
    assert child.exitcode == 0, method
names = sorted(s.name for s in store.query_spans(attempt.rollout_id))
assert names == ["fork", "forkserver", "spawn"], names
"""

AWAY = """
import logging
logging.basicConfig(format="%(message)s")
import lightningstore.client.exporter as module
module.CHILD_WAIT = 200.0
from opentelemetry.sdk.trace import TracerProvider
exporter = SpanExporter("127.0.0.1:1", rollout_id="r", attempt_id="a")

def child():
    for _ in range(3):
        span = TracerProvider(shutdown_on_exit=False).get_tracer("t").start_span("s")
        span.end()
        exporter.export([span])

assert wait([fork(child)]) == [0]
"""

FRAME = """
import faulthandler, os, sys, traceback
faulthandler.enable()
from lightningstore.client import *
address = sys.argv[1]

def fork(function):
    pid = os.fork()
    if pid:
        return pid
    try:
        function()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def wait(pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
"""


@pytest.mark.parametrize(
    "script", [BLOCKING, ASYNCIO, EXPORTER], ids=["blocking", "asyncio", "exporter"]
)
def test_a_child_has_a_connection_of_its_own(shared: RealServer, script: str) -> None:
    run(shared, script)


def test_spans_of_children_that_end_at_once_are_stored(shared: RealServer) -> None:
    run(shared, RUNNER)


def test_a_child_that_comes_back_from_the_function_reports_nothing(shared: RealServer) -> None:
    assert "ValueError: in the child" in run(shared, RETURNING)


def test_a_signal_to_a_child_does_not_stop_the_runner(shared: RealServer) -> None:
    run(shared, SIGNALLED)


def test_a_signal_to_a_child_that_has_just_begun_ends_it(shared: RealServer) -> None:
    run(shared, SIGNALLED_AT_ONCE, AT_ONCE)


def test_an_exporter_is_flushed_at_the_end_of_a_child(shared: RealServer) -> None:
    run(shared, MADE_THERE)


def test_a_child_says_once_that_its_spans_are_not_stored(shared: RealServer) -> None:
    assert run(shared, AWAY).count("the child of a fork, are not stored yet") == 1


def run(server: RealServer, script: str, first: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", first + FRAME + script, server.address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_child_by_spawn_takes_a_pickled_client(shared: RealServer) -> None:
    script = "import pickle, sys; print(pickle.load(sys.stdin.buffer).get_server_info().backend)"
    import pickle

    with LightningStore(shared.address) as store:
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=pickle.dumps(store),
            capture_output=True,
            timeout=20,
            check=True,
        )
    assert done.stdout.strip() == b"sqlite"
