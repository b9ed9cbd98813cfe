"""The snippets of docs/training-control.md, run as they are printed, each in a namespace of its own."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lightningstore.client import LightningStore, Runner

from tests.unit.client.fakes import RealServer

PAGE = Path(__file__).parents[2] / "docs" / "training-control.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    real = RealServer(tmp_path_factory.mktemp("snippets"))
    real.start()
    yield real
    real.stop()


def agent(task: Any, resources: Any, tracer: Any, context: Any) -> float:
    return float(len(context.rollout.rollout_id) % 2)


@contextmanager
def running(store: LightningStore) -> Iterator[None]:
    """Run a runner in a thread."""
    runner = Runner(store, agent, poll_wait=0.2)
    thread = threading.Thread(target=runner.run)
    thread.start()
    yield
    runner.stop()
    thread.join()


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs_as_printed(server: RealServer, number: int) -> None:
    snippet, namespace = SNIPPETS[number], f"snippet-{number}"
    with LightningStore(server.address) as admin:
        admin.create_namespace(namespace)
    trained: list[int] = []
    with LightningStore(server.address, namespace=namespace) as store:
        rollout = store.start_rollout("another one")
        names: dict[str, Any] = {
            "store": store,
            "time": time,
            "Runner": Runner,
            "agent": agent,
            "prompts": ["a", "b"],
            "rollout_id": rollout.rollout_id,
            "attempt_id": rollout.latest_attempt_id,
            "weights": store.update_resources("policy", {"weights": "step-41"}),
            "train": lambda _, rollouts: trained.append(len(rollouts)),
            "save": lambda step: f"step-{step}",
        }
        if "running_attempt_count" in snippet:
            store.update_attempt(rollout.rollout_id, "latest", status="failed")
        exec(compile(snippet, PAGE.name, "exec"), names)
        if "def step" in snippet:
            with running(store):
                names["step"](1, ["a", "b", "c"], size=4)
            assert store.get_statistics().latest_publish_number == 2
            assert set(trained) <= {4}


def test_the_page_has_snippets() -> None:
    assert len(SNIPPETS) >= 8
