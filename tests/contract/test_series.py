"""GetSeries: measures of finished rollouts in buckets."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Any

import pytest
from lightningstore.client import InvalidArgumentError, SeriesBucket
from lightningstore.v1.import_pb2 import ImportRolloutsRequest
from lightningstore.v1.rollout_pb2 import Rollout
from lightningstore.v1.series_pb2 import GetSeriesRequest

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, claim, refused
from tests.contract.rewarded import scored

pytestmark = pytest.mark.asyncio

START = 1_700_000_000


async def timed(world: World, wait: float, work: float, **report: Any) -> str:
    """Finish a rollout that waits and is worked on for some seconds; returns its id."""
    rollout = await world.store.enqueue_rollout(1)
    await world.advance(wait)
    await world.store.dequeue_rollouts(1)
    await world.advance(work)
    await world.store.update_attempt(
        rollout.rollout_id, "latest", **{"status": "succeeded", **report}
    )
    return rollout.rollout_id


def shown(buckets: list[SeriesBucket]) -> list[tuple[Any, ...]]:
    """Return numbers and means of buckets."""
    return [(b.first_number, b.last_number, b.count, b.mean) for b in buckets]


async def test_rewards_by_completion_number(world: World) -> None:
    await scored(world, 1.0, 3.0, None, -2.0, 10.0)
    buckets = await world.store.get_series("reward", bucket_count=2)
    assert shown(buckets) == [(1, 3, 2, 2.0), (4, 5, 2, 4.0)]
    assert [(b.index, b.min, b.max, b.p10, b.p50, b.p90) for b in buckets] == [
        (0, 1.0, 3.0, 1.0, 1.0, 3.0),
        (1, -2.0, 10.0, -2.0, -2.0, 10.0),
    ]
    assert buckets[0].start_time is None


async def test_empty_buckets_are_left_out_and_whole_numbers_not_divided(world: World) -> None:
    await scored(world, 1.0, None, 3.0)
    buckets = await world.store.get_series("reward", bucket_count=500)
    assert [(b.index, *row) for b, row in zip(buckets, shown(buckets), strict=True)] == [
        (0, 1, 1, 1, 1.0),
        (2, 3, 3, 1, 3.0),
    ]


async def test_nothing_has_finished(world: World) -> None:
    assert await world.store.get_series("reward") == []
    await claim(world)
    assert await world.store.get_series("attempts", axis="completion_time") == []


async def test_durations_and_waiting_times_in_seconds(world: World) -> None:
    await timed(world, 2, 5)
    await timed(world, 0, 0.25, status="failed")
    (bucket,) = await world.store.get_series("duration", bucket_count=1)
    assert (bucket.count, bucket.min, bucket.max) == (2, 0.25, 5.0)
    (bucket,) = await world.store.get_series("queue_time", bucket_count=1)
    assert (bucket.count, bucket.min, bucket.max) == (2, 0.0, 2.0)


async def test_retries_count_from_the_first_claim_and_the_last(world: World) -> None:
    rollout = await world.store.enqueue_rollout(1, config=RETRY)
    await world.advance(3)
    for status, seconds in (("failed", 10), ("succeeded", 4)):
        await world.store.dequeue_rollouts(1)
        await world.advance(seconds)
        await world.store.update_attempt(rollout.rollout_id, "latest", status=status)
    for measure, value in (("attempts", 2.0), ("duration", 4.0), ("queue_time", 3.0)):
        (bucket,) = await world.store.get_series(measure)
        assert (measure, bucket.mean) == (measure, value)


@pytest.mark.parametrize("bucket_count", [1, 7, 199])
async def test_a_range_of_decades_holds_the_last_finish(world: World, bucket_count: int) -> None:
    """Nanoseconds since 1970 have more digits than a float."""
    for seconds in (1, 2):
        await timed(world, 0, seconds)
    buckets = await world.store.get_series(
        "attempts",
        axis="completion_time",
        start_time=datetime.fromtimestamp(0, UTC),
        bucket_count=bucket_count,
    )
    assert [(b.index, b.count) for b in buckets] == [(bucket_count - 1, 2)]


async def test_lag_by_publish_number(world: World) -> None:
    def shown(buckets: Sequence[SeriesBucket]) -> list[tuple[int, int, int, float]]:
        return [(b.first_number, b.last_number, b.count, b.mean) for b in buckets]

    await timed(world, 0, 1)  # without resources
    assert await world.store.get_series("lag", axis="publish_number") == []
    await world.store.enqueue_rollout("slow", resources_id="latest")
    for number in range(1, 4):
        await world.store.add_resources({"prompt": f"version {number}"})
        rollout = await world.store.start_rollout(number, resources_id="latest")
        await world.store.update_attempt(
            rollout.rollout_id, "latest", status="succeeded", reward=number
        )
        if number == 2:
            (slow,) = await world.store.dequeue_rollouts(1)
    await world.store.update_attempt(slow.rollout_id, "latest", status="failed", reward=0.0)
    lag = await world.store.get_series("lag", axis="publish_number")
    assert shown(lag) == [(1, 1, 1, 0.0), (2, 2, 2, 0.5), (3, 3, 1, 0.0)]
    found = await world.store.get_rollout(slow.rollout_id)
    assert (found.end_publish_number, found.attempt.publish_number) == (3, 2)
    reward = await world.store.get_series("reward", axis="publish_number", bucket_count=2)
    assert shown(reward) == [(1, 2, 3, 1.0), (3, 3, 1, 3.0)]
    reward = await world.store.get_series("reward", axis="publish_number", first_number=3)
    assert shown(reward) == [(3, 3, 1, 3.0)]
    # What is published later does not change it, nor does another score.
    await world.store.add_resources({"prompt": "version 4"})
    await world.store.update_attempt(slow.rollout_id, "latest", reward=1.0)
    assert shown(await world.store.get_series("lag", axis="publish_number")) == shown(lag)
    # The rollout that runs again has no lag until it finishes again.
    await world.store.start_attempt(slow.rollout_id)
    assert (await world.store.get_rollout(slow.rollout_id)).end_publish_number == 0
    lag = await world.store.get_series("lag", axis="publish_number")
    assert shown(lag) == [(1, 1, 1, 0.0), (2, 2, 1, 0.0), (3, 3, 1, 0.0)]


async def test_cancelled_rollouts_have_a_lag(world: World) -> None:
    await world.store.add_resources({"prompt": "1"})
    rollout = await world.store.start_rollout(1, resources_id="latest")
    await world.store.add_resources({"prompt": "2"})
    await world.store.cancel_rollouts([rollout.rollout_id])
    (bucket,) = await world.store.get_series("lag", axis="publish_number")
    assert (bucket.first_number, bucket.mean) == (1, 1.0)


async def test_rollouts_without_an_attempt_have_no_times(world: World) -> None:
    rollout = await world.store.enqueue_rollout(1)
    await world.store.cancel_rollouts([rollout.rollout_id])
    assert await world.store.get_series("duration") == []
    assert await world.store.get_series("queue_time") == []
    (bucket,) = await world.store.get_series("attempts")
    assert (bucket.count, bucket.mean) == (1, 0.0)


async def test_scores_by_name(world: World) -> None:
    for n, scores in enumerate(({"a": 1.0, "b": 5.0}, {"b": -3.0}, {"aa": 9.0}, {}), 1):
        await timed(world, 0, n, scores=scores)

    async def found(name: str) -> list[tuple[Any, ...]]:
        return shown(await world.store.get_series("score", score_name=name))

    assert await found("a") == [(1, 1, 1, 1.0)]
    assert await found("b") == [(1, 1, 1, 5.0), (2, 2, 1, -3.0)]
    assert await found("aa") == [(3, 3, 1, 9.0)]
    assert await found("none") == []


async def test_by_completion_time(world: World) -> None:
    for n in range(6):
        await timed(world, 0, 10, reward=float(n))
    rollouts = list(await world.store.list_rollouts())
    ends = [r.end_time for r in rollouts]
    buckets = await world.store.get_series("reward", axis="completion_time", bucket_count=3)
    assert [(b.count, b.mean) for b in buckets] == [(2, 0.5), (2, 2.5), (2, 4.5)]
    assert buckets[0].start_time == ends[0]
    assert all(a.end_time == b.start_time for a, b in itertools.pairwise(buckets))
    last = rollouts[5].message.end_time.ToNanoseconds()
    assert buckets[2].message.end_time.ToNanoseconds() == last + 1
    later = await world.store.get_series(
        "reward",
        axis="completion_time",
        bucket_count=1,
        start_time=ends[2],
        end_time=ends[4] - timedelta(microseconds=1),
    )
    assert [(b.count, b.mean) for b in later] == [(2, 2.5)]
    nothing = {"start_time": ends[5] + timedelta(days=1)}
    assert await world.store.get_series("reward", axis="completion_time", **nothing) == []


async def test_range_of_numbers(world: World) -> None:
    await scored(world, *map(float, range(1, 11)))
    options = {"bucket_count": 2, "first_number": 3, "last_number": 6}
    buckets = await world.store.get_series("reward", **options)
    assert shown(buckets) == [(3, 4, 2, 3.5), (5, 6, 2, 5.5)]
    beyond = await world.store.get_series("reward", bucket_count=1, last_number=1000)
    assert shown(beyond) == [(1, 1000, 10, 5.5)]
    assert await world.store.get_series("reward", first_number=11) == []
    assert shown(
        await world.store.get_series("reward", bucket_count=1, last_number=(1 << 63) - 1)
    ) == [(1, (1 << 62) - 1, 10, 5.5)]


async def test_reopened_and_deleted_rollouts_do_not_count(world: World) -> None:
    ids = await scored(world, 1.0, 2.0, 3.0)
    await world.store.start_attempt(ids[0])
    await world.store.delete_rollouts([ids[1]])
    (bucket,) = await world.store.get_series("reward", bucket_count=1)
    assert (bucket.count, bucket.mean) == (1, 3.0)


async def test_a_rescored_rollout_counts_with_its_last_reward(world: World) -> None:
    ids = await scored(world, 1.0)
    await world.store.update_attempt(ids[0], "latest", reward=-5.5)
    (bucket,) = await world.store.get_series("reward")
    assert bucket.mean == -5.5
    if world.durable:
        await world.restart()
        (bucket,) = await world.store.get_series("reward")
        assert bucket.mean == -5.5


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"measure": 0}, "measure"),
        ({"measure": 99}, "measure"),
        ({"axis": 0}, "axis"),
        ({"axis": 99}, "axis"),
        ({"bucket_count": 0}, "bucket_count"),
        ({"bucket_count": -1}, "bucket_count"),
        ({"bucket_count": 501}, "bucket_count"),
        ({"measure": 2}, "score_name"),
        ({"measure": 2, "score_name": "a\tb"}, "score_name"),
        ({"score_name": "a"}, "score_name"),
        ({"start_time": {"seconds": 1}}, "start_time"),
        ({"axis": 1, "first_number": 1}, "first_number"),
        ({"axis": 1, "end_time": {"nanos": -1}}, "end_time"),
        ({"axis": 1, "start_time": {"seconds": 1 << 40}}, "start_time"),
        ({"axis": 1, "start_time": {"seconds": 2}, "end_time": {"seconds": 2}}, "end_time"),
        ({"first_number": -1}, "first_number"),
        ({"first_number": 2, "last_number": 1}, "last_number"),
        ({"statuses": [99]}, "statuses[0]"),
        ({"min_reward": float("nan")}, "min_reward"),
    ],
    ids=str,
)
async def test_invalid_requests_name_the_field(
    world: World, fields: dict[str, Any], text: str
) -> None:
    await scored(world, 1.0)
    request = GetSeriesRequest(**{"measure": 1, "axis": 2, "bucket_count": 5, **fields})
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", text):
        await world.store.call("GetSeries", request)


def random_rollout(dice: random.Random, n: int) -> ImportRolloutsRequest:
    """Return a finished rollout with many equal values."""
    names = {"rollout_id": f"r{n}", "attempt_id": "a"}
    start, end = START + dice.randrange(50), START + 100 + dice.randrange(60)
    request = ImportRolloutsRequest(
        rollout={
            "rollout_id": f"r{n}",
            "input_json": b"1",
            "status": dice.choice([4, 4, 5, 6]),
            "mode": dice.randrange(3),
            "group_id": dice.choice(["", "g", "h"]),
            "queue": dice.choice(["", "gpu"]),
            "labels": {"run": dice.choice("78")},
            "start_time": {"seconds": START},
            "end_time": {"seconds": end, "nanos": dice.choice([0, 1, 999_999_999])},
        }
    )
    if dice.random() < 0.8:
        request.rollout.attempt_count, request.rollout.latest_attempt_id = 1, "a"
        attempt = request.attempts.add(**names, sequence_number=1, status=3)
        attempt.start_time.seconds, attempt.end_time.seconds = start, end
        if dice.random() < 0.8:
            attempt.reward = dice.choice(
                [0.0, 1.0, -1.0, 0.1, -1e300, 1e300, 5e-324, dice.random(), -dice.random()]
            )
        if dice.random() < 0.7:
            attempt.publish_number = dice.randint(1, 9)
            request.rollout.end_publish_number = dice.choice([0, 9, 12])
        if dice.random() < 0.5:
            attempt.scores["style"] = dice.uniform(-1, 1)
    return request


MEASURES = {
    "reward": lambda a: a.reward if a.HasField("reward") else None,
    "score": lambda a: a.scores.get("style"),
}


def value_of(measure: str, rollout: Rollout) -> float | None:
    """Return what a series measures of a rollout."""
    if measure == "attempts":
        return float(rollout.attempt_count)
    if not rollout.HasField("latest_attempt"):
        return None
    attempt = rollout.latest_attempt
    if measure == "lag":
        known = attempt.publish_number and rollout.end_publish_number
        return max(0, rollout.end_publish_number - attempt.publish_number) if known else None
    if measure == "duration":
        return (rollout.end_time.ToNanoseconds() - attempt.start_time.ToNanoseconds()) / 1e9
    if measure == "queue_time":
        return (attempt.start_time.ToNanoseconds() - rollout.start_time.ToNanoseconds()) / 1e9
    return MEASURES[measure](attempt)


async def expected(world: World, measure: str, by_time: bool, count: int, **filters: Any) -> Any:
    """Compute a series from the list of rollouts."""

    def place(rollout: Rollout) -> int:
        return rollout.end_time.ToNanoseconds() if by_time else rollout.completion_number

    every = [r.message async for r in world.store.iter_rollouts()]
    first, end = min(map(place, every)), max(map(place, every)) + 1
    width = max(1, math.ceil((end - first) / count))
    found: dict[int, list[float]] = {}
    async for rollout in world.store.iter_rollouts(**filters):
        value = value_of(measure, rollout.message)
        if value is not None:
            found.setdefault((place(rollout.message) - first) // width, []).append(value)
    rows = []
    for index, values in sorted(found.items()):
        values.sort()
        ranks = [values[math.ceil(len(values) * tenths / 10) - 1] for tenths in (1, 5, 9)]
        mean = fmean([v / 1e10 for v in values]) * 1e10
        rows.append((index, len(values), mean, values[0], values[-1], *ranks))
    return rows


MEASURED = ("reward", "score", "duration", "queue_time", "attempts", "lag")
FILTERS: list[dict[str, Any]] = [
    {},
    {"statuses": ["succeeded"]},
    {"modes": ["train", None], "min_reward": 0.0},
    {"group_ids": ["g"]},
    {"group_ids": ["g", ""], "statuses": ["failed"]},
    {"rollout_ids": ["r1", "r7", "r20", "none"], "max_reward": 1.0},
    {"rollout_id_contains": "1"},
    {"queues": ["gpu"], "labels": {"run": "7"}},
    {"labels": {"run": "8"}, "max_reward": 0.0, "filter_logic": "or"},
    {"statuses": ["failed"], "max_reward": -0.5, "filter_logic": "or"},
    {"statuses": ["failed"], "group_ids": ["h"], "filter_logic": "or"},
]


@pytest.mark.parametrize("measure", MEASURED)
async def test_series_equals_what_the_list_gives(world: World, measure: str) -> None:
    seed = MEASURED.index(measure)
    dice = random.Random(seed)
    await world.store.import_rollouts([random_rollout(dice, n) for n in range(150)])
    score = {"score_name": "style"} if measure == "score" else {}
    for filters in FILTERS:
        for axis in ("completion_number", "completion_time"):
            count = dice.choice([1, 2, 7, 40, 150, 500])
            buckets = await world.store.get_series(
                measure, axis=axis, bucket_count=count, **score, **filters
            )
            rows = [(b.index, b.count, b.mean, b.min, b.max, b.p10, b.p50, b.p90) for b in buckets]
            wanted = await expected(world, measure, axis == "completion_time", count, **filters)
            for row, other in zip(rows, wanted, strict=True):
                assert row[:2] + row[3:] == other[:2] + other[3:], (seed, filters, axis, count)
                assert row[2] == pytest.approx(
                    other[2], rel=1e-9, abs=1e-9 * abs(other[3]) + 1e-300
                )
