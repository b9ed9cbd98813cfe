"""Three servers over one database, of which some are always being killed, stopped or cut off: nothing answered is lost."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.cluster import LEASE_SECONDS, ServerCluster
from tests.faults.cluster_ledger import ClusterLedger, create_namespaces, silence
from tests.postgres import running

pytestmark = pytest.mark.asyncio

NAMES = ("a", "b", "c", "d")
WORKERS = 2


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ServerCluster]:
    """Three servers with the namespaces of NAMES, over a database server that may be crashed."""
    with running() as postgres:
        async with ServerCluster(tmp_path, postgres) as cluster:
            await create_namespaces(cluster.addresses[0], NAMES)
            yield cluster


async def _trouble(cluster: ServerCluster, dice: random.Random, what: str) -> None:
    """Cause one trouble, while the others may be in theirs."""
    server = dice.choice(cluster.servers)
    if what == "killed":
        await cluster.restart(server, signal.SIGKILL)
    elif what == "terminated":
        await cluster.restart(server, signal.SIGTERM)
    elif what == "stopped":
        await cluster.pause(server, LEASE_SECONDS + dice.uniform(-1.0, 2.0))
    elif what == "cut off":
        await cluster.terminate_back_ends()
    else:
        await cluster.crash_database(dice.choice([0.0, 1.0, LEASE_SECONDS + 2]))
    await asyncio.sleep(dice.uniform(0.2, 3.0))  # of work between two troubles


def _troubles(dice: random.Random, kills: int, crashes: int) -> list[str]:
    """Return troubles in random order: half of the kills are kill -9."""
    kinds = ["killed", "killed", "terminated", "stopped"]
    troubles = [kinds[number % 4] for number in range(kills)]
    troubles += ["crash"] * crashes + ["cut off"] * max(1, crashes // 2)
    dice.shuffle(troubles)
    return troubles


async def test_nothing_answered_is_lost_by_servers_and_databases_that_end(
    cluster: ServerCluster, dice: random.Random, tries
) -> None:
    ledgers = [ClusterLedger(name, cluster.addresses, dice) for name in NAMES]
    async with asyncio.TaskGroup() as group:
        watchers = [group.create_task(ledger.watch()) for ledger in ledgers]
        workers = [group.create_task(each.work()) for each in ledgers for _ in range(WORKERS)]
        counts = _troubles(dice, tries("kills of servers"), tries("crashes of the database"))
        for what in counts:
            await _trouble(cluster, dice, what)
        for ledger in ledgers:
            ledger.finish()
        await asyncio.gather(*workers)
        for ledger in ledgers:
            await ledger.check()
        for watcher in watchers:
            watcher.cancel()
    commits = await cluster.check_commits()
    for ledger in ledgers:
        await ledger.close()
    unanswered = sum((ledger.unanswered for ledger in ledgers), Counter[str]())
    print(
        f"{dict(Counter(counts))}: {sum(each.answered for each in ledgers)} answered writes, "
        f"{sum(each.reads for each in ledgers)} reads, {commits} commits, "
        f"{sum(len(each.watched) for each in ledgers)} finishes watched, "
        f"{unanswered.total()} calls without an answer in their time, "
        f"the longest call took {max(each.longest for each in ledgers):.1f} s"
    )
    for text, count in unanswered.most_common():
        print(f"  {count} x {text}")


async def test_takeover_times(cluster: ServerCluster, tries) -> None:
    times: dict[str, list[float]] = {"SIGTERM": [], "SIGKILL": []}
    for _ in range(tries("takeovers")):
        for name, figures in times.items():
            former = await cluster.owner("a")
            if former is None:
                await silence(cluster.addresses[0], "a")
                former = await cluster.owner("a")
            assert former is not None
            other = next(server for server in cluster.servers if server is not former)
            former.signal(signal.Signals[name])
            figures.append(await silence(other.address, "a"))
            await asyncio.to_thread(former.wait)
            await cluster.start(former)
    for name, figures in times.items():
        print(f"{name}: {', '.join(f'{figure:.2f}' for figure in figures)} s without an answer")


@pytest.mark.parametrize("call", ["read", "write"])
async def test_owner_that_was_stopped_answers_nothing_that_is_no_longer_true(
    cluster: ServerCluster, tries, call: str
) -> None:
    for number in range(tries("stopped owners")):
        await _stop_owner(cluster, f"{call}-{number}", call)
    await cluster.check_commits()


async def test_missing_check_of_the_lease_is_noticed(tmp_path: Path) -> None:
    with running() as postgres:
        async with ServerCluster(tmp_path, postgres, "no lease check") as cluster:
            await create_namespaces(cluster.addresses[0], NAMES)
            with pytest.raises(AssertionError, match="a stale read"):
                for number in range(8):  # a renewal that comes first hides it at times
                    await _stop_owner(cluster, f"read-{number}", "read")


async def _stop_owner(cluster: ServerCluster, rollout_id: str, call: str) -> None:
    """Stop the owner, have another one take over and change a rollout, and ask the one that was stopped."""
    addresses = cluster.addresses
    ledger = ClusterLedger("a", addresses, random.Random(1))
    store = ledger._stores[0]
    await store.enqueue_rollouts([{"input": 1, "rollout_id": rollout_id}])
    former = await cluster.owner("a")
    assert former is not None
    former.signal(signal.SIGSTOP)
    try:
        owner = await cluster.owner_after("a", former)
        ahead = ledger._stores[addresses.index(owner.address)]
        behind = ledger._stores[addresses.index(former.address)]
        await ahead.cancel_rollouts([rollout_id])
        if call == "read":
            late = asyncio.create_task(behind.get_rollout(rollout_id))
        else:
            late = asyncio.create_task(
                behind.enqueue_rollouts([{"input": 2, "rollout_id": f"late-{rollout_id}"}])
            )
        await asyncio.sleep(0.2)  # the request is in the buffers of the stopped server
    finally:
        former.signal(signal.SIGCONT)
    answer = await late
    if call == "read":
        assert answer.status.value == "cancelled", "a stale read"
    else:
        assert (await ahead.get_rollout(f"late-{rollout_id}")).input == 2
        claimed = await ahead.dequeue_rollouts(100)
        assert f"late-{rollout_id}" in [rollout.rollout_id for rollout in claimed]
    await ledger.close()
