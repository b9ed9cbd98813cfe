"""The same random calls on agentlightning's own store and on the adapter: the same answers and errors.

The calls keep to what docs/agentlightning.md does not list as different.
"""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from agentlightning.store.base import LightningStore
from agentlightning.store.memory import InMemoryLightningStore
from agentlightning.types import EnqueueRolloutRequest, PromptTemplate, RolloutConfig, Span
from lightningstore.integrations.agentlightning import GrpcLightningStore
from pydantic import BaseModel

from tests.integrations.agentlightning.conftest import serving

pytestmark = pytest.mark.asyncio

CALLS = 150
IDS = re.compile(r"\b(ro|at|rs)-[0-9a-f]{8,12}\b")
RETRIED = RolloutConfig(max_attempts=2, retry_condition=["failed"])
STATUSES = ["queuing", "preparing", "running", "requeuing", "succeeded", "failed", "cancelled"]
SORTS = [None, "rollout_id", "status", "mode", "start_time", "end_time"]


class Side:
    """One of the two stores, with the names that its ids have in both."""

    def __init__(self, store: LightningStore) -> None:
        self.store = store
        self._names: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    def id(self, name: str) -> str:
        return self._ids.get(name, name)

    def named(self, text: str) -> str:
        def name(found: re.Match[str]) -> str:
            if found[0] not in self._names:
                self._names[found[0]] = f"{found[1]}:{len(self._names)}"
                self._ids[self._names[found[0]]] = found[0]
            return self._names[found[0]]

        return IDS.sub(name, text)

    async def answer(self, method: str, arguments: dict[str, Any]) -> Any:
        """Make a call and return its answer, or the error, with names for ids and times left out."""
        try:
            found = await getattr(self.store, method)(**self._with_ids(arguments))
        except Exception as error:
            kind = next(k for k in (ValueError, TypeError, RuntimeError) if isinstance(error, k))
            return kind.__name__, self.named(str(error))
        return self._plain(found)

    def _with_ids(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.id(value)
        if isinstance(value, dict):
            return {key: self._with_ids(item) for key, item in value.items()}
        if isinstance(value, Span):
            fields = {key: self.id(getattr(value, key)) for key in ("rollout_id", "attempt_id")}
            return value.model_copy(update=fields)
        return [self._with_ids(item) for item in value] if isinstance(value, list) else value

    def _plain(self, value: Any) -> Any:
        if isinstance(value, BaseModel):
            value = value.model_dump()
        if isinstance(value, dict):
            return {
                key: item is not None if key.endswith("_time") else self._plain(item)
                for key, item in value.items()
            }
        if isinstance(value, str):
            return self.named(value)
        return [self._plain(item) for item in value] if isinstance(value, list | tuple) else value


class Caller:
    """Makes up calls."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.rollouts = ["ro-nobody"]
        self.attempts: list[tuple[str, str]] = [("ro-nobody", "at-nobody")]
        self._spans = 0

    def call(self) -> tuple[str, dict[str, Any]]:
        makers = [self._enqueue, self._claim, self._span, self._report, self._query, self._get]
        weights = [2, 3, 3, 2, 3, 4]
        return self._random.choices(makers, weights)[0]()

    def _pick(self, *choices: Any) -> Any:
        return self._random.choice(choices)

    def _enqueue(self) -> tuple[str, dict[str, Any]]:
        fields = {
            "input": self._pick("x", 1, None, {"a": [1, 2.5]}),
            "mode": self._pick(None, "train", "val", "test"),
            "config": self._pick(None, RETRIED),
            "metadata": self._pick({"k": "v"}, {"n": {"m": []}}),
        }
        if self._pick(True, False):
            requests = [EnqueueRolloutRequest(**fields) for _ in range(self._pick(0, 1, 3))]
            return "enqueue_many_rollouts", {"rollouts": requests}
        return "enqueue_rollout", fields

    def _claim(self) -> tuple[str, dict[str, Any]]:
        worker = {"worker_id": self._pick(None, "w1", "w2")}
        if self._pick(True, False):
            return "dequeue_many_rollouts", {**worker, "limit": self._pick(0, 1, 2)}
        return "dequeue_rollout", worker

    def _span(self) -> tuple[str, dict[str, Any]]:
        rollout_id, attempt_id = self._pick(*self.attempts)
        self._spans += self._pick(0, 1, 1)  # at times one that is there
        number = self._spans + 1
        span = Span.from_attributes(
            rollout_id=rollout_id,
            attempt_id=attempt_id,
            sequence_id=number,
            trace_id=f"{number:032x}",
            span_id=f"{number:016x}",
            name=f"step{number % 3}",
            attributes={"n": number, "text": "é", "list": [1.5, 2.5]},
            start_time=float(number),
            end_time=number + 0.25,
        )
        if self._pick(True, False):
            return "add_many_spans", {"spans": [span]}
        return "add_span", {"span": span}

    def _report(self) -> tuple[str, dict[str, Any]]:
        rollout_id, attempt_id = self._pick(*self.attempts)
        fields = self._pick({"status": "succeeded"}, {"status": "failed"}, {"metadata": {"m": 1}})
        return "update_attempt", {"rollout_id": rollout_id, "attempt_id": attempt_id, **fields}

    def _query(self) -> tuple[str, dict[str, Any]]:
        cut = {"limit": self._pick(-1, 0, 2, 100), "offset": self._pick(0, 1)}
        if self._pick(True, False):
            rollout_id, attempt_id = self._pick(*self.attempts[1:], (None, None))
            if rollout_id is not None:
                filters = self._pick({}, {"name": "step1"}, {"name_contains": "tep", "name": "x"})
                logic = {"filter_logic": self._pick("and", "or") if filters else "and"}
                ids = {"rollout_id": rollout_id, "attempt_id": self._pick(attempt_id, None)}
                return "query_spans", {**ids, **filters, **logic, **cut}
        filters = self._pick({}, {"status_in": self._random.sample(STATUSES, 3)}, {"status_in": []})
        order = self._pick("asc", "desc")
        chosen = {"rollout_id_in": self._random.sample(self.rollouts, min(3, len(self.rollouts)))}
        return "query_rollouts", {
            **filters,
            **self._pick({}, chosen),
            **cut,
            "filter_logic": self._pick("and", "or"),
            "sort_by": self._pick(None, "start_time"),
            "sort_order": order,
        }

    def _get(self) -> tuple[str, dict[str, Any]]:
        rollout_id = self._pick(*self.rollouts)
        known = self._pick(*self.rollouts[1:], None)
        choices: list[tuple[str, dict[str, Any]]] = [
            ("get_rollout_by_id", {"rollout_id": rollout_id}),
            ("start_attempt", {"rollout_id": "ro-nobody"}),
            ("get_resources_by_id", {"resources_id": "rs-nobody"}),
            ("get_worker_by_id", {"worker_id": "nobody"}),
            ("update_worker", {"worker_id": "w9", "heartbeat_stats": None}),
        ]
        if known is not None:
            choices += [
                ("query_attempts", {"rollout_id": known}),
                ("get_latest_attempt", {"rollout_id": known}),
                ("wait_for_rollouts", {"rollout_ids": [known], "timeout": 0}),
            ]
        return self._pick(*choices)

    def learn(self, answer: Any) -> None:
        """Take note of the rollouts and attempts in an answer."""
        for item in answer if isinstance(answer, list) else [answer]:
            if not isinstance(item, dict) or "rollout_id" not in item:
                continue
            if item["rollout_id"] not in self.rollouts:
                self.rollouts.append(item["rollout_id"])
            if isinstance(attempt := item.get("attempt"), dict):
                pair = attempt["rollout_id"], attempt["attempt_id"]
                if pair not in self.attempts:
                    self.attempts.append(pair)


def without_words(method: str, answer: Any) -> Any:
    """Drop the words of errors that agentlightning leaves to Python."""
    return answer[:1] if method == "update_worker" and isinstance(answer, tuple) else answer


@pytest.mark.parametrize("seed", range(6))
async def test_random_calls_have_the_same_answers(seed: int, tmp_path: Any) -> None:
    with serving(tmp_path, "--backend", "memory") as address:
        sides = [Side(InMemoryLightningStore()), Side(GrpcLightningStore(address))]
        for side in sides:
            template = PromptTemplate(template="t", engine="f-string")
            await side.answer("add_resources", {"resources": {"p": template}})
        caller, ended = Caller(seed), set[Any]()
        for number in range(CALLS):
            method, arguments = caller.call()
            span = arguments.get("span") or next(iter(arguments.get("spans", [])), None)
            if {arguments.get("attempt_id"), span and span.attempt_id} & ended and (
                method != "query_spans"
            ):
                continue  # what has ended is final here; there a late span takes a retry out of the queue
            wanted, found = [
                without_words(method, await side.answer(method, arguments)) for side in sides
            ]
            assert found == wanted, f"call {number}: {method}({arguments})"
            caller.learn(found)
            if "status" in arguments:
                ended.add(arguments["attempt_id"])
        assert len(caller.attempts) > 5, "enough has happened"
        await sides[1].store.close()  # type: ignore[attr-defined]
