"""ListSamples: which attempts, what an answer says of them, which options, what is refused, how answers come."""

from __future__ import annotations

import random
from typing import Any

import pytest
from lightningstore.client import (
    AttemptSamples,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    RolloutStatus,
)
from lightningstore.service.operations import samples as list_samples
from lightningstore.service.operations import traces
from lightningstore.v1.sample_pb2 import ListSamplesRequest
from lightningstore.v1.span_pb2 import SpanBatch

from tests.contract.conftest import World
from tests.contract.helpers import claim, enqueue, refused
from tests.traces import batch, load, span

pytestmark = pytest.mark.asyncio


async def listed(world: World, *args: Any, **options: Any) -> list[AttemptSamples]:
    """Return all that a list of samples yields."""
    return [attempt async for attempt in world.store.list_samples(*args, **options)]


async def traced(world: World, *spans: Any, **spec: Any) -> str:
    """Claim a rollout, store spans for it, and return its id."""
    rollout, attempt = await claim(world, **spec)
    sent = SpanBatch(rollout_id=rollout.rollout_id, attempt_id=attempt.attempt_id, spans=spans)
    await world.store.add_spans(sent)
    return rollout.rollout_id


def call(word: str, prompt: list[int], response: list[int], **attributes: Any) -> Any:
    told = {"prompt_token_ids": prompt, "response_token_ids": response, **attributes}
    return span(word, "openai.chat.completion", "", (1, 2), {"gen_ai.response.id": word, **told})


TURNS = [call("t1", [1, 2], [3]), call("t2", [1, 2, 3, 4], [5, 6])]


def tokens(attempts: list[AttemptSamples]) -> list[list[list[int]]]:
    return [[sample.token_ids.tolist() for sample in attempt] for attempt in attempts]


async def test_turns_are_one_row_with_all_that_is_known(world: World) -> None:
    rollout_id = await traced(world, *TURNS)
    await world.store.update_attempt(
        rollout_id, "latest", status="succeeded", reward=0.5, scores={"style": 1.0}
    )
    (found,) = await listed(world, [rollout_id])
    (sample,) = found
    assert sample.token_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert sample.mask.tolist() == [False, False, True, False, True, True]
    assert sample.logprobs is None
    assert (sample.reward, sample.scores) == (0.5, {"style": 1.0})
    assert (sample.index, sample.prompt_token_count, sample.turn_count) == (0, 2, 2)
    assert [(s.first_token, s.end_token) for s in sample.segments] == [(2, 3), (4, 6)]
    assert found.status is RolloutStatus.SUCCEEDED
    assert found.queue_seconds is not None
    assert found.run_seconds is not None
    assert (found.warnings, found.warning_count) == ([], 0)


async def test_each_turn_arrives_alone_and_in_any_order(world: World) -> None:
    rollout, attempt = await claim(world)
    turns = [call(str(n), list(range(2 * n + 1)), [2 * n + 1]) for n in range(8)]
    numbered = list(enumerate(turns, 1))
    random.Random(5).shuffle(numbered)
    for number, one in numbered:
        part = SpanBatch(rollout_id=rollout.rollout_id, attempt_id=attempt.attempt_id)
        part.spans.append(one)
        part.sequence_ids.append(number)
        await world.store.add_spans(part)
    (found,) = await listed(world, [rollout.rollout_id])
    assert tokens([found]) == [[list(range(16))]]
    assert found[0].mask.tolist() == [False, True] * 8


async def test_the_proxys_record_gives_rows(world: World) -> None:
    rollout, attempt = await claim(world)
    trace = load("litellm_proxy")
    await world.store.add_spans(batch(trace["spans"], rollout.rollout_id, attempt.attempt_id))
    assert tokens(await listed(world, [rollout.rollout_id], source="proxy")) == [
        [[1, 2, 3, 4], [5, 6, 7]]
    ]


async def test_each_call_alone_without_merging(world: World) -> None:
    (found,) = await listed(world, [await traced(world, *TURNS)], merge="none")
    assert tokens([found]) == [[[1, 2, 3], [1, 2, 3, 4, 5, 6]]]
    assert [sample.index for sample in found] == [0, 1]


async def test_rollouts_come_in_the_order_asked_for_with_their_groups(world: World) -> None:
    first, second = [await traced(world, *TURNS[:1], group_id="g") for _ in range(2)]
    (empty,) = await enqueue(world, 1)
    found = await listed(world, [second, empty, first, second])
    assert [attempt.rollout_id for attempt in found] == [second, empty, first]
    assert tokens(found) == [[[1, 2, 3]], [], [[1, 2, 3]]]
    assert [attempt.group_id for attempt in found] == ["g", "", "g"]
    assert [sample.group_id for attempt in found for sample in attempt] == ["g", "g"]
    assert (found[1].attempt_id, found[1].queue_seconds) == ("", None)


async def test_latest_one_or_all_attempts(world: World) -> None:
    rollout_id = await traced(world, TURNS[0])
    (first,) = await world.store.list_attempts(rollout_id)
    await world.store.start_attempt(rollout_id)
    new = SpanBatch(rollout_id=rollout_id, attempt_id="latest", spans=[call("n", [7], [8])])
    await world.store.add_spans(new)
    assert tokens(await listed(world, [rollout_id])) == [[[7, 8]]]
    assert tokens(await listed(world, [rollout_id], first.attempt_id)) == [[[1, 2, 3]]]
    assert tokens(await listed(world, [rollout_id], "")) == [[[1, 2, 3]], [[7, 8]]]


async def test_final_rewards_replace_those_of_attempts(world: World) -> None:
    one, other = [await traced(world, *TURNS) for _ in range(2)]
    await world.store.update_attempt(other, "latest", reward=2.0)
    found = await listed(world, [one, other], final_rewards={one: 0.25})
    assert [sample.reward for attempt in found for sample in attempt] == [0.25, 2.0]


async def test_calls_that_are_in_no_sample_are_told(world: World) -> None:
    bare = span("bare", "openai.chat.completion", "", (1, 2))
    (found,) = await listed(world, [await traced(world, *TURNS, bare)])
    assert tokens([found]) == [[[1, 2, 3, 4, 5, 6]]]
    twins = [call("twin", [1, 2], [3]), *TURNS]
    (ambiguous,) = await listed(world, [await traced(world, *twins)])
    assert tokens([ambiguous]) == [[[1, 2, 3], [1, 2, 3]]]
    assert [w.message for w in found.warnings] == [
        "1 of 3 calls have no token ids: they are in no sample"
    ]
    assert [(w.sequence_id, w.message) for w in ambiguous.warnings] == [
        (3, "its prompt continues several calls with the same tokens: it is in no sample")
    ]


async def test_what_is_not_held_is_read_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "HELD_BYTES", 1000)
    monkeypatch.setattr(list_samples, "HELD_IDS_BYTES", 100)
    monkeypatch.setattr(traces, "LARGE_BYTES", 200)
    rollout, attempt = await claim(world)
    for start in range(3):
        spans = [call(str(n), list(range(2 * n + 1)), [2 * n + 1]) for n in range(start, 30, 3)]
        await world.store.add_spans(
            SpanBatch(rollout_id=rollout.rollout_id, attempt_id=attempt.attempt_id, spans=spans)
        )
    assert tokens(await listed(world, [rollout.rollout_id])) == [[list(range(60))]]


async def test_large_answers_come_in_chunks(world: World) -> None:
    ids = list(range(30_000))
    calls = [call(str(n), [n, *ids], [1, 2]) for n in range(12)]
    rollout_id = await traced(world, *calls)
    request = ListSamplesRequest(rollout_ids=[rollout_id])
    answers = world.store._transport.server_stream("ListSamples", request, None)
    parts = [answer async for answer in answers]
    assert len(parts) >= 2
    assert max(part.ByteSize() for part in parts) < 3 << 20
    assert [part.attempts[-1].complete for part in parts] == [False] * (len(parts) - 1) + [True]
    (found,) = await listed(world, [rollout_id])
    assert [(len(sample.token_ids), sample.token_ids[0]) for sample in found] == [
        (30_003, n) for n in range(12)
    ]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("rollout_ids", {"rollout_ids": []}),
        ("attempt_id", {"rollout_ids": ["a", "b"], "attempt_id": "at-1"}),
        ("merge", {"merge": 99}),
        ("source", {"source": 99}),
        ("agent_match", {"agent_match": "*"}),
        ("final_rewards['x']", {"final_rewards": {"x": 1.0}}),
    ],
    ids=str,
)
async def test_bad_fields_are_named(world: World, field: str, change: dict[str, Any]) -> None:
    request = ListSamplesRequest(**{"rollout_ids": ["r"], **change})
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field) as _:
        _ = [a async for a in world.store._transport.server_stream("ListSamples", request, None)]


async def test_unknown_ids_and_evicted_spans_are_refused(world: World) -> None:
    rollout_id = await traced(world, *TURNS)
    async with refused(world, NotFoundError, "ROLLOUT_NOT_FOUND", "ro-nobody"):
        await listed(world, [rollout_id, "ro-nobody"])
    assert world.service is not None
    live = world.service.engine.live
    live.shelf.evicted.add(live.state.entries[rollout_id].key)
    with pytest.raises(FailedPreconditionError) as caught:
        await listed(world, [rollout_id])
    assert caught.value.reason == "ERROR_REASON_SPANS_EVICTED"
