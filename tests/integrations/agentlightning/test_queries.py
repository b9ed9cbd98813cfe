"""Queries of rollouts, attempts and workers: filters, orders, pages."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import pytest_asyncio
from agentlightning.types import AttemptedRollout, PaginatedResult, Rollout
from lightningstore.integrations.agentlightning import GrpcLightningStore, _control

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def ids(store: GrpcLightningStore) -> list[str]:
    """Five rollouts: queuing, preparing, succeeded, failed and cancelled."""
    rollouts = [await store.enqueue_rollout(n, mode="train" if n % 2 else None) for n in range(5)]
    ids = [rollout.rollout_id for rollout in rollouts]
    await store.start_attempt(ids[1])
    await store.update_rollout(ids[2], status="succeeded")
    await store.start_attempt(ids[3])
    await store.update_attempt(ids[3], "latest", status="failed")
    await store.update_rollout(ids[4], status="cancelled")
    return ids


async def found(store: GrpcLightningStore, ids: list[str], **arguments: Any) -> list[int]:
    """Return which of the five a query finds, in its order."""
    result = await store.query_rollouts(**arguments)
    return [ids.index(rollout.rollout_id) for rollout in result if rollout.rollout_id in ids]


async def test_statuses_and_ids_are_joined_by_and(
    store: GrpcLightningStore, ids: list[str]
) -> None:
    assert await found(store, ids) == [0, 1, 2, 3, 4]
    assert await found(store, ids, status_in=["failed", "queuing"]) == [0, 3]
    assert await found(store, ids, rollout_id_in=[ids[3], ids[1], "ro-nobody"]) == [1, 3]
    assert await found(store, ids, rollout_id_contains=ids[2][3:-1]) == [2]
    both = {"status_in": ["failed"], "rollout_id_in": ids[:2]}
    assert await found(store, ids, **both) == []
    assert await found(store, ids, **both, filter_logic="or") == [0, 1, 3]


async def test_an_empty_list_matches_nothing_and_an_empty_text_all(
    store: GrpcLightningStore, ids: list[str]
) -> None:
    assert await found(store, ids, status_in=[]) == []
    assert await found(store, ids, rollout_id_in=[], status_in=["failed"]) == []
    some = {"status_in": ["failed"], "filter_logic": "or"}
    assert await found(store, ids, rollout_id_in=[], **some) == [3]
    assert await found(store, ids, rollout_id_in=[], status_in=[], filter_logic="or") == []
    assert await found(store, ids, rollout_id_contains="", status_in=["failed"]) == [3]
    assert await found(store, ids, rollout_id_contains="", **some) == [0, 1, 2, 3, 4]


async def test_those_with_attempts_show_the_latest(
    store: GrpcLightningStore, ids: list[str]
) -> None:
    again = await store.start_attempt(ids[1])
    first, second = await store.query_rollouts(rollout_id_in=ids[:2])
    assert type(first) is Rollout
    assert isinstance(second, AttemptedRollout)
    assert second.attempt == again.attempt


async def test_the_old_names_work_warn_and_give_way(
    store: GrpcLightningStore, ids: list[str]
) -> None:
    with pytest.warns(DeprecationWarning, match="status_in") as caught:
        assert await found(store, ids, status=["failed"]) == [3]
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="rollout_id_in"):
        assert await found(store, ids, rollout_ids=[ids[4]]) == [4]
    with pytest.warns(DeprecationWarning, match="status_in"):
        assert await found(store, ids, status=["failed"], status_in=["queuing"]) == [0]
    with pytest.warns(DeprecationWarning, match="rollout_id_in"):
        assert await found(store, ids, rollout_ids=ids, rollout_id_in=ids[:1]) == [0]


@pytest.mark.parametrize("sort_by", ["rollout_id", "start_time", "status", "mode", "end_time"])
@pytest.mark.parametrize("sort_order", ["asc", "desc"])
async def test_rollouts_come_sorted_page_by_page(
    store: GrpcLightningStore, ids: list[str], sort_by: str, sort_order: str
) -> None:
    by = {"sort_by": sort_by, "sort_order": sort_order, "rollout_id_in": ids}
    everything = await store.query_rollouts(**by)
    # A time that is missing comes last, a text that is missing first.
    keys = [
        getattr(rollout, sort_by) or (float("inf") if sort_by.endswith("_time") else "")
        for rollout in everything
    ]
    assert keys == sorted(keys, reverse=sort_order == "desc")
    assert {rollout.rollout_id for rollout in everything} == set(ids)
    pages = [await store.query_rollouts(**by, limit=2, offset=offset) for offset in (0, 2, 4, 6)]
    assert [len(page) for page in pages] == [2, 2, 1, 0]
    assert [rollout for page in pages for rollout in page] == list(everything)
    assert {(page.limit, page.total) for page in pages} == {(2, 5)}
    assert [page.offset for page in pages] == [0, 2, 4, 6]
    nothing = await store.query_rollouts(**by, limit=0)
    assert (list(nothing), nothing.total) == ([], 5)


async def test_more_than_a_page_of_the_server_comes_whole(
    store: GrpcLightningStore, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_control, "PAGE", 2)
    everything = await store.query_rollouts(rollout_id_in=ids)
    assert [rollout.rollout_id for rollout in everything] == ids
    assert everything.total == 5
    some = await store.query_rollouts(rollout_id_in=ids, limit=3, offset=1)
    assert [rollout.rollout_id for rollout in some] == ids[1:4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sort_by": "input"},
        {"sort_by": "no_such"},
        {"sort_order": "up"},
        {"limit": -2},
        {"offset": -1},
    ],
)
async def test_arguments_that_mean_nothing_are_value_errors(
    store: GrpcLightningStore, ids: list[str], wrong: dict[str, Any]
) -> None:
    name = list(wrong)[-1]
    for query in (
        store.query_rollouts(**wrong),
        store.query_attempts(ids[1], **wrong),
        store.query_workers(**wrong),
        store.query_resources(**wrong),
        store.query_spans(ids[1], **wrong),
    ):
        with pytest.raises(ValueError, match=name):
            await query
    for query in (
        store.query_rollouts(filter_logic="xor"),
        store.query_workers(filter_logic="xor"),
        store.query_spans(ids[1], filter_logic="xor"),
    ):
        with pytest.raises(ValueError, match="filter_logic"):
            await query
    for query in (store.query_rollouts(status_in=["x"]), store.query_workers(status_in=["x"])):
        with pytest.raises(ValueError, match="not 'x'"):
            await query


async def test_attempts_come_sorted_page_by_page(store: GrpcLightningStore) -> None:
    rollout = await store.start_rollout(1)
    for worker in ("b", None, "a"):
        await store.start_attempt(rollout.rollout_id, worker)
    attempts = await store.query_attempts(rollout.rollout_id)
    assert isinstance(attempts, PaginatedResult)
    assert [a.sequence_id for a in attempts] == [1, 2, 3, 4]
    down = await store.query_attempts(rollout.rollout_id, sort_order="desc", limit=2, offset=1)
    assert [a.sequence_id for a in down] == [3, 2]
    assert (down.limit, down.offset, down.total) == (2, 1, 4)
    by_worker = await store.query_attempts(rollout.rollout_id, sort_by="worker_id")
    assert [a.worker_id for a in by_worker] == [None, None, "a", "b"]
    as_made = await store.query_attempts(rollout.rollout_id, sort_by=None)
    assert list(as_made) == list(attempts)


async def test_workers_are_found_sorted_and_paged(store: GrpcLightningStore) -> None:
    tag = uuid.uuid4().hex
    for name in ("c", "a", "b"):
        await store.update_worker(f"{tag}-{name}")
    await store.start_rollout(1, worker_id=f"{tag}-b")
    await store.dequeue_rollout(f"{tag}-a")

    async def names(**arguments: Any) -> list[str]:
        result = await store.query_workers(**arguments)
        return [w.worker_id[-1] for w in result if w.worker_id.startswith(tag)]

    assert await names(worker_id_contains=tag) == ["a", "b", "c"]
    assert await names(worker_id_contains=tag, status_in=["busy", "unknown"]) == ["b", "c"]
    assert await names(worker_id_contains=tag, status_in=[]) == []
    either = {"worker_id_contains": f"{tag}-a", "status_in": ["busy"], "filter_logic": "or"}
    assert await names(**either) == ["a", "b"]
    by_status = {"worker_id_contains": tag, "sort_by": "status", "sort_order": "desc"}
    assert await names(**by_status) == ["c", "a", "b"]
    page = await store.query_workers(**by_status, limit=1, offset=1)
    assert ([w.worker_id[-1] for w in page], page.total) == (["a"], 3)


async def test_a_worker_says_of_itself_what_it_said_last(store: GrpcLightningStore) -> None:
    name = uuid.uuid4().hex
    assert await store.get_worker_by_id(name) is None
    assert await store.get_worker_by_id("") is None
    worker = await store.update_worker(name)
    assert (worker.status, worker.heartbeat_stats) == ("unknown", None)
    assert worker.last_heartbeat_time is not None
    worker = await store.update_worker(name, {"cpu": 0.5, "gpus": [1]})
    assert worker.heartbeat_stats == {"cpu": 0.5, "gpus": [1]}
    assert (worker.status, worker.last_idle_time is None) == ("idle", False)
    later = await store.update_worker(name)
    assert later.heartbeat_stats == worker.heartbeat_stats
    assert later.last_heartbeat_time is not None
    assert worker.last_heartbeat_time is not None
    assert later.last_heartbeat_time >= worker.last_heartbeat_time
    assert (await store.update_worker(name, {})).heartbeat_stats == {}
    with pytest.raises(TypeError, match="heartbeat_stats"):
        await store.update_worker(name, None)
