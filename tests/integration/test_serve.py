"""`lightningstore serve` as a process: how it starts, ends, refuses, and survives being killed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from lightningstore.client import AsyncLightningStore, DeadlineExceededError, UnavailableError
from lightningstore.service.cli.serve import reachable
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest, RolloutSpec
from lightningstore.v1.span_pb2 import SpanBatch
from lightningstore.v1.statistics_pb2 import GetStatisticsRequest

from tests.contract.helpers import batch
from tests.integration import unread
from tests.integration.process import Process, run, serve
from tests.namespaced import Caller
from tests.ports import free_port

pytestmark = pytest.mark.asyncio

Start = Callable[..., Awaitable[tuple[Process, AsyncLightningStore]]]


@pytest_asyncio.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start a server, with a client; both are cleared away."""
    started: list[tuple[Process, AsyncLightningStore]] = []

    async def begin(
        *options: str, timeout: float = 10, http: bool = False
    ) -> tuple[Process, AsyncLightningStore]:
        if "--port" not in options:
            options = ("--port", "0", *options)
        process = await serve(*options, folder=tmp_path, http=http)
        started.append((process, AsyncLightningStore(process.address, timeout=timeout)))
        return started[-1]

    yield begin
    for process, store in started:
        await store.close()
        await process.stop(signal.SIGKILL)


def files(folder: Path) -> list[Path]:
    """Return what is in a folder."""
    return list(folder.iterdir())


async def until_gone(address: str) -> None:
    """Return when a server takes no more calls."""
    store = AsyncLightningStore(address, timeout=0.2)
    with contextlib.suppress(UnavailableError):
        while True:
            with contextlib.suppress(DeadlineExceededError):  # a busy machine answers late
                await store.get_server_info()
    await store.close()


def one_line(text: str) -> str:
    """Return the only line of a text."""
    assert text.endswith("\n")
    assert text.count("\n") == 1, text
    return text[:-1]


async def claimed(store: AsyncLightningStore) -> tuple[str, str]:
    rollout = await store.start_rollout({"task": 1})
    return rollout.rollout_id, rollout.attempt.attempt_id


async def test_first_line_says_where_it_is_and_where_the_data_lives(
    start: Start, tmp_path: Path
) -> None:
    process, store = await start("--db", "my.db")
    line = process.first_line
    assert line.startswith(f"lightningstore {version('lightningstore')} on 127.0.0.1:")
    assert "my.db" in line
    assert "durability full" in line
    assert (tmp_path / "my.db").exists()
    assert (await store.get_server_info()).backend == "sqlite"


async def test_namespaces_outlive_kill_minus_nine_and_are_counted_at_start(
    start: Start, tmp_path: Path
) -> None:
    first, _ = await start("--db", "my.db")
    async with grpc.aio.insecure_channel(first.address) as channel:
        caller = Caller(channel)
        await caller.create("a")
        specs = [RolloutSpec(input_json=b"{}")] * 2
        await caller.call("EnqueueRollouts", EnqueueRolloutsRequest(rollouts=specs), "a")
    assert "namespaces" not in first.first_line
    await first.stop(signal.SIGKILL)
    second, _ = await start("--db", "my.db")
    assert ", 2 namespaces, access: " in second.first_line
    async with grpc.aio.insecure_channel(second.address) as channel:
        found = await Caller(channel).call("GetStatistics", GetStatisticsRequest(), "a")
        assert found.queue_depth == 2
    assert await second.stop() == 0
    assert sorted(path.name for path in (tmp_path / "my.db.d").iterdir()) == ["a.db"]


async def test_lines_after_the_first_say_what_to_do_and_the_last_one_that_it_stopped(
    start: Start,
) -> None:
    process, _ = await start("--db", "my.db", http=True)
    assert process.process.stdout is not None
    clients, link, further = [(await process.process.stdout.readline()).decode() for _ in range(3)]
    assert clients == f"clients: export LIGHTNINGSTORE_ADDRESS={process.address}\n"
    assert re.fullmatch(r"console: http://127\.0\.0\.1:\d+\n", link)
    assert further.startswith("next: lightningstore enqueue")
    process.process.send_signal(signal.SIGTERM)
    rest, _ = await asyncio.wait_for(process.process.communicate(), 20)
    stopping, stopped = rest.decode().splitlines()
    assert stopping == "stopping: open calls have 10s to end"
    assert re.fullmatch(
        r"stopped, served for [\w.]+: all calls had ended, data in .*my\.db, durability full",
        stopped,
    )


async def test_a_server_whose_stdout_was_closed_stops_like_any_other(start: Start) -> None:
    process, _ = await start("--backend", "memory")
    process.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    assert await process.stop() == 0


async def test_a_server_on_all_addresses_names_one_that_others_can_reach(start: Start) -> None:
    process, _ = await start("--host", "0.0.0.0", "--insecure")
    assert process.address.startswith("0.0.0.0:")
    assert process.process.stdout is not None
    line = (await process.process.stdout.readline()).decode().strip()
    host, _, port = line.removeprefix("clients: export LIGHTNINGSTORE_ADDRESS=").rpartition(":")
    assert host not in ("", "0.0.0.0")
    async with AsyncLightningStore(f"{host}:{port}", timeout=10) as store:
        assert (await store.get_server_info()).backend == "sqlite"


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("::1", "[::1]"),
        ("[::1]", "[::1]"),
        ("store.example.com", "store.example.com"),
    ],
)
async def test_a_host_that_is_no_wildcard_is_shown_as_it_is(host: str, shown: str) -> None:
    assert reachable(host) == shown


async def test_memory_server_says_so_and_writes_no_file(start: Start, tmp_path: Path) -> None:
    process, store = await start("--backend", "memory")
    assert "memory" in process.first_line
    assert (await store.get_server_info()).durability == "none"
    assert await process.stop() == 0
    assert files(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_ends_an_idle_server_cleanly(start: Start, number: signal.Signals) -> None:
    process, store = await start()
    await store.get_server_info()
    assert await process.stop(number) == 0


async def test_end_after_the_data_file_was_deleted_is_no_good_end(
    start: Start, tmp_path: Path
) -> None:
    server, store = await start()
    await store.enqueue_rollout(1)
    (data,) = tmp_path.rglob("*.db")
    for path in data.parent.glob(f"{data.name}*"):
        path.unlink()
    async with grpc.aio.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        serving = health_pb2.HealthCheckResponse.SERVING
        while (await health.Check(health_pb2.HealthCheckRequest())).status == serving:
            await asyncio.sleep(0.05)
    assert await server.stop() == 1
    assert len(list(data.parent.glob(f"{data.name}.rescued-*"))) == 1


@pytest.mark.parametrize("backend", ["sqlite", "memory"])
async def test_sigterm_ends_open_calls_as_documented(start: Start, backend: str) -> None:
    process, store = await start("--backend", backend, "--grace", "1")
    ids = await claimed(store)
    other = AsyncLightningStore(process.address, timeout=2)
    poll = asyncio.create_task(other.dequeue_rollouts(1, wait=60))
    wait, watch = other.wait_for_rollouts([ids[0]]), other.watch_rollouts()
    await wait.registered()
    await watch.registered()
    first_sent, stay = asyncio.Event(), asyncio.Event()

    async def batches() -> AsyncIterator[SpanBatch]:
        yield batch(*ids, "a")
        first_sent.set()
        await stay.wait()

    ingest = asyncio.create_task(other.ingest_spans(batches()))
    await first_sent.wait()
    while (await store.get_statistics()).waiter_count < 3:
        await asyncio.sleep(0)
    assert await process.stop() == 0
    assert await asyncio.wait_for(poll, 30) == []
    for stream in (wait, watch):
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(stream.__anext__(), 30)
    stay.set()
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(ingest, 30)
    assert "open calls were cut off after 1s" in process.said[-1]
    await other.close()


async def test_ingest_that_ends_within_the_grace_is_answered(start: Start) -> None:
    process, store = await start("--grace", "10")
    ids = await claimed(store)
    go, sent = asyncio.Event(), asyncio.Event()

    async def batches() -> AsyncIterator[SpanBatch]:
        yield batch(*ids, "a")
        sent.set()
        await go.wait()
        yield batch(*ids, "b")

    ingest = asyncio.create_task(store.ingest_spans(batches()))
    await sent.wait()
    while not (await store.get_statistics()).span_count:
        await asyncio.sleep(0)
    stopping = asyncio.create_task(process.stop())
    await until_gone(process.address)
    go.set()
    assert (await asyncio.wait_for(ingest, 30)).accepted_count == 2
    assert await stopping == 0
    _, again = await start()
    assert [s.name async for s in again.query_spans(ids[0])] == ["a", "b"]


async def test_port_in_use_is_refused_and_nothing_created(start: Start, tmp_path: Path) -> None:
    process, _ = await start("--backend", "memory")
    port = process.address.rpartition(":")[2]
    code, out, errors = await run("serve", "--port", port, "--db", "new.db", folder=tmp_path)
    assert (code, out) == (1, "")
    assert process.address in one_line(errors)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--port", "x", "--port"),
        ("--port", "70000", "--port"),
        ("--backend", "oracle", "--backend"),
        ("--durability", "some", "--durability"),
        ("--grace", "-1", "--grace"),
        ("--max-batch-items", "0", "--max-batch-items"),
        ("--eviction-threshold", "-1", "--eviction-threshold"),
        ("--eviction-threshold", "inf", "--eviction-threshold"),
        ("--safe-threshold", "1.5", "--safe-threshold"),
        ("--host", "no.such.host.invalid", "no.such.host.invalid"),
        ("--host", "192.0.2.1", "192.0.2.1"),
        ("--db", "no/such/folder/x.db", "no/such/folder/x.db"),
        ("--nope", "1", "--nope"),
        ("--retain-finished", "soon", "--retain-finished: a lifetime must be like 30d"),
        ("--database-url", "mysql://h/d", "--database-url: must be a URL such as"),
        ("--processes", "2", "lightningstore: --processes requires --data"),
        ("--data", __file__, "is a file: --db names a file"),
    ],
)
async def test_bad_option_is_named_in_one_line(
    tmp_path: Path, option: str, value: str, named: str
) -> None:
    arguments = () if option == "--port" else ("--port", "0")
    code, out, errors = await run("serve", *arguments, option, value, folder=tmp_path)
    assert out == ""
    if option in ("--host", "--db"):  # well-formed; only the machine knows that it cannot be
        assert (code, errors.count("\n")) == (1, 1)
    else:
        assert code == 2
        assert errors.splitlines()[1].startswith("usage: lightningstore serve [OPTIONS]")
    assert named in errors.splitlines()[0]
    assert files(tmp_path) == []


async def test_bad_environment_variable_is_named_in_one_line(tmp_path: Path) -> None:
    code, _, errors = await run("serve", folder=tmp_path, LIGHTNINGSTORE_PORT="x")
    assert code == 2
    assert "port" in errors.splitlines()[0]
    assert files(tmp_path) == []


def foreign(path: Path, kind: str) -> None:
    if kind == "text":
        path.write_text("my diary\n" * 100)
    elif kind == "short":
        path.write_text("x")
    elif kind == "sqlite":
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE mine (x)")
        connection.execute("INSERT INTO mine VALUES (1)")
        connection.commit()
        connection.close()
    else:
        path.mkdir()


@pytest.mark.parametrize("kind", ["text", "short", "sqlite", "folder"])
async def test_foreign_file_is_refused_and_left_as_it_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "foreign.db"
    foreign(path, kind)
    before = path.read_bytes() if path.is_file() else None
    arguments = ("serve", "--port", "0", "--db", "foreign.db")
    code, out, errors = await run(*arguments, folder=tmp_path)
    assert (code, out) == (1, "")
    assert "foreign.db" in one_line(errors)
    assert files(tmp_path) == [path]
    assert (path.read_bytes() if path.is_file() else None) == before


async def test_second_server_on_the_same_file_is_refused(start: Start, tmp_path: Path) -> None:
    _, store = await start("--db", "one.db")
    arguments = ("serve", "--port", "0", "--db", "one.db")
    code, _, errors = await run(*arguments, folder=tmp_path)
    assert code == 1
    assert "one.db" in one_line(errors)
    assert "in use" in errors
    await store.enqueue_rollout(1)
    assert (await store.get_statistics()).queue_depth == 1


async def test_file_of_a_newer_version_is_refused_and_left_as_it_is(
    start: Start, tmp_path: Path
) -> None:
    process, _ = await start("--db", "x.db")
    await process.stop()
    path = tmp_path / "x.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9999")
    connection.close()
    before = path.read_bytes()
    arguments = ("serve", "--port", "0", "--db", "x.db")
    code, _, errors = await run(*arguments, folder=tmp_path)
    assert code == 1
    assert re.search("newer", one_line(errors))
    assert path.read_bytes() == before


@pytest.mark.parametrize("durability", ["full", "relaxed"])
async def test_kill_minus_nine_keeps_every_answered_write(start: Start, durability: str) -> None:
    options = ("--db", "x.db", "--durability", durability)
    process, store = await start(*options, timeout=5)
    store_id = (await store.get_server_info()).store_id
    ids = await claimed(store)
    enqueued: list[str] = []
    spans = 0
    enough = asyncio.Event()

    async def enqueue() -> None:
        while True:
            enqueued.append((await store.enqueue_rollout(len(enqueued))).rollout_id)
            if len(enqueued) >= 200:
                enough.set()

    async def add() -> None:
        nonlocal spans
        while True:
            result = await store.add_spans(batch(*ids, "a", "b"))
            spans += result.accepted_count

    writers = [asyncio.create_task(work()) for work in (enqueue, enqueue, add, add)]
    await asyncio.wait_for(enough.wait(), 30)
    assert await process.stop(signal.SIGKILL) == -signal.SIGKILL
    for writer in writers:
        with pytest.raises(UnavailableError):
            await writer

    _, again = await start(*options)
    assert (await again.get_server_info()).store_id == store_id
    found = {r.rollout_id async for r in again.iter_rollouts()}
    assert set(enqueued) <= found
    stored = [s.sequence_id async for s in again.query_spans(ids[0])]
    # What was under way may be there as well, whole.
    assert spans <= len(stored) <= spans + 4
    assert stored == list(range(1, len(stored) + 1))
    counted = await again.get_statistics()
    assert counted.span_count == len(stored)
    assert counted.queue_depth == len(found) - 1


async def test_claims_and_finishes_survive_kill_minus_nine(start: Start) -> None:
    process, store = await start("--db", "x.db")
    rollouts = await store.enqueue_rollouts([{"input": n} for n in range(4)])
    claims = await store.dequeue_rollouts(2, worker_id="w")
    await store.update_attempt(
        claims[0].rollout_id, claims[0].attempt.attempt_id, status="succeeded"
    )
    await store.add_resources({"a": 1}, resources_id="r")
    assert await process.stop(signal.SIGKILL) == -signal.SIGKILL

    _, again = await start("--db", "x.db")
    statuses = [(await again.get_rollout(r.rollout_id)).status for r in rollouts]
    assert statuses == ["succeeded", "preparing", "queuing", "queuing"]
    left = await again.dequeue_rollouts(10)
    assert [r.rollout_id for r in left] == [r.rollout_id for r in rollouts[2:]]
    assert (await again.get_resources()).resources_id == "r"
    assert (await again.get_statistics()).last_completion_number == 1
    async with again.watch_rollouts(0) as watch:
        assert (await watch.__anext__()).rollout_id == rollouts[0].rollout_id


async def test_client_goes_on_by_itself_when_the_server_comes_back(start: Start) -> None:
    port = str(free_port())
    process, store = await start("--db", "x.db", "--port", port, timeout=20)
    (rollout,) = await store.enqueue_rollouts([{"input": 1}])
    wait = store.wait_for_rollouts([rollout.rollout_id])
    await wait.registered()
    results = asyncio.create_task(wait.results())
    await process.stop(signal.SIGKILL)
    _, other = await start("--db", "x.db", "--port", port, timeout=20)
    await other.start_attempt(rollout.rollout_id)
    await other.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    (finished,) = await asyncio.wait_for(results, 20)
    assert finished.status == "succeeded"


async def test_headers_that_are_not_utf_8_are_not_logged(start: Start) -> None:
    process, _ = await start("--backend", "memory")
    peer = await unread.connect(process.address)
    path = "/lightningstore.v1.LightningStoreService/GetServerInfo"
    await peer.begin(path, b"", metadata={"x-user": b"Zo\xeb"})
    await peer.close()
    process.process.send_signal(signal.SIGTERM)
    _, errors = await asyncio.wait_for(process.process.communicate(), 20)
    assert b"Invalid encoding" not in errors
