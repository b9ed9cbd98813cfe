"""Lost answers, cut and silent connections, restarts and stalls: what the Python client makes of them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from lightningstore.client import LightningStore, RolloutConfig, Runner, SpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tests.faults.lab import Lab, until
from tests.faults.proxy import Proxy

RETRY = RolloutConfig(
    max_attempts=5, retry_condition=["failed", "timeout", "unresponsive"], unresponsive_timeout=60
)


def names(store: LightningStore, rollout_id: str) -> list[str]:
    return [span.name for span in store.query_spans(rollout_id)]


def test_write_whose_answer_was_lost_has_its_effect_once(
    lab: Lab, dice: random.Random, tries
) -> None:
    """The server's first answer is thrown away with its connection; the client asks again by itself."""
    lab.start()
    lost = threading.Event()
    with Proxy(lab.port) as proxy, LightningStore(proxy.address, timeout=30) as store:
        proxy.swallowed = lost.set

        def lose() -> None:
            lost.wait(20)
            proxy.swallow = False
            proxy.cut()

        expected = claimed = 0
        for turn in range(tries("replies lost")):
            what = dice.choice(["enqueue", "start", "claim", "report", "cancel"])
            rollout_id = f"turn-{turn}"
            if what in ("report", "cancel", "claim"):
                store.enqueue_rollout(turn, rollout_id=rollout_id, config=RETRY)
                expected += 1
            if what == "report":
                (mine,) = store.dequeue_rollouts(1)
                claimed += 1
            lost.clear()
            proxy.swallow = True
            thief = threading.Thread(target=lose)
            thief.start()
            if what == "enqueue":
                made = store.enqueue_rollouts([{"input": 1}, {"input": 2}])
                expected += 2
                store.cancel_rollouts([r.rollout_id for r in made])
            elif what == "start":
                made = [store.start_rollout(turn)]
                expected += 1
                assert made[0].attempt_count == 1
            elif what == "claim":
                (mine,) = store.dequeue_rollouts(1, worker_id="w")
                assert (mine.rollout_id, mine.attempt.sequence_number) == (rollout_id, 1)
                store.cancel_rollouts([rollout_id])
            elif what == "report":  # as failed: a second report would cost a second attempt
                store.update_attempt(mine.rollout_id, mine.attempt.attempt_id, status="failed")
                (again,) = store.dequeue_rollouts(1)
                assert (again.rollout_id, again.attempt.sequence_number) == (mine.rollout_id, 2)
                store.cancel_rollouts([again.rollout_id])
            else:
                (gone,) = store.cancel_rollouts([rollout_id])
                assert gone.status == "cancelled"
            thief.join()
            assert lost.is_set()
        assert sum(1 for _ in store.iter_rollouts()) == expected
        assert store.get_statistics().queue_depth == 0


def has_worked(worked: list[int], count: int) -> bool:
    return len(worked) >= count


def test_runner_and_exporter_lose_nothing_through_rolling_restarts(lab: Lab) -> None:
    """Five restarts, two of them crashes, while 60 rollouts are worked on."""
    lab.start()
    with LightningStore(lab.address, timeout=60) as store:
        ids = [f"r{n}" for n in range(60)]
        store.enqueue_rollouts([{"input": n, "rollout_id": i} for n, i in enumerate(ids)])
        worked: list[int] = []

        def agent(task, resources, tracer, context):
            for n in range(5):
                with tracer.start_as_current_span(f"{task}-{n}"):
                    time.sleep(0.01)
            worked.append(task)
            return float(task)

        runner = Runner(lab.address, agent, concurrency=4, max_rollouts=60, heartbeat_period=0.5)
        thread = threading.Thread(target=runner.run)
        thread.start()
        exported = store.start_rollout("exported")
        exporter = SpanExporter(
            lab.address,
            rollout_id=exported.rollout_id,
            attempt_id=exported.attempt.attempt_id,
            delay=0.01,
        )
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("rolling")
        made = 0
        for turn in range(5):
            until("work goes on", partial(has_worked, worked, 10 * turn))
            for _ in range(50):
                tracer.start_span(f"span-{made}").end()
                made += 1
            if turn % 2:
                lab.kill()
            else:
                assert lab.end() == 0
            lab.start()
        thread.join(120)
        assert not thread.is_alive()
        provider.shutdown()
        assert sorted(worked) == list(range(60))
        for n, rollout_id in enumerate(ids):
            rollout = store.get_rollout(rollout_id)
            assert (rollout.status, rollout.attempt_count) == ("succeeded", 1), rollout_id
            found = names(store, rollout_id)
            assert sorted(found) == sorted(
                [f"{n}-{k}" for k in range(5)] + ["agentlightning.annotation"]
            )
        assert sorted(names(store, exported.rollout_id)) == sorted(f"span-{n}" for n in range(made))


def test_server_that_was_away_reruns_nobody_who_was_alive(tmp_path: Path, tries) -> None:
    """A server that is down does not count towards the unresponsive timeout.

    Two servers side by side, one stalled and one down: it takes as long as it says.
    """
    seconds = tries("stall seconds")
    with ThreadPoolExecutor(2) as pool, ExitStack() as labs:
        runs = []
        for how in ("stalled", "restarted"):
            (tmp_path / how).mkdir()
            lab = labs.enter_context(Lab(tmp_path / how))
            runs.append(pool.submit(be_away, lab, how, seconds))
        for run in runs:
            run.result()


def be_away(lab: Lab, how: str, seconds: int) -> None:
    """Work on eight rollouts, with the server away in the middle of it."""
    config = RolloutConfig(
        max_attempts=3, retry_condition=["unresponsive"], unresponsive_timeout=seconds / 4
    )
    lab.start()
    with LightningStore(lab.address, timeout=120) as store:
        rollouts = store.enqueue_rollouts([{"input": n, "config": config} for n in range(8)])
        begun, go_on = threading.Semaphore(0), threading.Event()

        def agent(task, resources, tracer, context):
            begun.release()
            while not go_on.wait(0.05):
                context.check()
            return 1.0

        runner = Runner(
            lab.address, agent, concurrency=8, max_rollouts=8, heartbeat_period=seconds / 16
        )
        thread = threading.Thread(target=runner.run)
        thread.start()
        for _ in rollouts:
            assert begun.acquire(timeout=30)
        if how == "stalled":
            lab.signal(signal.SIGSTOP)
            time.sleep(seconds)  # the stall itself
            lab.signal(signal.SIGCONT)
        else:
            lab.kill()
            time.sleep(seconds)  # the outage itself
            lab.start()
        heard = [r.attempt.last_heartbeat_time for r in map(store.get_rollout, ids(rollouts))]
        until(
            "every attempt is alive again",
            lambda: all(
                (now := store.get_rollout(r.rollout_id).attempt.last_heartbeat_time) is not None
                and (before is None or now > before)
                for r, before in zip(rollouts, heard, strict=True)
            ),
            seconds=120,
        )
        go_on.set()
        thread.join(120)
        assert not thread.is_alive()
        for rollout in map(store.get_rollout, ids(rollouts)):
            assert (rollout.status, rollout.attempt_count) == ("succeeded", 1)


def ids(rollouts: list) -> list[str]:
    return [r.rollout_id for r in rollouts]


def test_waiting_client_finds_out_about_a_silent_connection(
    lab: Lab, request: pytest.FixtureRequest
) -> None:
    """The network swallows everything without a word: keepalive notices, and the wait goes on elsewhere."""
    if request.config.getoption("--scale") < 0.1:
        pytest.skip("takes more than a minute: gRPC's keepalive does")
    lab.start()
    with Proxy(lab.port) as proxy, LightningStore(proxy.address) as store:
        (rollout,) = store.enqueue_rollouts([{"input": 1}])
        waiting = store.wait_for_rollouts([rollout.rollout_id])
        waiting.registered()
        proxy.abandon()
        with LightningStore(lab.address) as direct:
            direct.cancel_rollouts([rollout.rollout_id])
        assert [r.status for r in waiting] == ["cancelled"]


AGENT = """
import statistics, sys, time
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from lightningstore.client import SpanExporter

provider = TracerProvider()
exporter = SpanExporter(sys.argv[1], rollout_id="r", attempt_id="a")
provider.add_span_processor(SimpleSpanProcessor(exporter))
tracer = provider.get_tracer("agent")
ends = []
for n in range(400):
    span = tracer.start_span("step", attributes={"text": "x" * 2000})
    time.sleep(0.01)
    began = time.monotonic()
    span.end()
    ends.append(time.monotonic() - began)
print(statistics.median(ends), max(ends), flush=True)
"""


def run_agent(folder: Path, address: str) -> tuple[float, float, float]:
    """Run the agent above; returns what the end of a span took, in seconds: median and maximum; and its exit."""
    script = folder / "agent.py"
    script.write_text(AGENT)
    command = [sys.executable, str(script), address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ, text=True) as process:
        assert process.stdout is not None
        median, longest = map(float, process.stdout.readline().split())
        ended = time.monotonic()
        process.wait(60)
    return median, longest, time.monotonic() - ended


def test_agent_is_not_slowed_by_a_server_that_never_answers(lab: Lab, tmp_path: Path) -> None:
    lab.start()
    with Proxy(lab.port) as proxy:
        served, _, _ = run_agent(tmp_path, proxy.address)
        proxy.hold()
        took, longest, exiting = run_agent(tmp_path, proxy.address)
    print(f"{1e6 * served:.0f} us a span served, {1e6 * took:.0f} us with a black hole,")
    print(f"{1e3 * longest:.0f} ms at most; exit within {exiting:.1f} s")
    assert took < served + 0.0005  # a twentieth of the agent's own time
    assert longest < 1  # it never waits for an answer
    assert exiting < 6  # 4 s, and the end of the interpreter on a loaded machine
