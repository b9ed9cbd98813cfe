"""Lists and watches while others write, through cut connections and crashes: complete, in order, nothing twice."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

import grpc
import pytest
from lightningstore.client import LightningStore, open_store
from lightningstore.v1 import completion_pb2, rollout_pb2
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub

from tests.faults.lab import Lab, until
from tests.faults.proxy import Proxy
from tests.faults.test_order import OPTIONS, make_trouble


class Watcher:
    """A watch that resumes after each lost connection, and records what it receives."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.told: list[tuple[int, str]] = []
        self.connections = 0
        self.enough = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        with grpc.insecure_channel(self.address, OPTIONS) as channel:
            stub = LightningStoreServiceStub(channel)
            through, store_id = 0, ""
            while not self.enough.is_set():
                request = completion_pb2.WatchRolloutsRequest(
                    after_completion_number=through, store_id=store_id
                )
                self.connections += 1
                try:
                    for answer in stub.WatchRollouts(request):
                        self.told += [(r.completion_number, r.rollout_id) for r in answer.rollouts]
                        through, store_id = answer.through_completion_number, answer.store_id
                except grpc.RpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE, error

    def end(self) -> None:
        self.enough.set()


def test_watch_misses_nothing_through_cuts_and_crashes(
    lab: Lab, dice: random.Random, tries
) -> None:
    lab.start()
    finished: list[str] = []
    enough = threading.Event()

    def work(number: int) -> None:
        with LightningStore(lab.address, timeout=30) as store:
            while not enough.is_set():
                made = store.enqueue_rollouts([{"input": number}] * dice.choice([1, 5]))
                ids = [r.rollout_id for r in made]
                store.cancel_rollouts(ids)
                finished.extend(ids)

    with Proxy(lab.port) as proxy:
        watchers = [Watcher(proxy.address) for _ in range(3)]
        workers = [threading.Thread(target=work, args=[n]) for n in range(2)]
        for thread in workers:
            thread.start()
        troubles = tries("troubles of a watch")
        for turn in range(troubles):
            before = len(finished)
            until("more has finished", lambda b=before: len(finished) > b)
            make_trouble(lab, proxy, "restart" if turn % 5 == 4 else "cut")
        enough.set()
        for thread in workers:
            thread.join()
        for watcher in watchers:
            until("all is received", lambda w=watcher: len(w.told) >= len(finished))
            watcher.end()
        proxy.cut()
        for watcher in watchers:
            watcher._thread.join()
            assert [number for number, _ in watcher.told] == list(range(1, len(finished) + 1))
            assert {name for _, name in watcher.told} == set(finished)
    connections = [watcher.connections for watcher in watchers]
    print(f"{troubles} troubles, {len(finished)} finishes, {connections} connections")
    assert min(connections) > troubles / 2


@pytest.mark.asyncio
@pytest.mark.parametrize("backend", ["memory", "sqlite"])
@pytest.mark.parametrize("order_by", ["", "start_time", "rollout_id desc", "status"])
async def test_pages_are_complete_and_without_doubles_while_others_write(
    tmp_path: Path, dice: random.Random, tries, backend: str, order_by: str
) -> None:
    url = "memory://" if backend == "memory" else f"sqlite:///{tmp_path}/store.db"
    async with open_store(url) as store:
        list_rollouts = store._transport._table["ListRollouts"].call
        stay = [f"stay-{n}" for n in range(100)]
        await store.enqueue_rollouts([{"input": 1, "rollout_id": i, "mode": "val"} for i in stay])

        async def write() -> None:
            while True:
                made = await store.enqueue_rollouts([{"input": 1}] * dice.choice([1, 10]))
                await store.cancel_rollouts([made[0].rollout_id])
                await store.update_rollout(dice.choice(stay), metadata={"n": dice.random()})
                await asyncio.sleep(0)

        writer = asyncio.create_task(write())
        for _ in range(tries("lists")):
            found: list[str] = []
            request = rollout_pb2.ListRolloutsRequest(page_size=9, order_by=order_by)
            while True:
                page = await list_rollouts(request)
                found += [r.rollout_id for r in page.rollouts]
                await asyncio.sleep(0)
                if not page.next_page_token or set(stay) <= set(found):
                    break
                request.page_token = page.next_page_token
            assert len(set(found)) == len(found), "a rollout is there twice"
            assert set(stay) <= set(found), "a rollout is missing"
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)


def test_watch_of_resources_misses_no_version_through_crashes(lab: Lab, tries) -> None:
    """Publish numbers have no gaps, and each has the content of the call that got it."""
    options = ("--keep-resource-versions", "0")
    lab.start(*options)
    published: dict[int, str] = {}
    enough = threading.Event()

    def publish(name: str) -> None:
        with LightningStore(lab.address, timeout=60) as store:
            count = 0
            while not enough.is_set():
                count += 1
                made = store.update_resources(name, {"n": f"{name}-{count}"})
                published[made.publish_number] = f"{name}-{count}"

    def watch(told: list[tuple[int, str]]) -> None:
        with LightningStore(lab.address, timeout=60) as store, store.watch_resources(0) as stream:
            for version in stream:
                told.append((version.publish_number, version["n"].value))
                if told[-1][1] == "end":
                    return

    watched: list[list[tuple[int, str]]] = [[], []]
    publishers = [threading.Thread(target=publish, args=[name]) for name in "ab"]
    watchers = [threading.Thread(target=watch, args=[told]) for told in watched]
    for thread in (*publishers, *watchers):
        thread.start()
    troubles = tries("crashes of a watch of resources")
    for _ in range(troubles):
        before = len(published)
        until("more is published", lambda b=before: len(published) > b + 5)
        lab.kill()
        lab.start(*options)
    enough.set()
    for thread in publishers:
        thread.join()
    with LightningStore(lab.address) as store:
        last = store.update_resources("end", {"n": "end"})
        published[last.publish_number] = "end"
    for thread in watchers:
        thread.join(60)
        assert not thread.is_alive()
    assert sorted(published) == list(range(1, len(published) + 1))
    for told in watched:
        assert told == sorted(published.items())
    print(f"{troubles} crashes, {len(published)} publications")
