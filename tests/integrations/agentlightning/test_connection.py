"""The store as an object: its methods' forms, threads, event loops, processes, and servers that are away."""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import pickle
import subprocess
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from agentlightning.store.base import LightningStore
from lightningstore.client import LightningStoreError, ServerInfo, UnavailableError
from lightningstore.integrations.agentlightning import GrpcLightningStore, _connection
from lightningstore.v1.statistics_pb2 import GetServerInfoResponse

from tests.integrations.agentlightning.conftest import serving
from tests.integrations.agentlightning.test_spans import a_span

PUBLIC = [name for name in vars(LightningStore) if not name.startswith("_")]


def form(function: Any) -> list[tuple[Any, ...]]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, repr(p.default)) for p in parameters]


@pytest.mark.parametrize("name", PUBLIC)
def test_each_method_has_the_form_of_agentlightnings(name: str) -> None:
    ours, theirs = getattr(GrpcLightningStore, name), getattr(LightningStore, name)
    assert ours is not theirs
    if isinstance(theirs, property):
        assert isinstance(ours, property)
        return
    assert form(ours) == form(theirs)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)


def test_a_bad_address_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="address"):
        GrpcLightningStore("http://127.0.0.1:4747")
    with pytest.raises(ValueError, match="plain text"):
        GrpcLightningStore("127.0.0.1:4747", token="lst_secret")


def test_its_repr_shows_the_address_and_no_token() -> None:
    store = GrpcLightningStore("127.0.0.1:1", token="lst_secret", allow_insecure_token=True)
    assert repr(store) == "GrpcLightningStore('127.0.0.1:1')"


def test_threads_each_with_event_loops_of_their_own_share_it(address: str) -> None:
    store = GrpcLightningStore(address)
    begin = threading.Barrier(8)

    async def work(n: int) -> list[int]:
        rollouts = [await store.start_rollout([n, m]) for m in range(5)]
        await asyncio.gather(*(store.add_span(a_span(rollout)) for rollout in rollouts))
        ids = [rollout.rollout_id for rollout in rollouts]
        await asyncio.gather(*(store.update_attempt(i, "latest", status="succeeded") for i in ids))
        found = await store.wait_for_rollouts(rollout_ids=ids, timeout=20)
        return [rollout.input for rollout in found]

    def thread(n: int) -> list[int]:
        begin.wait(20)
        return [x for _ in range(2) for x in asyncio.run(work(n))]  # two loops, one after the other

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(thread, range(8)))
    assert results == [[[n, m] for m in range(5)] * 2 for n in range(8)]
    asyncio.run(store.close())


def test_it_is_pickled_without_its_connection(address: str) -> None:
    store = GrpcLightningStore(address, timeout=7)
    asyncio.run(store.statistics())
    copy = pickle.loads(pickle.dumps(store))
    assert repr(copy) == repr(store)
    assert copy._timeout == 7
    asyncio.run(store.close())
    assert asyncio.run(copy.statistics())["name"] == "GrpcLightningStore"
    asyncio.run(copy.close())
    asyncio.run(store.statistics())  # a later call connects again
    asyncio.run(store.close())


def in_child(store: GrpcLightningStore, answers: Any) -> None:
    async def work() -> str:
        rollout = await store.start_rollout("child")
        [waited] = await asyncio.gather(
            store.wait_for_rollouts(rollout_ids=[rollout.rollout_id], timeout=0)
        )
        return rollout.rollout_id if waited == [] else "?"

    answers.put(asyncio.run(work()))


def test_forks_of_a_process_that_has_used_it_use_it_too(address: str) -> None:
    store = GrpcLightningStore(address)
    asyncio.run(store.statistics())
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=in_child, args=(store, answers)) for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # threads and forks do not mix, says 3.12
        for child in children:
            child.start()
    ids = {answers.get(timeout=50) for _ in children}
    for child in children:
        child.join(20)
    assert [child.exitcode for child in children] == [0, 0, 0]

    async def inputs() -> list[str]:
        found = [await store.get_rollout_by_id(rollout_id) for rollout_id in ids]
        await store.close()
        return [rollout.input for rollout in found if rollout is not None]

    assert asyncio.run(inputs()) == ["child"] * 3


@pytest.mark.asyncio
async def test_without_a_server_claims_are_none_and_the_rest_fails() -> None:
    store = GrpcLightningStore("127.0.0.1:1", timeout=1.0)
    assert await store.dequeue_rollout("w") is None
    assert list(await store.dequeue_many_rollouts(limit=3)) == []
    with pytest.raises(UnavailableError):
        await store.enqueue_rollout(1)
    with pytest.raises(UnavailableError):
        await store.wait_for_rollouts(rollout_ids=["ro-1"], timeout=0)
    with pytest.raises(LightningStoreError):
        await store.get_latest_resources()
    await store.close()


def test_capabilities_without_a_server_promise_no_http(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_connection, "INFO_TIMEOUT", 0.2)
    store = GrpcLightningStore("127.0.0.1:1")
    assert store.capabilities["zero_copy"] is True
    assert store.capabilities["otlp_traces"] is False
    assert caplog.text.count("OTLP") == 1


@pytest.mark.asyncio
async def test_a_claim_whose_answer_was_lost_is_found_by_the_worker(
    store: GrpcLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = [(await store.enqueue_rollout(n)).rollout_id for n in range(2)]
    dequeue = type(store._client).dequeue_rollouts

    async def losing(self: Any, *arguments: Any, **options: Any) -> Any:
        await dequeue(self, *arguments, **options)
        raise UnavailableError("the answer was lost")

    with monkeypatch.context() as lossy:
        lossy.setattr(type(store._client), "dequeue_rollouts", losing)
        assert await store.dequeue_rollout("w-lossy") is None
    other = await store.dequeue_rollout("w-other")
    found = await store.dequeue_rollout("w-lossy")
    assert other is not None
    assert found is not None
    assert (other.rollout_id, found.rollout_id) == (second, first)
    assert found.attempt.worker_id == "w-lossy"
    assert list(await store.dequeue_many_rollouts(limit=2, worker_id="w-lossy")) == []
    assert await store.dequeue_rollout("w-lossy") is None


def test_a_restart_of_the_server_is_waited_for(tmp_path: Path) -> None:
    with serving(tmp_path, "--backend", "sqlite") as address:
        store = GrpcLightningStore(address, timeout=50)
        rollout = asyncio.run(store.enqueue_rollout("before"))

    async def across() -> list[Any]:
        asked = asyncio.create_task(store.get_rollout_by_id(rollout.rollout_id))
        await asyncio.sleep(0)  # the call is in progress without a server
        port = address.rpartition(":")[2]
        with serving(tmp_path, "--backend", "sqlite", "--port", port):
            found = await asyncio.wait_for(asked, 50)
            claimed = await store.dequeue_rollout("w")
        await store.close()
        return [found, claimed]

    found, claimed = asyncio.run(across())
    assert found == rollout
    assert claimed.rollout_id == rollout.rollout_id


def test_a_token_is_sent_and_its_lack_is_no_value_error(tmp_path: Path) -> None:
    from tests.integrations.agentlightning.conftest import COMMAND

    made = subprocess.run(
        [COMMAND, "token", "new", "--file", "tokens", "--role", "admin", "--name", "me"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    token = next(word for word in made.stdout.split() if word.startswith("lst_"))
    with serving(tmp_path, "--backend", "memory", "--auth-tokens", "tokens") as address:
        known = GrpcLightningStore(address, token=token, allow_insecure_token=True)
        assert asyncio.run(known.statistics())["total_rollouts"] == 0
        assert known.capabilities["otlp_traces"] is False
        with pytest.raises(LightningStoreError, match="UNAUTHENTICATED"):
            asyncio.run(GrpcLightningStore(address).dequeue_rollout())
        asyncio.run(known.close())


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1:4747", "http://127.0.0.1:4318/v1/traces"),
        ("dns:///store:4747", "http://store:4318/v1/traces"),
        ("[::1]:4747", "http://[::1]:4318/v1/traces"),
        ("unix:/tmp/store", ""),
    ],
)
def test_the_url_for_spans_is_at_the_servers_address(address: str, url: str) -> None:
    info = ServerInfo(GetServerInfoResponse(otlp_http_port=4318))
    assert _connection._otlp_url(address, info) == url
    assert _connection._otlp_url(address, ServerInfo(GetServerInfoResponse())) == ""


@pytest.mark.parametrize(("installed", "follows"), [("1.44.0", True), ("1.45.2", False)])
def test_http_is_left_alone_where_the_exporter_would_lose_spans(
    monkeypatch: pytest.MonkeyPatch, installed: str, follows: bool
) -> None:
    monkeypatch.setattr(_connection, "version", lambda _: installed)
    _connection._exporter_follows.cache_clear()
    store = GrpcLightningStore("127.0.0.1:1")
    monkeypatch.setattr(type(store), "_otlp_url", "http://127.0.0.1:4318/v1/traces")
    assert store.capabilities["otlp_traces"] is follows
    assert store.otlp_traces_endpoint() == "http://127.0.0.1:4318/v1/traces"
    _connection._exporter_follows.cache_clear()
