"""agentlightning's own Trainer, runners and tracer over `lightningstore serve`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from lightningstore.client import LightningStore

from tests.integrations.agentlightning.conftest import LIGHT, serving

ROOT = Path(__file__).parents[3]
#: What an agent's work leaves: an operation, a reward on the way, and the one returned.
SPANS = ["agentlightning.operation", *["agentlightning.annotation"] * 2]
DIRECT = {"type": "cs", "managed_store": False}

#: A program that hangs is given up. It takes seconds to import agentlightning, more on a busy machine.
PROGRAM_SECONDS = 240

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[str]:
    """The address of a server of its own over SQLite."""
    with serving(tmp_path, "--backend", "sqlite") as address:
        yield address


def start(address: str, tasks: list[Any], **options: Any) -> subprocess.Popen[str]:
    """Start the program, `options` being the Trainer's."""
    environment = {**os.environ, **LIGHT, **options.pop("environment", {})}
    arguments = (address, json.dumps(tasks), json.dumps(options))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integrations.agentlightning.program", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    """Wait for the program, which must succeed; returns the lines of the algorithm and its log."""
    try:
        out, log = process.communicate(timeout=PROGRAM_SECONDS)
    finally:
        with suppress(ProcessLookupError):  # its runners too, if it hangs
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, log
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")], log


def train(address: str, tasks: list[Any], **options: Any) -> tuple[list[dict[str, Any]], str]:
    """Run the program to its end."""
    return ended(start(address, tasks, **options))


def questions(count: int) -> list[Any]:
    return [{"question": f"q{n}"} for n in range(count)]


def assert_all_done(lines: list[dict[str, Any]], tasks: list[Any]) -> None:
    assert [line["input"] for line in lines] == tasks
    assert {line["status"] for line in lines} == {"succeeded"}
    assert {line["reward"] for line in lines} == {float(len("Why q0?"))}


def test_several_runner_processes_do_all_tasks_over_sqlite(sqlite: str, tmp_path: Path) -> None:
    place = tmp_path / "runners"
    place.mkdir()
    tasks = [{**task, "holds": str(place)} for task in questions(9)]
    process = start(sqlite, tasks, n_runners=3, strategy=DIRECT)
    with LightningStore(sqlite) as client:
        # A single runner must not finish everything before the others have started.
        end = time.monotonic() + PROGRAM_SECONDS / 2
        while len(list(place.iterdir())) < 3 or not all(w.stats for w in client.list_workers()):
            assert time.monotonic() < end, ended(process)
            assert process.poll() is None, ended(process)
            time.sleep(0.05)
    (place / "go").touch()
    lines, log = ended(process)
    assert_all_done(lines, tasks)
    assert "Traceback" not in log
    with LightningStore(sqlite) as client:
        rollouts = list(client.iter_rollouts())
        assert [rollout.input for rollout in rollouts] == tasks
        assert {rollout.status for rollout in rollouts} == {"succeeded"}
        workers = {rollout.attempt.worker_id for rollout in rollouts}
        assert workers == {"Worker-0", "Worker-1", "Worker-2"}
        known = client.list_workers()
        assert {worker.worker_id for worker in known} == {"Worker-0", "Worker-1", "Worker-2"}
        assert {worker.status for worker in known} == {"idle"}
        assert all(worker.stats for worker in known)  # their heartbeats
        for rollout in rollouts:
            spans = list(client.query_spans(rollout.rollout_id))
            names = [span.name for span in spans]
            assert names == SPANS
            assert [span.sequence_id for span in spans] == [1, 2, 3]
            rewards = [span.attributes.get("agentlightning.reward.0.value") for span in spans]
            assert rewards == [None, 0.25, float(len("Why q0?"))]


def test_a_trainer_as_it_is_by_default_needs_nothing_but_the_store(sqlite: str) -> None:
    tasks = questions(4)
    # Its own HTTP server, between it and its runners, needs a free port.
    environment = {"AGL_SERVER_PORT": free_port(), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    lines, _ = train(sqlite, tasks, n_runners=2, environment=environment)
    assert_all_done(lines, tasks)
    with LightningStore(sqlite) as client:
        for line in lines:
            spans = client.query_spans(line["rollout_id"], "latest")
            assert [span.name for span in spans] == SPANS


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def test_threads_of_one_process_share_the_store(sqlite: str) -> None:
    tasks = questions(3)
    # By default the runner has the main thread, and does not end with the algorithm.
    strategy = {"type": "shm", "main_thread": "algorithm"}
    lines, _ = train(sqlite, tasks, n_runners=1, strategy=strategy)
    assert_all_done(lines, tasks)


def test_algorithm_and_runners_may_be_programs_of_their_own(sqlite: str) -> None:
    tasks = questions(4)
    environment = {"AGL_MANAGED_STORE": "0"}
    runners = start(
        *(sqlite, tasks),
        n_runners=2,
        max_rollouts=2,
        environment={**environment, "AGL_CURRENT_ROLE": "runner"},
    )
    lines, _ = train(sqlite, tasks, environment={**environment, "AGL_CURRENT_ROLE": "algorithm"})
    assert_all_done(lines, tasks)
    ended(runners)


def test_failures_are_retried_and_the_work_of_a_killed_runner_done_by_another(sqlite: str) -> None:
    tasks = [
        {"question": "a", "dies": 1},
        {"question": "b", "fails": 1},
        {"question": "c", "fails": 2},
        {"question": "d"},
    ]
    strategy = {**DIRECT, "allowed_exit_codes": [0, -15, -9]}
    lines, log = train(sqlite, tasks, n_runners=3, strategy=strategy)
    assert [line["attempts"] for line in lines] == [
        ["unresponsive", "succeeded"],
        ["failed", "succeeded"],
        ["failed", "failed"],
        ["succeeded"],
    ]
    assert [line["status"] for line in lines] == ["succeeded", "succeeded", "failed", "succeeded"]
    assert [line["reward"] for line in lines] == [6.0, 6.0, None, 6.0]
    assert log.count("RuntimeError: as the task wants it") >= 3
    with LightningStore(sqlite) as client:
        first, second = client.list_attempts(lines[0]["rollout_id"])
        assert first.worker_id != second.worker_id
        # What the killed runner had recorded before is there too.
        [span] = client.query_spans(lines[0]["rollout_id"], first.attempt_id)
        assert span.name == "agentlightning.operation"


def test_spans_go_over_http_where_the_server_takes_them(tmp_path: Path) -> None:
    with serving(tmp_path, "--backend", "sqlite", "--otlp-http-port", "0") as address:
        tasks = questions(4)
        lines, _ = train(address, tasks, n_runners=2, strategy=DIRECT)
        assert_all_done(lines, tasks)
        with LightningStore(address) as client:
            for line in lines:
                spans = list(client.query_spans(line["rollout_id"]))
                assert [span.name for span in spans] == SPANS
                filed = [
                    span.resource_attributes.get("agentlightning.rollout_id") for span in spans
                ]
                # That of the returned reward is none of the tracer's.
                assert filed == [line["rollout_id"]] * 2 + [None]
