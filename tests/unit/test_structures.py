"""Queue, timers, shelf, wire format: data structures against plain models."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice, product
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from lightningstore.service.engine.deadlines import Timers
from lightningstore.service.engine.eviction import Pool, Shelf
from lightningstore.service.engine.members import load_groups
from lightningstore.service.engine.queue import RolloutQueue
from lightningstore.service.operations import enqueue
from lightningstore.service.operations.bulk import uncollected
from lightningstore.service.rules import wire
from lightningstore.service.rules.ids import digest
from lightningstore.service.storage.sqlite import commits
from lightningstore.v1.rollout_pb2 import (
    ROLLOUT_STATUS_RUNNING,
    ROLLOUT_STATUS_SUCCEEDED,
    EnqueueRolloutsRequest,
    Rollout,
    RolloutSpec,
)
from lightningstore.v1.span_pb2 import IngestSpansRequest, SpanBatch

LIVE = Rollout(status=ROLLOUT_STATUS_RUNNING)
FINISHED = Rollout(status=ROLLOUT_STATUS_SUCCEEDED)

IDS = st.sampled_from([f"r{i}" for i in range(12)])
QUEUES = st.sampled_from(["", "a", "b"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), IDS, st.integers(-1, 2), st.integers(0, 3), QUEUES),
        st.tuples(st.just("discard"), IDS),
        st.tuples(st.just("discard_all"), st.lists(IDS, max_size=12)),
        st.tuples(
            st.just("pop"),
            st.frozensets(st.integers(0, 3), max_size=2),
            st.frozensets(QUEUES),
            st.integers(1, 4),
        ),
    ),
    max_size=300,
)


@given(STEPS)
def test_queue_is_by_priority_then_position_whatever_leaves_it(steps: list[tuple]) -> None:
    queue, model, position = RolloutQueue(), {}, 0
    for step in steps:
        if step[0] == "push":
            _, rollout_id, priority, mode, name = step
            old = model.get(rollout_id)
            if old is None:  # a queued rollout that only changes lanes keeps its position
                position += 1
            place = old[1] if old is not None else position
            queue.push(rollout_id, place, priority, mode, name)
            model[rollout_id] = (-priority, place, mode, name)
        elif step[0] == "discard":
            queue.discard(step[1])
            model.pop(step[1], None)
        elif step[0] == "discard_all":
            queue.discard_all(step[1])
            for rollout_id in step[1]:
                model.pop(rollout_id, None)
        else:
            _, modes, queues, limit = step
            fitting = sorted(
                (place, i)
                for i, place in model.items()
                if (not modes or place[2] in modes) and place[3] in queues
            )
            expected = [i for _, i in fitting[:limit]]
            claimed: list[str] = []
            for rollout_id in queue.claimable(queues, modes):
                queue.discard(rollout_id)
                del model[rollout_id]
                claimed.append(rollout_id)
                if len(claimed) == limit:
                    break
            assert claimed == expected
        assert len(queue) == len(model)
        assert all(i in queue for i in model)
        lanes = {(place[3], place[2]) for place in model.values()}
        assert {key for key in product(["", "a", "b"], range(4)) if queue.holds(key)} == lanes
        assert sum(map(len, queue._lanes.values())) == len(lanes)


def test_queue_forgets_what_has_left_it() -> None:
    queue = RolloutQueue()
    for n in range(10_000):
        queue.push("same", n, n % 3, 0, f"q{n}")
        queue.push(f"r{n}", n, 0, 0, "")
        queue.push(f"s{n}", n, 0, n % 4, "busy")
        queue.discard(f"r{n}")
        queue.discard(f"s{n - 5}")
    lanes = [lane for lanes in queue._lanes.values() for lane in lanes.values()]
    assert sum(len(lane.heap) for lane in lanes) < 200
    assert sorted(queue._lanes) == ["busy", "q9999"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50), st.booleans()), max_size=200))
def test_timers_yield_each_item_once_at_its_earliest_deadline(steps: list[tuple]) -> None:
    timers: Timers[int] = Timers()
    model: dict[int, float] = {}
    for item, deadline, drop in steps:
        if drop:
            timers.discard(item)
            model.pop(item, None)
        else:
            earliest = timers.push(deadline, item)
            model[item] = min(deadline, model.get(item, deadline))
            assert not earliest or model[item] == min(model.values())
        assert timers.next_deadline() == min(model.values(), default=None)
    popped = list(timers.pop_due(25))
    assert sorted(popped) == sorted(i for i, d in model.items() if d <= 25)
    assert [model[i] for i in popped] == sorted(model[i] for i in popped)
    assert len(timers) == len(model) - len(popped)


def test_timers_forget_what_was_discarded() -> None:
    timers: Timers[int] = Timers()
    for n in range(10_000):
        timers.push(1e9, n)
        timers.discard(n)
    assert len(timers._heap) < 200


def test_shelf_takes_finished_ones_first_and_the_oldest_of_them() -> None:
    shelf = Shelf(Pool(threshold=100, safe=50))
    shelf.add(1, 10, 30, 3, LIVE)
    shelf.add(2, 20, 30, 3, LIVE)
    shelf.add(3, 30, 30, 3, LIVE)
    shelf.move(3, FINISHED)
    shelf.move(2, FINISHED)
    shelf.move(2, LIVE)
    assert shelf.evict() == []
    shelf.add(3, 30, 20, 2, FINISHED)
    assert [(item.key, item.bytes, item.count) for item in shelf.evict()] == [
        (3, 50, 5),
        (1, 30, 3),
    ]
    assert (shelf.total, shelf.evicted_count, shelf.evicted) == (30, 8, {1, 3})


@given(st.integers(0, 2**63))
def test_varints_are_read_back(number: int) -> None:
    data = wire.varint(number)
    assert wire.read_varint(b"x" + data, 1) == (number, 1 + len(data))


@given(st.binary(max_size=300))
def test_field_is_what_protobuf_writes(payload: bytes) -> None:
    batch = SpanBatch(schema_url=payload.hex())
    data = wire.field(1, batch.SerializeToString())
    assert IngestSpansRequest.FromString(data).batch == batch
    start = wire.frame(data, 1)
    assert start is not None
    assert data[start:] == batch.SerializeToString()
    assert wire.frame(data + b"\x10\x01", 1) is None
    assert wire.frame(data, 2) is None


def test_claim_of_one_mode_never_walks_the_priorities_of_another() -> None:
    queue = RolloutQueue()
    for n in range(10_000):
        queue.push(f"r{n}", n, n, 1, "")
    assert len(queue._lanes[""]) == 1  # a claim compares the heads of as many lanes
    assert not queue.holds(("", 2))
    assert list(islice(queue.claimable([""], {2}), 1)) == []
    assert list(islice(queue.claimable([""], {1, 2}), 1)) == ["r9999"]
    queue.discard("r9999")
    assert list(islice(queue.claimable(["", "none"], ()), 1)) == ["r9998"]


def test_rollout_that_moves_leaves_an_equal_dead_item_behind() -> None:
    """The dead one is at the head of its lane while the live one is claimed."""
    queue = RolloutQueue()
    for name in "ab":
        queue.push(f"first-{name}", 1, 1, 0, name)
        queue.push(f"last-{name}", 9, 0, 0, name)
    queue.push("moved", 5, 0, 0, "a")
    queue.discard("first-a")
    queue.push("moved", 5, 0, 0, "b")
    claimed = []
    for rollout_id in queue.claimable(["a", "b"], ()):
        queue.discard(rollout_id)
        claimed.append(rollout_id)
    assert claimed == ["first-b", "moved", "last-a", "last-b"]


def test_digest_in_turns_is_the_digest_of_the_whole() -> None:
    specs = [RolloutSpec(input_json=b"1", metadata_json=b"{}"), RolloutSpec(input_json=b"x" * 300)]
    request = EnqueueRolloutsRequest(rollouts=specs, request_id="a")
    assert asyncio.run(enqueue._digest(request)) == digest(request)


def test_shelf_keeps_finished_ones_that_are_wanted() -> None:
    shelf = Shelf(Pool(threshold=50, safe=10))
    wanted = Rollout(rollout_id="wanted", status=ROLLOUT_STATUS_SUCCEEDED)
    shelf.add(1, 10, 30, 3, wanted)
    shelf.add(2, 20, 30, 3, FINISHED)
    assert [item.key for item in shelf.evict(lambda rollout: rollout is wanted)] == [2]
    shelf.add(3, 30, 30, 3, LIVE)
    assert [item.key for item in shelf.evict(lambda rollout: rollout is wanted)] == [3]
    shelf.add(4, 40, 30, 3, LIVE)
    shelf.release()
    assert [item.key for item in shelf.evict()] == [1, 4]


def test_eviction_of_thousands_goes_down_to_the_safe_threshold_in_steps() -> None:
    shelf = Shelf(Pool(10_000, 5_000))
    for key in range(10_000):
        shelf.add(key, key, 1, 1, FINISHED)
    assert shelf.evict() == []
    shelf.add(10_000, 10_000, 1, 1, FINISHED)
    steps = []
    while gone := shelf.evict():
        steps.append(len(gone))
    assert max(steps) <= 300
    assert shelf.total == 5_000
    shelf.add(10_001, 10_001, 1, 1, FINISHED)
    assert shelf.evict() == []


def test_the_garbage_collector_runs_after_a_large_step_and_not_in_it() -> None:
    """It runs again at once: it would stay off for good if that waited for an event loop that ends."""
    states = []
    with uncollected(10_000):
        states.append(gc.isenabled())
        with uncollected(10_000):
            states.append(gc.isenabled())
        states.append(gc.isenabled())
    states.append(gc.isenabled())
    assert states == [False, False, False, True]


def test_the_groups_of_a_large_batch_are_each_looked_at_twice() -> None:
    looks = 0
    known: set[str] = set()

    class Groups:
        def knows(self, group_id: str) -> bool:
            nonlocal looks
            looks += 1
            return group_id in known

        def install(self, group_ids: Iterable[str], *_: object) -> None:
            known.update(group_ids)

    async def nothing(_: object) -> list[object]:
        return []

    engine = SimpleNamespace(
        live=SimpleNamespace(groups=Groups(), state=SimpleNamespace(held=nullcontext())),
        storage=SimpleNamespace(load_groups=nothing),
        committer=SimpleNamespace(failure=None),
        check_owned=lambda: None,
    )
    asyncio.run(load_groups(cast(Any, engine), map(str, range(5_000))))
    assert len(known) == 5_000
    assert looks == 10_000


def test_rows_of_a_commit_are_encoded_as_their_statements_are_made() -> None:
    taken = 0

    def rows() -> Iterator[tuple[int, bytes]]:
        nonlocal taken
        for taken in range(1, 201):
            yield taken, b""

    made = commits._rows("put_inputs", rows())
    assert taken == 0
    text, values = next(iter(made))
    assert (text.count("(?"), values[::2], taken) == (64, list(range(1, 65)), 64)
    assert [len(values) // 2 for _, values in made] == [64, 64, 8]
