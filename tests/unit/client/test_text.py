"""What cannot be sent is repaired or refused, and a refusal names the field."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from lightningstore.client import (
    LLM,
    CustomResource,
    Failure,
    LightningStore,
    PromptTemplate,
    RolloutSpec,
)
from lightningstore.client._values.convert import from_json, to_json
from lightningstore.client._values.text import valid
from lightningstore.v1 import rollout_pb2

from .fakes import FakeServer
from .twins import Twin

HALF = "x\udcff"


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("plain", "plain"),
        ("ä𝄞", "ä𝄞"),
        ("\ud834\udd1e", "𝄞"),
        ("\udd1e\ud834", "\ufffd\ufffd"),
        ("a\ud800b", "a\ufffdb"),
        ("\udcff", "\ufffd"),
    ],
)
def test_halves_of_pairs_are_joined_or_replaced(text: str, mended: str) -> None:
    assert valid(text) == mended
    assert to_json([text]).decode() == f'["{mended}"]'
    assert Failure(text, text).to_message().message == mended
    assert PromptTemplate(text).to_message().prompt_template.template == mended
    assert CustomResource(text, text).to_message().custom.type == mended


CALLS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda s: s.get_rollout(HALF), "rollout_id"),
    (lambda s: s.get_attempt("r", HALF), "attempt_id"),
    (lambda s: s.list_attempts("r", page_token=HALF), "page_token"),
    (lambda s: s.enqueue_rollout(1, group_id=HALF), "rollouts[0]: group_id"),
    (
        lambda s: s.enqueue_rollouts([RolloutSpec(1), {"input": 1, "rollout_id": HALF}]),
        "rollouts[1]",
    ),
    (lambda s: s.start_rollout(1, worker_id=HALF), "worker_id"),
    (lambda s: s.start_rollout(1, resources_id=HALF), "resources_id"),
    (lambda s: s.dequeue_rollouts(worker_id=HALF), "worker_id"),
    (lambda s: s.dequeue_rollouts(request_id=HALF), "request_id"),
    (lambda s: s.start_attempt(HALF), "rollout_id"),
    (lambda s: s.update_attempt("r", "a", worker_id=HALF), "worker_id"),
    (lambda s: s.update_rollout("r", group_id=HALF), "group_id"),
    (lambda s: s.cancel_rollouts(["r", HALF]), "rollout_ids[1]"),
    (lambda s: s.delete_rollouts(["r", HALF]), "rollout_ids[1]"),
    (lambda s: s.list_rollouts(group_ids=[HALF]), "group_ids[0]"),
    (lambda s: s.heartbeat("w", attempts=[("r", HALF)]), "attempts[0][1]"),
    (lambda s: s.get_worker(HALF), "worker_id"),
    (lambda s: s.list_workers(order_by=HALF), "order_by"),
    (lambda s: s.add_resources({"a": 1, HALF: 1}), "the name"),
    (lambda s: s.add_resources({"a": LLM("http://h", HALF)}), "resources['a']: model"),
    (lambda s: s.get_resources(HALF), "resources_id"),
    (lambda s: s.allocate_sequence_ids([("r", HALF, 1)]), "demands[0][1]"),
]


@pytest.mark.parametrize(("call", "field"), CALLS)
@pytest.mark.asyncio
async def test_an_id_that_is_not_utf8_is_refused_by_the_name_of_its_field(
    twin: Twin, call: Any, field: str
) -> None:
    with pytest.raises(ValueError, match="valid UTF-8: the character at index 1 is ") as caught:
        result = call(twin.client)
        if inspect.isawaitable(result):
            await result
    assert str(caught.value).startswith(field) or f" {field} must" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("rollout_ids[1]", lambda s: s.wait_for_rollouts(["a", HALF])),
        ("group_ids[0]", lambda s: s.wait_for_rollouts(group_ids=[HALF])),
        ("store_id", lambda s: s.watch_rollouts(1, store_id=HALF)),
        ("rollout_ids[0]", lambda s: s.list_triplets([HALF])),
        ("rollout_id", lambda s: s.query_spans(HALF)),
    ],
)
def test_streams_refuse_such_ids_when_they_are_made(name: str, call: Any) -> None:
    with LightningStore("127.0.0.1:1") as store, pytest.raises(ValueError, match="UTF-8") as caught:
        call(store)
    assert str(caught.value).startswith(name)


class Opaque:
    pass


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (
            {"a": [1, float("nan")]},
            ValueError,
            "input['a'][1] is nan: JSON has finite numbers only",
        ),
        (float("-inf"), ValueError, "input is -inf"),
        ({"n": 10**5000}, ValueError, "input['n']: Exceeds the limit"),
        ({"s": {1}}, TypeError, "input['s'] is of type set, which has no JSON"),
        ([[], [Opaque()]], TypeError, "input[1][0] is of type Opaque"),
        ({(1, 2): 3}, TypeError, "input: keys must be"),
    ],
)
def test_a_part_of_an_input_that_has_no_json_is_named(
    value: Any, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as caught:
        RolloutSpec(value).to_message()
    assert str(caught.value).startswith(text)


def test_a_value_that_contains_itself_or_is_endless_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="metadata: Circular"):
        RolloutSpec(1, metadata={"c": circle}).to_message()
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="input: maximum recursion"):
        RolloutSpec(deep).to_message()
    while isinstance(deep, list):  # so that freeing it does not recurse either
        deep = deep.pop()


def test_an_integer_that_python_does_not_read_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"^input: Exceeds the limit .* 5001 digits"):
        from_json(b"9" * 5001, "input")


@pytest.mark.asyncio
async def test_an_input_with_half_a_pair_is_sent_repaired(twin: Twin, server: FakeServer) -> None:
    server.on["EnqueueRollouts"] = lambda request: rollout_pb2.EnqueueRolloutsResponse(
        rollouts=[{"rollout_id": request.rollouts[0].rollout_id}]
    )
    await twin.call("enqueue_rollout", {HALF: HALF})
    [request] = server.requests("EnqueueRollouts")
    assert request.rollouts[0].input_json.decode() == '{"x\ufffd":"x\ufffd"}'
