"""The snippets of docs/training-control.md and docs/how-to.md, run as printed, each in a namespace of its own."""

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

DOCS = Path(__file__).parents[2] / "docs"


def snippets(page: str) -> list[str]:
    text = (DOCS / page).read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


SNIPPETS = snippets("training-control.md")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    real = RealServer(tmp_path_factory.mktemp("snippets"))
    real.start()
    yield real
    real.stop()
    real.kept.close()


def agent(task: Any, resources: Any, tracer: Any, context: Any) -> float:
    return float(len(context.rollout.rollout_id) % 2)


@contextmanager
def running(store: LightningStore, **options: Any) -> Iterator[None]:
    """Run a runner in a thread."""
    runner = Runner(store, agent, poll_wait=0.2, **options)
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
        exec(compile(snippet, "training-control.md", "exec"), names)
        if "def step" in snippet:
            with running(store):
                names["step"](1, ["a", "b", "c"], size=4)
            assert store.get_statistics().latest_publish_number == 2
            assert set(trained) <= {4}


def test_the_page_has_snippets() -> None:
    assert len(SNIPPETS) >= 8


def test_the_recipes_train(server: RealServer) -> None:
    grpo, asynchronous, judge, exchange = snippets("how-to.md")
    trained: list[list[Any]] = []
    names: dict[str, Any] = {"time": time}
    names["generate"] = lambda step, count: [f"prompt {step}/{n}" for n in range(count)]
    names["update"] = lambda samples: trained.append(samples) or "weights"
    for snippet in (grpo, asynchronous, judge, exchange):
        exec(compile(snippet, "how-to.md", "exec"), names)

    def store_of(name: str) -> LightningStore:
        with LightningStore(server.address) as admin:
            admin.create_namespace(name)
        return LightningStore(server.address, namespace=name)

    with store_of("grpo") as store, running(store, concurrency=8):
        names["grpo"](store, 2, 3)
        assert store.get_consumer("trainer").consumed_count == 6
        assert store.get_statistics().latest_publish_number == 2
    with store_of("asynchronous") as store, running(store, concurrency=8):
        trained.clear()
        names["train_asynchronously"](store, 3, 4)
        assert [len(samples) for samples in trained] == [4, 4, 4]
        assert len({rollout.rollout_id for samples in trained for rollout in samples}) == 12
    with store_of("judge") as store, running(store, queues=["", "judge"]):
        trained.clear()
        batch = [r.rollout_id for r in store.enqueue_rollouts({"input": n} for n in range(4))]
        for _ in store.wait_for_rollouts(batch):
            pass
        names["send_to_judge"](store)
        names["train_on_judged"](store, 4)
        assert sorted(r.rollout_id for r in trained[0]) == sorted(batch)
        assert all(rollout.reward is not None for rollout in trained[0])
    with store_of("exchange") as store:
        names["exchange"](store, "step-1")
        assert store.get_statistics().latest_publish_number == 1
        assert store.start_rollout("claims are not paused")
