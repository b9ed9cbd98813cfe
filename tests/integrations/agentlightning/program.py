"""A program as a user of agentlightning writes it: an agent, an algorithm, a Trainer. Run by test_trainer.py.

Nothing in it knows of lightningstore but the store that the Trainer is given. The tasks say what the agent
should do; the algorithm prints a line of JSON about each rollout.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import agentlightning as agl
from lightningstore.client import LightningStore
from lightningstore.integrations.agentlightning import GrpcLightningStore


def config(task: dict[str, Any]) -> agl.RolloutConfig:
    """Have a task tried twice; silence is an end for those alone whose runner dies."""
    silence = 5 if task.get("dies") else None
    return agl.RolloutConfig(
        unresponsive_seconds=silence, max_attempts=2, retry_condition=["failed", "unresponsive"]
    )


def hold(folder: str) -> None:
    """Leave word that this process is at work, and wait until it may go on."""
    place, end = Path(folder), time.monotonic() + 120
    (place / str(os.getpid())).touch()
    while not (place / "go").exists():
        if time.monotonic() > end:
            raise TimeoutError("nobody said go")
        time.sleep(0.02)


def wait_for_span(rollout_id: str) -> None:
    """Wait until what has been recorded is stored, which a runner that is killed takes with it else."""
    with LightningStore(sys.argv[1]) as client:
        while not list(client.query_spans(rollout_id)):
            time.sleep(0.02)


@agl.rollout
def agent(task: dict[str, Any], prompt_template: agl.PromptTemplate, rollout: Any) -> float:
    """Think, take a reward on the way, and return one."""
    if "holds" in task:
        hold(task["holds"])
    with agl.operation(question=task["question"]) as operation:
        answer = prompt_template.format(question=task["question"])
        operation.set_output(answer)
    if rollout.attempt.sequence_id <= task.get("fails", 0):
        raise RuntimeError("as the task wants it")
    if rollout.attempt.sequence_id <= task.get("dies", 0):
        wait_for_span(rollout.rollout_id)
        os.kill(os.getpid(), signal.SIGKILL)
    agl.emit_reward(0.25)
    return float(len(answer))


@agl.algo
async def algorithm(*, store: agl.LightningStore, train_dataset: list[Any]) -> None:
    """Have every task done, and read what came of it."""
    template = agl.PromptTemplate(template="Why {question}?", engine="f-string")
    await store.add_resources({"prompt_template": template})
    requests = [
        agl.EnqueueRolloutRequest(input=task, mode="train", config=config(task))
        for task in train_dataset
    ]
    queued = await store.enqueue_many_rollouts(requests)
    finished = await store.wait_for_rollouts(
        rollout_ids=[rollout.rollout_id for rollout in queued], timeout=200
    )
    for rollout in finished:
        spans = await store.query_spans(rollout.rollout_id, "latest")
        attempts = await store.query_attempts(rollout.rollout_id)
        told = {
            "rollout_id": rollout.rollout_id,
            "input": rollout.input,
            "status": rollout.status,
            "attempts": [attempt.status for attempt in attempts],
            "reward": agl.find_final_reward(list(spans)),
        }
        print(json.dumps(told), flush=True)


def main(address: str, tasks: list[Any], options: dict[str, Any]) -> None:
    """Train; `options` are arguments of the Trainer."""
    store = GrpcLightningStore(address)
    # The runners are forks of a process that has used the store.
    asyncio.run(store.statistics())
    trainer = agl.Trainer(
        store=store,
        algorithm=algorithm,
        tracer=agl.OtelTracer(),
        runner={
            "type": "agentlightning.LitAgentRunner",
            "poll_interval": 0.2,
            "interval_jitter": 0.1,
            "heartbeat_interval": 0.5,
        },
        **options,
    )
    trainer.fit(agent, tasks)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]))
