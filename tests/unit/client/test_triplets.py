"""list_triplets of both clients: its requests, and no duplicates after a break."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from lightningstore.client import AttemptTriplets, Triplet
from lightningstore.v1 import triplet_pb2

from .fakes import FakeServer, Fault, unavailable
from .twins import Twin

pytestmark = pytest.mark.asyncio


def part(rollout_id: str, *numbers: int, attempt: str = "at", complete: bool = True) -> Any:
    return triplet_pb2.AttemptTriplets(
        attempt={"rollout_id": rollout_id, "attempt_id": attempt},
        triplets=[{"sequence_id": number} for number in numbers],
        complete=complete,
        warning_count=int(complete),
    )


def answers(*messages: Any) -> Any:
    def handle(request: Any) -> Iterator[Any]:
        del request
        for item in messages:
            if isinstance(item, Fault):
                raise item
            yield triplet_pb2.ListTripletsResponse(attempts=item)

    return handle


async def test_attempts_come_whole_and_once_whatever_breaks(twin: Twin, server: FakeServer) -> None:
    tries = iter(
        [
            answers(
                [part("a", 1), part("b", 1, attempt="at1"), part("b", 1, complete=False)],
                unavailable(),
            ),
            answers([part("b", 1, attempt="at1"), part("b", 1, complete=False)], [part("b", 2)]),
        ]
    )

    def handle(request: Any) -> Iterator[Any]:
        yield from next(tries)(request)

    server.on["ListTriplets"] = handle
    found = await twin.call(
        "list_triplets", ["a", "b", "c", "a"], "", final_rewards={"a": 1, "c": 2}
    )
    assert [(a.rollout_id, a.attempt_id, [t.sequence_id for t in a]) for a in found] == [
        ("a", "at", [1]),
        ("b", "at1", [1]),
        ("b", "at", [1, 2]),
    ]
    assert [a.warning_count for a in found] == [1, 1, 1]
    first, again = server.requests("ListTriplets")
    assert list(first.rollout_ids) == ["a", "b", "c", "a"]
    assert (list(again.rollout_ids), dict(again.final_rewards)) == (["b", "c"], {"c": 2.0})


async def test_options_are_sent_as_they_are_given(twin: Twin, server: FakeServer) -> None:
    server.on["ListTriplets"] = answers()
    await twin.call("list_triplets", ["a"])
    await twin.call(
        "list_triplets",
        ["a", "b"],
        "",
        source="proxy",
        llm_call_match="x",
        agent_match="y",
        exclude_calls_under_rewards=False,
        deduplicate=False,
        repair_hierarchy=False,
        skip_without_tokens=True,
        reward_policy="by_sequence",
        final_rewards=1,
    )
    plain, full = server.requests("ListTriplets")
    assert (plain.attempt_id, plain.source, plain.reward_policy) == ("latest", 1, 0)
    assert plain.deduplicate
    assert plain.repair_hierarchy
    assert plain.exclude_calls_under_rewards
    assert full == triplet_pb2.ListTripletsRequest(
        rollout_ids=["a", "b"],
        source=triplet_pb2.TRIPLET_SOURCE_PROXY,
        llm_call_match="x",
        agent_match="y",
        exclude_calls_under_rewards=False,
        deduplicate=False,
        repair_hierarchy=False,
        skip_without_tokens=True,
        reward_policy=triplet_pb2.REWARD_POLICY_BY_SEQUENCE,
        final_rewards={"a": 1, "b": 1},
    )


async def test_wrong_words_are_told_at_once(twin: Twin) -> None:
    with pytest.raises(TypeError, match="rollout_ids"):
        twin.client.list_triplets("ro-1")
    with pytest.raises(ValueError, match="tracer, proxy"):
        twin.client.list_triplets(["r"], source="nowhere")


async def test_triplets_show_their_message_and_survive_pickling() -> None:
    message = triplet_pb2.Triplet(
        prompt={"token_ids": [1], "content_json": b'[{"role":"user"}]', "image_urls": ["u"]},
        response={"token_ids": [2], "logprobs": [-0.5], "logprobs_json": b'[{"logprob":-0.5}]'},
        reward={"value": 1, "dimensions": [{"name": "p", "value": 1}]},
        request_json=b'{"model":"m"}',
        agent_name="a",
        span_id="00",
    )
    shown = Triplet(message, "r", "at")
    assert (shown.prompt_token_ids, shown.response_token_ids) == ([1], [2])
    assert (shown.prompt, shown.response, shown.image_urls) == ([{"role": "user"}], None, ["u"])
    assert (shown.logprobs, shown.logprobs_content) == ([-0.5], [{"logprob": -0.5}])
    assert (shown.reward, shown.rewards) == (1.0, {"p": 1.0})
    assert (shown.request_metadata, shown.response_metadata) == ({"model": "m"}, {})
    assert (shown.agent_name, shown.span_id) == ("a", "00")
    back = pickle.loads(pickle.dumps(shown))
    assert back == shown
    assert back != Triplet(message, "r", "other")
    attempt = AttemptTriplets("r", "at")
    attempt.add(part("r", 1, 2))
    copied = pickle.loads(pickle.dumps(attempt))
    assert copied == attempt
    assert copied.rollout_id == "r"


async def test_triplets_of_many_rollouts_are_asked_for_in_parts(
    twin: Twin, server: FakeServer
) -> None:
    def handle(request: Any) -> Any:
        first = request.rollout_ids[0]
        attempt = {"rollout_id": first, "attempt_id": "at-1"}
        yield triplet_pb2.ListTripletsResponse(attempts=[{"attempt": attempt, "complete": True}])

    server.on["ListTriplets"] = handle
    ids = [str(number) for number in range(20_001)]
    found = await twin.call(
        "list_triplets", ids, final_rewards={"0": 1.0, "10000": 2.0, "20000": 3.0}
    )
    assert [attempt.rollout_id for attempt in found] == ["0", "10000", "20000"]
    requests = server.requests("ListTriplets")
    assert [len(request.rollout_ids) for request in requests] == [10_000, 10_000, 1]
    assert [dict(request.final_rewards) for request in requests] == [
        {"0": 1.0},
        {"10000": 2.0},
        {"20000": 3.0},
    ]
