"""Three servers over one database, of which some are always being killed, stopped or cut off: nothing answered is lost."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from lightningstore.client import AsyncLightningStore

from tests.faults.cluster import LEASE_SECONDS, SHORT_LEASE, ServerCluster
from tests.faults.cluster_ledger import ClusterLedger, create_namespaces, silence
from tests.postgres import running

pytestmark = pytest.mark.asyncio

NAMES = ("a", "b", "c", "d")
WORKERS = 2
#: The night's form, and the seconds that each of its users pauses before a rollout, at most.
NIGHT_SERVERS, NIGHT_NAMESPACES, NIGHT_PAUSE = 5, 50, 4.0


@pytest.fixture
def lease_seconds(request: pytest.FixtureRequest) -> float:
    """The usual lease at full size, else a shorter one: a short run should see as many takeovers as it can."""
    return LEASE_SECONDS if request.config.getoption("--scale") >= 1 else SHORT_LEASE


@asynccontextmanager
async def started(
    folder: Path, mutant: str = "", *, lease_seconds: float = LEASE_SECONDS
) -> AsyncIterator[ServerCluster]:
    """Provide three servers with the namespaces of NAMES, over a database server that may be crashed."""
    with running() as postgres:
        async with ServerCluster(folder, postgres, mutant, lease_seconds=lease_seconds) as cluster:
            await create_namespaces(cluster.addresses[0], NAMES)
            yield cluster


@pytest_asyncio.fixture
async def cluster(tmp_path: Path, lease_seconds: float) -> AsyncIterator[ServerCluster]:
    """Three servers."""
    async with started(tmp_path, lease_seconds=lease_seconds) as cluster:
        yield cluster


async def _trouble(cluster: ServerCluster, dice: random.Random, what: str) -> None:
    """Cause one trouble, while the others may be in theirs."""
    server = dice.choice(cluster.servers)
    if what == "killed":
        await cluster.restart(server, signal.SIGKILL)
    elif what == "terminated":
        await cluster.restart(server, signal.SIGTERM)
    elif what == "stopped":
        await cluster.pause(server, cluster.lease_seconds + dice.uniform(-1.0, 2.0))
    elif what == "cut off":
        await cluster.terminate_back_ends()
    else:
        await cluster.crash_database(dice.choice([0.0, 1.0, cluster.lease_seconds + 2]))
    # Of work between two troubles.
    await asyncio.sleep(dice.uniform(0.2, 0.6 * cluster.lease_seconds))


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
    troubles = _troubles(dice, tries("kills of servers"), tries("crashes of the database"))
    ledgers = [ClusterLedger(name, cluster.addresses, dice) for name in NAMES]
    await _endure(cluster, ledgers, dice, troubles)


async def test_night_of_many_servers_and_namespaces(
    tmp_path: Path, dice: random.Random, request: pytest.FixtureRequest
) -> None:
    minutes = request.config.getoption("--minutes")
    if minutes is None:
        pytest.skip("runs with --minutes: make test-cluster-night")
    end = time.monotonic() + 60 * minutes

    def until_the_end() -> Iterator[str]:
        while time.monotonic() < end:
            yield from _troubles(dice, 20, 2)

    with running() as postgres:
        async with ServerCluster(tmp_path, postgres, count=NIGHT_SERVERS) as cluster:
            names = [f"n{number}" for number in range(NIGHT_NAMESPACES)]
            await create_namespaces(cluster.addresses[0], names)
            ledgers = [
                ClusterLedger(name, cluster.addresses, dice, pause=NIGHT_PAUSE) for name in names
            ]
            await _endure(cluster, ledgers, dice, until_the_end())


async def _endure(
    cluster: ServerCluster,
    ledgers: list[ClusterLedger],
    dice: random.Random,
    troubles: Iterable[str],
) -> None:
    """Have users work in namespaces through troubles, and compare what they were answered with what there is."""
    caused: Counter[str] = Counter()
    async with asyncio.TaskGroup() as group:
        watchers = [group.create_task(ledger.watch()) for ledger in ledgers]
        work = [kind for each in ledgers for kind in (each.work, each.consume)]
        workers = [group.create_task(kind()) for kind in work for _ in range(WORKERS)]
        for what in troubles:
            caused[what] += 1
            await _trouble(cluster, dice, what)
        for ledger in ledgers:
            ledger.finish()
        await asyncio.gather(*workers)
        begun = time.monotonic()
        await asyncio.gather(*[ledger.check() for ledger in ledgers])
        print(f"compared with all servers in {time.monotonic() - begun:.0f} s")
        for watcher in watchers:
            watcher.cancel()
    commits = await cluster.check_commits()
    for ledger in ledgers:
        await ledger.close()
    longest = max((ledger.longest for ledger in ledgers), key=lambda call: call.seconds)
    unanswered = sum((ledger.unanswered for ledger in ledgers), Counter[str]())
    print(
        f"{dict(caused)}: {sum(each.answered for each in ledgers)} answered writes, "
        f"{sum(each.reads for each in ledgers)} reads, {commits} commits, "
        f"{sum(len(each.watched) for each in ledgers)} finishes watched, "
        f"{sum(len(one.trained) for each in ledgers for one in each.consumers)} deliveries acknowledged, "
        f"{unanswered.total()} calls without an answer in their time, "
        f"the longest call, {longest.name}, took {longest.seconds:.1f} s"
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


async def test_owner_that_was_stopped_answers_nothing_that_is_no_longer_true(
    cluster: ServerCluster, tries
) -> None:
    for number in range(tries("stopped owners")):
        await _read_from_former_owner(cluster, f"read-{number}")
        await _write_to_former_owner(cluster, f"write-{number}")
    await cluster.check_commits()


async def test_without_the_check_of_the_lease_reads_are_stale_and_writes_are_not_lost(
    tmp_path: Path,
) -> None:
    async with started(tmp_path, "no lease check", lease_seconds=SHORT_LEASE) as cluster:
        await _write_to_former_owner(cluster, "write")
        with pytest.raises(AssertionError, match="a stale read"):
            for number in range(8):  # a renewal that comes first hides it at times
                await _read_from_former_owner(cluster, f"read-{number}")


async def test_without_the_check_of_the_epoch_writes_are_lost(tmp_path: Path) -> None:
    mutant = "no lease check,no epoch check"
    async with started(tmp_path, mutant, lease_seconds=SHORT_LEASE) as cluster:
        with pytest.raises(AssertionError, match="an answered write is lost"):
            for number in range(8):
                await _write_to_former_owner(cluster, f"write-{number}")


async def _read_from_former_owner(cluster: ServerCluster, rollout_id: str) -> None:
    """Stop the owner, have another one take over and change a rollout, and read it where it was stopped."""
    ledger = ClusterLedger("a", cluster.addresses, random.Random(1))
    # With a client of its own: those of the ledger must not have gone to the owner, which is stopped.
    async with AsyncLightningStore(cluster.addresses[0], namespace="a") as store:
        await store.enqueue_rollouts([{"input": 1, "rollout_id": rollout_id}])
    async with _stopped_owner(cluster, ledger) as (behind, ahead):
        await ahead.cancel_rollouts([rollout_id])
        late = asyncio.create_task(behind.get_rollout(rollout_id))
    assert (await late).status.value == "cancelled", "a stale read"
    await ledger.close()


async def _write_to_former_owner(cluster: ServerCluster, rollout_id: str) -> None:
    """Stop the owner, have another one take over, and write where it was stopped."""
    ledger = ClusterLedger("a", cluster.addresses, random.Random(1))
    async with AsyncLightningStore(cluster.addresses[0], namespace="a") as store:
        # What is running has the namespace taken over, and the next claim finds what is written now, or nothing.
        await store.enqueue_rollouts([{"input": 1, "rollout_id": f"{rollout_id}-before"}])
        while await store.dequeue_rollouts(100):
            pass
    async with _stopped_owner(cluster, ledger) as (behind, ahead):
        late = asyncio.create_task(
            behind.enqueue_rollouts([{"input": 2, "rollout_id": rollout_id}])
        )
    await late
    claimed = await ahead.dequeue_rollouts(100)
    assert rollout_id in [rollout.rollout_id for rollout in claimed], "an answered write is lost"
    await ledger.close()


@asynccontextmanager
async def _stopped_owner(
    cluster: ServerCluster, ledger: ClusterLedger
) -> AsyncIterator[tuple[AsyncLightningStore, AsyncLightningStore]]:
    """Stop the owner of a namespace until the end of the context.

    Provides clients of the stopped server, whose calls wait in its buffers, and of the next owner.
    """
    former = await cluster.owner_after("a")
    former.signal(signal.SIGSTOP)
    try:
        owner = await cluster.owner_after("a", former)
        clients = dict(zip(cluster.addresses, ledger.stores, strict=True))
        yield clients[former.address], clients[owner.address]
        await asyncio.sleep(0.2)  # the call is in the buffers of the stopped server
    finally:
        former.signal(signal.SIGCONT)
