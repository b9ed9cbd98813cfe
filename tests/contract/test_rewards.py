"""Rewards and scores on the record: reported, and taken from spans."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from lightningstore.client import (
    FailedPreconditionError,
    InvalidArgumentError,
    Rollout,
    RolloutConfig,
)
from lightningstore.v1.attempt_pb2 import (
    REWARD_SOURCE_REPORTED,
    REWARD_SOURCE_SPANS,
    REWARD_SOURCE_UNSPECIFIED,
    UpdateAttemptRequest,
)
from lightningstore.v1.rollout_pb2 import ListRolloutsRequest
from lightningstore.v1.span_pb2 import SpanBatch

from tests.contract.conftest import World
from tests.contract.helpers import claim, refused
from tests.contract.rewarded import add, reward_span, scored, stored, traced

pytestmark = pytest.mark.asyncio


async def test_reward_and_scores_are_reported_with_the_outcome(world: World) -> None:
    rollout, attempt = await claim(world)
    update = await world.store.update_attempt(
        rollout.rollout_id,
        attempt.attempt_id,
        status="succeeded",
        reward=0.5,
        scores={"style": -1.0, "länge/Zeichen": 1e300},
    )
    assert update.attempt.reward == 0.5
    assert update.attempt.scores == {"style": -1.0, "länge/Zeichen": 1e300}
    assert update.attempt.message.reward_source == REWARD_SOURCE_REPORTED
    found = await world.store.get_rollout(rollout.rollout_id)
    assert (found.status, found.reward, found.scores) == ("succeeded", 0.5, update.attempt.scores)
    (listed,) = await world.store.list_rollouts()
    assert listed.reward == 0.5
    (attempts,) = await world.store.list_attempts(rollout.rollout_id)
    assert attempts.reward == 0.5


async def test_no_reward_differs_from_zero(world: World) -> None:
    _, attempt = await claim(world)
    assert not (await stored(world, attempt)).HasField("reward")
    await world.store.update_attempt(attempt.rollout_id, attempt.attempt_id, reward=0)
    record = await stored(world, attempt)
    assert record.HasField("reward")
    assert (record.reward, record.reward_source) == (0.0, REWARD_SOURCE_REPORTED)


async def test_rescoring_a_finished_rollout_changes_nothing_else(world: World) -> None:
    (rollout_id,) = await scored(world, 1.0)
    before = (await world.store.get_rollout(rollout_id)).message
    statistics = await world.store.get_statistics()
    worker = (await world.store.get_worker("w1")).message
    await world.advance(7)
    update = await world.store.update_attempt(
        rollout_id, "latest", reward=-3.5, scores={"judge": 2}
    )
    after = (await world.store.get_rollout(rollout_id)).message
    assert after.latest_attempt == update.attempt.message
    assert after.latest_attempt.reward == -3.5
    for record in (before, after):
        record.latest_attempt.ClearField("reward")
        record.latest_attempt.ClearField("scores")
    assert after == before
    assert (await world.store.get_worker("w1")).message == worker
    assert (
        await world.store.get_statistics()
    ).last_completion_number == statistics.last_completion_number


async def test_rescoring_needs_no_status_and_other_outcomes_stay_refused(world: World) -> None:
    (rollout_id,) = await scored(world, 1.0)
    async with refused(world, FailedPreconditionError, "TRANSITION_NOT_ALLOWED"):
        await world.store.update_attempt(rollout_id, "latest", status="failed", reward=2.0)
    await world.store.update_attempt(rollout_id, "latest", status="succeeded", reward=2.0)
    assert (await world.store.get_rollout(rollout_id)).reward == 2.0


async def test_rescoring_is_seen_by_later_watches_and_not_sent_again(world: World) -> None:
    ids = await scored(world, 1.0, 2.0)
    await world.store.update_attempt(ids[0], "latest", reward=5.0)
    stream = world.store.watch_rollouts(after_completion_number=0)
    seen: list[Rollout] = []
    async for rollout in stream:
        seen.append(rollout)
        if len(seen) == 2:
            await world.store.update_attempt(ids[1], "latest", reward=9.0)
            await scored(world, 3.0)
        if len(seen) == 3:
            break
    assert [r.reward for r in seen] == [5.0, 2.0, 3.0]
    assert [r.completion_number for r in seen] == [1, 2, 3]
    waited = [r async for r in world.store.wait_for_rollouts(ids)]
    assert {r.rollout_id: r.reward for r in waited} == {ids[0]: 5.0, ids[1]: 9.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
async def test_numbers_that_are_not_finite_are_rejected(world: World, value: float) -> None:
    _, attempt = await claim(world)
    names = {"rollout_id": attempt.rollout_id, "attempt_id": attempt.attempt_id}
    for fields, text in (
        ({"reward": value}, "attempt.reward"),
        ({"scores": {"style": value}}, "attempt.scores['style']"),
    ):
        async with refused(world, InvalidArgumentError, "FIELD_INVALID", text):
            await world.store.call(
                "UpdateAttempt", UpdateAttemptRequest(attempt={**names, **fields})
            )
    for fields in ({"min_reward": value}, {"max_reward": value}):
        async with refused(world, InvalidArgumentError, "FIELD_INVALID", next(iter(fields))):
            await world.store.call("ListRollouts", ListRolloutsRequest(**fields))


@pytest.mark.parametrize(
    "scores", [{"": 1.0}, {"a\tb": 1.0}, {"a\nb": 1.0}, {"x" * 129: 1.0}], ids=str
)
async def test_names_of_scores_are_checked(world: World, scores: dict[str, float]) -> None:
    _, attempt = await claim(world)
    names = {"rollout_id": attempt.rollout_id, "attempt_id": attempt.attempt_id}
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "scores"):
        await world.store.call(
            "UpdateAttempt", UpdateAttemptRequest(attempt={**names, "scores": scores})
        )
    async with refused(world, InvalidArgumentError, "FIELD_INVALID"):
        await world.store.update_attempt(attempt.rollout_id, attempt.attempt_id, scores=scores)


async def test_scores_are_limited_in_number(world: World) -> None:
    _, attempt = await claim(world)
    where = (attempt.rollout_id, attempt.attempt_id)
    await world.store.update_attempt(*where, scores={f"s{n}": float(n) for n in range(64)})
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "at most 64"):
        await world.store.update_attempt(*where, scores={"one more": 1.0})
    await world.store.update_attempt(*where, scores={"s0": None, "s1": 5.0})
    record = await stored(world, attempt)
    assert len(record.scores) == 63
    assert record.scores["s1"] == 5.0
    await world.store.update_attempt(*where, scores={"one more": 1.0})
    await world.store.update_attempt(*where, scores=None)
    assert not (await stored(world, attempt)).scores


async def test_two_judges_keep_each_others_scores(world: World) -> None:
    (rollout_id,) = await scored(world, 1.0)
    await world.store.update_attempt(rollout_id, "latest", scores={"style": 0.1})
    await world.store.update_attempt(rollout_id, "latest", scores={"a.b c": 0.2})
    assert (await world.store.get_rollout(rollout_id)).scores == {"style": 0.1, "a.b c": 0.2}


async def test_without_a_mask_all_that_is_set_is_reported(world: World) -> None:
    _, attempt = await claim(world)
    names = {"rollout_id": attempt.rollout_id, "attempt_id": attempt.attempt_id}
    for scores in ({"a": 1.0, "b": 2.0}, {"c": 3.0}):
        request = UpdateAttemptRequest(attempt={**names, "reward": 0.0, "scores": scores})
        await world.store.call("UpdateAttempt", request)
        record = await stored(world, attempt)
        assert record.HasField("reward")
        assert dict(record.scores) == scores


async def test_a_repeated_report_has_one_effect(world: World) -> None:
    (rollout_id,) = await scored(world, 1.0)
    for reward in (2.0, 3.0):
        update = await world.store.update_attempt(
            rollout_id, "latest", reward=reward, request_id=f"r{reward}"
        )
        assert update.attempt.reward == reward
    again = await world.store.update_attempt(rollout_id, "latest", reward=2.0, request_id="r2.0")
    assert again.attempt.reward == 2.0
    assert (await world.store.get_rollout(rollout_id)).reward == 3.0


async def test_reward_is_taken_from_the_last_reward_span(world: World) -> None:
    _, attempt = await claim(world)
    await add(world, attempt, traced(1), reward_span(2, 0.25), traced(3))
    record = await stored(world, attempt)
    assert (record.reward, record.reward_source) == (0.25, REWARD_SOURCE_SPANS)
    assert record.span_reward.sequence_id == 2
    assert record.span_reward.span_id == (2).to_bytes(8, "big").hex()
    assert not record.scores
    await add(world, attempt, reward_span(4, 0.5), reward_span(5, 0.75))
    await add(world, attempt, traced(6))
    assert (await stored(world, attempt)).reward == 0.75
    assert (await world.store.get_rollout(attempt.rollout_id)).reward == 0.75


KINDS: dict[str, tuple[dict[str, Any], str, float | None]] = {
    "numbered": ({"agentlightning.reward.3.value": 1.5}, "x", 1.5),
    "attribute": ({"agentlightning.reward": "0.5"}, "x", 0.5),
    "task": ({"agentops.task.output": '{"type": "reward", "value": 2}'}, "x", 2.0),
    "entity": ({"agentops.entity.output": "{'type': 'reward', 'value': -2.5}"}, "x", -2.5),
    "annotation": ({"reward": 3.0}, "agentlightning.annotation", 3.0),
    "other output": ({"agentops.task.output": '{"type": "answer", "reward": 2}'}, "x", None),
    "other name": ({"reward": 3.0}, "x", None),
    "not a number": ({"agentlightning.reward.0.value": "much"}, "x", None),
    "not finite": ({"agentlightning.reward.0.value": float("nan")}, "x", None),
    "talks of it": ({"prompt": "agentlightning.reward is a reward"}, "x", None),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_a_reward_span(world: World, kind: str) -> None:
    attributes, name, reward = KINDS[kind]
    _, attempt = await claim(world)
    await add(world, attempt, traced(1), traced(2, name, **attributes), traced(3))
    record = await stored(world, attempt)
    assert (record.reward if record.HasField("reward") else None) == reward
    expected = REWARD_SOURCE_UNSPECIFIED if reward is None else REWARD_SOURCE_SPANS
    assert record.reward_source == expected
    spans = [span async for span in world.store.query_spans(attempt.rollout_id)]
    assert len(spans) == 3


async def test_resource_and_scope_that_talk_of_rewards_are_no_reward(world: World) -> None:
    _, attempt = await claim(world)
    batch = SpanBatch(
        rollout_id=attempt.rollout_id,
        attempt_id=attempt.attempt_id,
        spans=[traced(1), reward_span(2, 0.5), traced(3)],
    )
    batch.resource.attributes.add(key="agentlightning.reward").value.double_value = 9.0
    batch.scope.name = "agentlightning.reward"
    await world.store.add_spans(batch)
    assert (await stored(world, attempt)).reward == 0.5


async def test_sequence_order_decides_whatever_the_order_of_arrival(world: World) -> None:
    _, attempt = await claim(world)
    await add(world, attempt, reward_span(1, 0.1), numbers=(10,))
    await add(world, attempt, reward_span(2, 0.2), reward_span(3, 0.3), numbers=(9, 5))
    assert (await stored(world, attempt)).reward == 0.1
    # The same number: the span that started last.
    await add(world, attempt, reward_span(4, 0.4, start=1), numbers=(10,))
    await add(world, attempt, reward_span(5, 0.5, start=1 << 40), numbers=(10,))
    assert (await stored(world, attempt)).reward == 0.5


async def test_a_reported_reward_wins_over_spans_before_and_after_it(world: World) -> None:
    _, attempt = await claim(world)
    where = (attempt.rollout_id, attempt.attempt_id)
    await add(world, attempt, reward_span(1, 0.1))
    await world.store.update_attempt(*where, reward=7.0)
    await add(world, attempt, reward_span(2, 0.2))
    record = await stored(world, attempt)
    assert (record.reward, record.reward_source) == (7.0, REWARD_SOURCE_REPORTED)
    assert record.span_reward.value == 0.2
    await world.store.update_attempt(*where, reward=None)
    record = await stored(world, attempt)
    assert (record.reward, record.reward_source) == (0.2, REWARD_SOURCE_SPANS)
    await add(world, attempt, reward_span(3, 0.3))
    assert (await stored(world, attempt)).reward == 0.3


async def test_clearing_the_reward_without_reward_spans_leaves_none(world: World) -> None:
    (rollout_id,) = await scored(world, 1.0)
    await world.store.update_attempt(rollout_id, "latest", reward=None)
    found = await world.store.get_rollout(rollout_id)
    assert found.reward is None
    assert found.attempt.message.reward_source == REWARD_SOURCE_UNSPECIFIED
    assert (await world.store.list_rollouts(min_reward=-1e300)) == []


async def test_a_late_reward_span_scores_a_finished_rollout(world: World) -> None:
    (rollout_id,) = await scored(world, None)
    finished = await world.store.get_rollout(rollout_id)
    assert finished.reward is None
    await add(world, finished.attempt, reward_span(1, 0.5))
    found = await world.store.get_rollout(rollout_id)
    assert (found.reward, found.completion_number) == (0.5, finished.completion_number)
    assert [r.rollout_id for r in await world.store.list_rollouts(min_reward=0.5)] == [rollout_id]


async def test_duplicates_and_conflicts_score_nothing(world: World) -> None:
    _, attempt = await claim(world)
    await add(world, attempt, reward_span(1, 0.1))
    await world.store.ingest_spans(
        [
            SpanBatch(
                rollout_id=attempt.rollout_id,
                attempt_id=attempt.attempt_id,
                spans=[reward_span(1, 0.9)],
            )
        ]
    )
    assert (await stored(world, attempt)).reward == 0.1


async def test_any_order_of_spans_and_reports_gives_the_same_reward(world: World) -> None:
    dice = random.Random(3)
    events: list[tuple[str, Any]] = [
        ("span", (1, 0.1, 30)),
        ("span", (2, 0.2, 10)),
        ("span", (3, 0.3, 30)),
        ("report", 5.0),
        ("scores", {"a": 1.0}),
    ]
    orders = list(itertools.permutations(events))
    results = set()
    for order in dice.sample(orders, 12):
        _, attempt = await claim(world)
        where = (attempt.rollout_id, attempt.attempt_id)
        for kind, value in order:
            if kind == "span":
                number, reward, sequence_id = value
                await add(world, attempt, reward_span(number, reward), numbers=(sequence_id,))
            elif kind == "report":
                await world.store.update_attempt(*where, reward=value)
            else:
                await world.store.update_attempt(*where, scores=value)
        record = await stored(world, attempt)
        results.add((record.reward, record.reward_source, str(record.span_reward)))
        await world.store.update_attempt(*where, reward=None)
        assert (await stored(world, attempt)).reward == 0.3
    assert len(results) == 1
    assert next(iter(results))[:2] == (5.0, REWARD_SOURCE_REPORTED)


async def test_a_large_batch_is_searched_in_all_its_parts(world: World) -> None:
    _, attempt = await claim(world)
    spans = [traced(n) for n in range(1, 2500)]
    spans[700] = reward_span(701, 0.7)
    spans[2400] = reward_span(2401, 0.9)
    await add(world, attempt, *spans)
    record = await stored(world, attempt)
    assert (record.reward, record.span_reward.sequence_id) == (0.9, 2401)
    # Known spans shift the positions of the others, and score nothing again.
    more = [traced(n) for n in range(2501, 4998)]
    more[2300] = reward_span(4801, 1.1)
    await add(world, attempt, *spans[:3], reward_span(2401, 0.9), *more)
    record = await stored(world, attempt)
    assert (record.reward, record.span_reward.sequence_id) == (1.1, 2499 + 2301)


async def test_rewards_survive_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("memory")
    _, attempt = await claim(world)
    await add(world, attempt, reward_span(1, 0.1), numbers=(5,))
    await world.store.update_attempt(attempt.rollout_id, "latest", scores={"s": 1.0})
    await world.restart()
    await add(world, attempt, reward_span(2, 0.2), numbers=(4,))
    record = await stored(world, attempt)
    assert (record.reward, dict(record.scores)) == (0.1, {"s": 1.0})
    assert [r.rollout_id for r in await world.store.list_rollouts(max_reward=0.1)] == [
        attempt.rollout_id
    ]


async def test_deadlines_go_by_spans_and_not_by_scores(world: World) -> None:
    config = RolloutConfig(unresponsive_timeout=5)
    rollout, _ = await claim(world, config=config)
    await world.advance(4)
    await world.store.update_attempt(rollout.rollout_id, "latest", scores={"s": 1.0})
    await world.advance(2)
    assert (await world.store.get_rollout(rollout.rollout_id)).attempt.status == "unresponsive"
