"""ListTriplets: which attempts, which options, what is refused, and how the answer comes."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from lightningstore.client import (
    AttemptTriplets,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from lightningstore.service.operations import traces
from lightningstore.v1.span_pb2 import SpanBatch
from lightningstore.v1.triplet_pb2 import ListTripletsRequest

from tests.contract.conftest import World
from tests.contract.helpers import claim, enqueue, refused
from tests.traces import TRACES, batch, load, shown, span

pytestmark = pytest.mark.asyncio
CALL = "openai.chat.completion"


async def listed(world: World, *args: Any, **options: Any) -> list[AttemptTriplets]:
    """Return all that a list of triplets yields."""
    return [attempt async for attempt in world.store.list_triplets(*args, **options)]


async def traced(world: World, *spans: Any) -> str:
    """Claim a rollout, store spans for it, and return its id."""
    rollout, attempt = await claim(world)
    sent = SpanBatch(rollout_id=rollout.rollout_id, attempt_id=attempt.attempt_id, spans=spans)
    await world.store.add_spans(sent)
    return rollout.rollout_id


def call(word: str, start: float = 1, **attributes: Any) -> Any:
    return span(word, CALL, "", (start, start + 0.5), {"gen_ai.response.id": word, **attributes})


def reward(value: Any, at: float) -> Any:
    name = "agentlightning.annotation"
    return span(f"reward{at}", name, "", (at, at), {"agentlightning.reward.0.value": value})


def ids(attempts: list[AttemptTriplets]) -> list[list[str]]:
    return [[triplet.response_id for triplet in attempt] for attempt in attempts]


@pytest.mark.parametrize("name", TRACES)
async def test_recorded_trace_in_any_order_of_arrival(world: World, name: str) -> None:
    trace = load(name)
    options = dict(trace.get("options", {}))
    for word, enum in (("source", "TRIPLET_SOURCE_"), ("reward_policy", "REWARD_POLICY_")):
        if word in options:
            options[word] = options[word].removeprefix(enum).lower()
    rollout, attempt = await claim(world)
    sent = batch(trace["spans"], rollout.rollout_id, attempt.attempt_id)
    pairs = list(zip(sent.spans, sent.sequence_ids, strict=True))
    random.Random(5).shuffle(pairs)
    for one, number in pairs:
        part = SpanBatch(rollout_id=sent.rollout_id, attempt_id=sent.attempt_id)
        part.spans.append(one)
        part.sequence_ids.append(number)
        await world.store.add_spans(part)
    (found,) = await listed(world, [rollout.rollout_id], **options)
    assert (found.rollout_id, found.attempt_id) == (rollout.rollout_id, attempt.attempt_id)
    assert [shown(triplet) for triplet in found] == trace["triplets"]
    assert [r.value for r in found.unmatched_rewards] == trace.get("unmatched", [])
    assert found.warnings == []


async def test_messages_in_one_form_take_the_place_of_what_was_traced(world: World) -> None:
    image = "https://example.test/cat.png"
    asked = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}]},
    ]
    answers = [{"role": "model", "parts": [{"type": "text", "content": "A cat"}]}]
    prompt = {"gen_ai.input.messages": json.dumps(asked)}
    rollout_id = await traced(
        world,
        call("a", **prompt, **{"gen_ai.output.messages": json.dumps(answers)}),
        # The answer is in the prompt of the next call.
        call("b", 2, **prompt),
        call("c", 3, **{"gen_ai.input.messages": json.dumps([*asked, *answers])}),
    )
    ((first, second, _),) = await listed(world, [rollout_id], as_messages=True)
    for triplet in (first, second):
        system, user = triplet.prompt_messages
        assert (system.role, system.parts[0].text) == ("system", "Be brief.")
        assert (user.role, user.parts[0].image_url) == ("user", image)
        (answer,) = triplet.response_messages
        assert (answer.role, answer.parts[0].text) == ("assistant", "A cat")
        assert (triplet.prompt, triplet.response, triplet.image_urls) == (None, None, [])
    ((plain, *_),) = await listed(world, [rollout_id])
    assert (plain.prompt, plain.response, plain.image_urls) == (asked, answers, [image])
    assert (plain.prompt_messages, plain.response_messages) == ([], [])


async def test_rollouts_come_in_the_order_asked_for_and_once(world: World) -> None:
    rollouts = [await traced(world, call(word)) for word in "abc"]
    (empty,) = await enqueue(world, 1)
    order = [rollouts[2], empty, rollouts[0], rollouts[2], rollouts[1]]
    found = await listed(world, order)
    assert [attempt.rollout_id for attempt in found] == list(dict.fromkeys(order))
    assert ids(found) == [["c"], [], ["a"], ["b"]]
    assert found[1].attempt_id == ""


async def test_latest_one_or_all_attempts(world: World) -> None:
    rollout_id = await traced(world, call("old"))
    (first,) = await world.store.list_attempts(rollout_id)
    await world.store.start_attempt(rollout_id)
    new = SpanBatch(rollout_id=rollout_id, attempt_id="latest", spans=[call("old"), call("new", 3)])
    await world.store.add_spans(new)
    assert ids(await listed(world, [rollout_id])) == [["old", "new"]]
    assert ids(await listed(world, [rollout_id], first.attempt_id)) == [["old"]]
    assert ids(await listed(world, [rollout_id], "")) == [["old"], ["old", "new"]]


async def test_final_rewards_leftovers_and_warnings(world: World) -> None:
    spans = [
        call("a"),
        call("b", 2, prompt_token_ids=["x"]),
        reward(1, 3),
        reward(2, 4),
        reward(3, 5),
    ]
    rollout_id, other = await traced(world, *spans), await traced(world, call("c"))
    (found, rest) = await listed(world, [rollout_id, other], final_rewards={rollout_id: 0.5})
    assert [triplet.reward for triplet in found] == [2.0, 0.5]
    assert [triplet.reward for triplet in rest] == [None]
    assert [(r.value, r.sequence_id) for r in found.unmatched_rewards] == [(3.0, 5)]
    assert [(w.attribute, w.sequence_id) for w in found.warnings] == [("prompt_token_ids", 2)]
    assert found.warning_count == 1
    both = await listed(world, [rollout_id, other], final_rewards=0.25)
    assert [attempt[-1].reward for attempt in both] == [0.25, 0.25]


async def test_final_reward_without_a_call_is_told(world: World) -> None:
    (found,) = await listed(world, [await traced(world, reward(1, 3))], final_rewards=1.0)
    assert found == []
    assert any("final reward" in warning.message for warning in found.warnings)
    assert [r.value for r in found.unmatched_rewards] == [1.0]


async def test_warnings_are_counted_and_the_first_listed(world: World) -> None:
    spans = [call(str(n), n + 1, prompt_token_ids=["x"]) for n in range(150)]
    (found,) = await listed(world, [await traced(world, *spans)])
    assert len(found) == found.warning_count == 150
    assert [w.sequence_id for w in found.warnings] == list(range(1, 101))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("rollout_ids", {"rollout_ids": []}),
        ("rollout_ids", {"rollout_ids": ["r", ""]}),
        ("attempt_id", {"rollout_ids": ["a", "b"], "attempt_id": "at-1"}),
        ("llm_call_match", {"llm_call_match": "(a"}),
        ("llm_call_match", {"llm_call_match": "a" * 513}),
        ("llm_call_match", {"llm_call_match": "(?=a)"}),
        ("agent_match", {"agent_match": "*"}),
        ("agent_match", {"agent_match": r"(a)\1"}),
        ("agent_match", {"agent_match": "((a{500}){500}){500}"}),
        ("agent_match", {"agent_match": "x", "source": "TRIPLET_SOURCE_PROXY"}),
        ("llm_call_match", {"llm_call_match": "x", "source": "TRIPLET_SOURCE_PROXY"}),
        ("reward_policy", {"reward_policy": 1, "source": "TRIPLET_SOURCE_PROXY"}),
        ("reward_policy", {"reward_policy": 99}),
        ("source", {"source": 99}),
        ("final_rewards['x']", {"final_rewards": {"x": 1.0}}),
        ("final_rewards['r']", {"rollout_ids": ["r"], "final_rewards": {"r": float("nan")}}),
    ],
    ids=str,
)
async def test_bad_fields_are_named(world: World, field: str, change: dict[str, Any]) -> None:
    request = ListTripletsRequest(**{"rollout_ids": ["r"], **change})
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field) as _:
        _ = [a async for a in world.store._transport.server_stream("ListTriplets", request, None)]


async def test_a_bad_expression_is_told_what_is_right(world: World) -> None:
    with pytest.raises(InvalidArgumentError, match=r"RE2.*look-around") as caught:
        await listed(world, ["r"], llm_call_match="(a")
    assert "missing )" in str(caught.value)
    assert caught.value.field_violations[0].field == "llm_call_match"


async def test_costly_expressions_cost_nothing(world: World) -> None:
    rollout_id = await traced(world, span("a", "a" * 100_000 + "!", "", (1, 2)), call("b"))
    for expression in (r"^(a*)*c", r"^(a|aa)+$", r"(a+a+)+y", r"(.*)(.*)(.*)(.*)[xyz]"):
        assert ids(await listed(world, [rollout_id], llm_call_match=expression)) == [[]]


async def test_unknown_ids_are_told_before_anything_is_sent(world: World) -> None:
    rollout_id = await traced(world, call("a"))
    async with refused(world, NotFoundError, "ROLLOUT_NOT_FOUND", "ro-nobody"):
        await listed(world, [rollout_id, "ro-nobody"])
    async with refused(world, NotFoundError, "ATTEMPT_NOT_FOUND", "at-nobody"):
        await listed(world, [rollout_id], "at-nobody")
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "rollout_ids"):
        await listed(world, ["r"] * 10_001)


async def test_evicted_spans_are_refused(world: World) -> None:
    rollout_id = await traced(world, call("a"))
    assert world.service is not None
    store = world.service
    store.engine.live.shelf.evicted.add(store.engine.live.state.entries[rollout_id].key)
    with pytest.raises(FailedPreconditionError) as caught:
        await listed(world, [rollout_id])
    assert caught.value.reason == "ERROR_REASON_SPANS_EVICTED"


async def test_large_answers_come_in_chunks(world: World) -> None:
    rollout, attempt = await claim(world)
    text = "x" * 30_000
    for n in range(8):
        spans = [
            call(f"{n}-{i}", n * 100 + i + 1, **{"gen_ai.prompt.0.content": text})
            for i in range(100)
        ]
        await world.store.add_spans(
            SpanBatch(rollout_id=rollout.rollout_id, attempt_id=attempt.attempt_id, spans=spans)
        )
    (found,) = await listed(world, [rollout.rollout_id])
    assert ids([found]) == [[f"{n}-{i}" for n in range(8) for i in range(100)]]
    request = ListTripletsRequest(rollout_ids=[rollout.rollout_id])
    answers = world.store._transport.server_stream("ListTriplets", request, None)
    parts = [answer async for answer in answers]
    assert len(parts) >= 8
    assert max(part.ByteSize() for part in parts) < 3 << 20
    assert [part.attempts[-1].complete for part in parts] == [False] * (len(parts) - 1) + [True]


async def test_spans_that_are_not_held_are_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "HELD_BYTES", 1000)
    rollout, attempt = await claim(world)
    words = [f"c{n}" for n in range(60)]
    for start in range(6):
        # Each batch has calls from all over the trace, so their order is not that of the batches.
        spans = [call(word, int(word[1:]) + 1) for word in words[start::6]]
        await world.store.add_spans(
            SpanBatch(rollout_id=rollout.rollout_id, attempt_id=attempt.attempt_id, spans=spans)
        )
    assert ids(await listed(world, [rollout.rollout_id])) == [words]


async def test_others_are_served_meanwhile(world: World) -> None:
    spans = [call(str(n), n + 1) for n in range(3000)]
    rollout_ids = [await traced(world, *spans) for _ in range(2)]
    task = asyncio.create_task(listed(world, rollout_ids))
    calls = 0
    while not task.done():
        await world.store.get_statistics()
        await asyncio.sleep(0)
        calls += 1
    assert len((await task)[1]) == 3000
    assert calls > 2  # one while nothing else ran would be one


async def test_list_given_up_half_way_harms_nobody(world: World) -> None:
    rollout_ids = [await traced(world, call(word)) for word in "ab"]
    found = world.store.list_triplets(rollout_ids)
    assert (await found.__anext__())[0].response_id == "a"
    await found.aclose()
    assert ids(await listed(world, rollout_ids)) == [["a"], ["b"]]
