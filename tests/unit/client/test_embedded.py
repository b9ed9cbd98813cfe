"""A store in this process: what is particular to it. The rest is in the contract suite."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightningstore.client import (
    AsyncLightningStore,
    DeadlineExceededError,
    InternalError,
    NotFoundError,
    SpanBatch,
    open_store,
)
from lightningstore.client.embedded import StoreTransport
from lightningstore.service.operations.table import Kind, Operation

pytestmark = pytest.mark.asyncio


async def test_memory_is_gone_with_its_store() -> None:
    async with open_store("memory://") as store:
        rollout = await store.enqueue_rollout({"a": 1})
        assert (await store.get_rollout(rollout.rollout_id)).input == {"a": 1}
    async with open_store("memory://") as store:
        with pytest.raises(NotFoundError):
            await store.get_rollout(rollout.rollout_id)


async def test_a_file_keeps_what_is_in_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'run.db'}"
    async with open_store(url, durability="relaxed") as store:
        rollout = await store.enqueue_rollout({"a": 1})
        assert (await store.get_server_info()).durability == "relaxed"
    async with open_store(url) as store:
        assert (await store.get_rollout(rollout.rollout_id)).input == {"a": 1}


async def test_a_relative_path_is_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with open_store("sqlite:///run.db"):
        assert (tmp_path / "run.db").exists()


async def test_namespaces_of_a_file_are_stores_of_their_own(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'run.db'}"
    with pytest.raises(NotFoundError, match="run-1"):
        async with open_store(url, namespace="run-1"):
            pass
    async with open_store(url) as store:
        made = await store.create_namespace("run-1", max_queue_length=2)
        assert (made.name, made.max_queue_length, made.retain_finished) == ("run-1", 2, None)
        await store.enqueue_rollout("default", rollout_id="r")
    async with open_store(url, namespace="run-1") as store:
        assert store.namespace == "run-1"
        assert [r.input async for r in store.iter_rollouts()] == []
        await store.enqueue_rollout("run-1", rollout_id="r")
        (claimed,) = await store.dequeue_rollouts()
        await store.add_spans(SpanBatch(rollout_id="r", attempt_id=claimed.attempt.attempt_id))
        assert [span async for span in store.query_spans("r")] == []
        await store.update_attempt("r", "latest", status="succeeded")
        assert [r.rollout_id async for r in store.wait_for_rollouts(["r"])] == ["r"]
        names = [namespace.name for namespace in await store.list_namespaces()]
        assert names == ["default", "run-1"]
        with pytest.raises(NotFoundError):
            await store.get_rollout("none")
        await store.delete_namespace("run-1")
        with pytest.raises(NotFoundError, match="run-1"):
            await store.get_rollout("r")
    async with open_store(url) as store:
        assert (await store.get_rollout("r")).input == "default"


@pytest.mark.parametrize("url", ["", "run.db", "sqlite://", "sqlite:///", "postgres://x"])
async def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        async with open_store(url):
            pass


async def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="durabilty"):
        async with open_store("memory://", durabilty="full"):
            pass


async def test_without_the_servers_parts_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lightningstore.service.server.server", None)
    with pytest.raises(ImportError, match=r"pip install 'lightningstore\[server\]'"):
        async with open_store("memory://"):
            pass


async def test_a_closed_store_says_so() -> None:
    async with open_store("memory://") as store:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await store.get_statistics()


async def test_what_the_callers_iterator_raises_is_the_callers() -> None:
    def bad() -> Iterator[SpanBatch]:
        yield SpanBatch()
        raise ZeroDivisionError

    async with open_store("memory://") as store:
        with pytest.raises(ZeroDivisionError):
            await store.ingest_spans(bad())


class Broken:
    """A store with defects."""

    @property
    def table(self) -> dict[str, Operation]:
        return {
            "GetRollout": Operation(self.get_rollout),
            "GetAttempt": Operation(self.get_attempt),
            "WatchRollouts": Operation(self.watch_rollouts, Kind.SERVER_STREAM),
        }

    async def get_rollout(self, request: Any) -> Any:
        raise KeyError(request.rollout_id)

    async def get_attempt(self, request: Any) -> Any:
        del request
        await asyncio.Event().wait()

    async def watch_rollouts(self, request: Any) -> AsyncIterator[Any]:
        del request
        yield None
        raise KeyError("x")


async def test_a_defect_of_the_store_is_an_internal_error() -> None:
    store = AsyncLightningStore.over(StoreTransport(Broken().table))
    with pytest.raises(InternalError, match="KeyError") as caught:
        await store.get_rollout("ro-1")
    assert isinstance(caught.value.__cause__, KeyError)
    stream = store.watch_rollouts()
    await stream.registered()
    with pytest.raises(InternalError):
        await anext(stream)


async def test_calls_have_deadlines() -> None:
    store = AsyncLightningStore.over(StoreTransport(Broken().table), timeout=0.01)
    with pytest.raises(DeadlineExceededError):
        await store.get_attempt("ro-1")


async def test_a_wait_can_be_given_up() -> None:
    async with open_store("memory://") as store:
        rollout = await store.enqueue_rollout(1)
        async with store.wait_for_rollouts([rollout.rollout_id]) as stream:
            await stream.registered()
            waiting = asyncio.create_task(anext(stream))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert (await store.get_statistics()).waiter_count == 0


async def test_a_read_that_is_given_up_loses_nothing() -> None:
    async with open_store("memory://") as store:
        one, two = await store.enqueue_rollouts([{"input": 1}, {"input": 2}])
        async with store.wait_for_rollouts([one.rollout_id, two.rollout_id]) as stream:
            await store.cancel_rollouts([one.rollout_id])
            assert (await anext(stream)).rollout_id == one.rollout_id
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(stream), 0.01)
            await store.cancel_rollouts([two.rollout_id])
            assert [r.rollout_id async for r in stream] == [two.rollout_id]
            assert (stream.finished_count, stream.open_rollout_ids) == (2, [])
