"""Several servers over one folder of data files, or one database: each namespace has one owner, and all answer for all."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from lightningstore.client import AsyncLightningStore
from lightningstore.service.cluster.servers import DatabaseCluster
from lightningstore.service.operations.store import Store
from lightningstore.service.rpc.forwarding import FORWARDED_KEY, OWNER_KEY
from lightningstore.service.rules.errors import OwnershipLost, StorageFailed
from lightningstore.service.server.server import Server
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.lease import View
from lightningstore.service.storage.postgres.store import PostgresStorage
from lightningstore.service.storage.postgres.transfer import _owned
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest, StartRolloutRequest
from lightningstore.v1.cluster_pb2 import ListServersRequest, MoveNamespaceRequest
from lightningstore.v1.completion_pb2 import WatchRolloutsRequest
from lightningstore.v1.namespace_pb2 import (
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    GetNamespaceRequest,
    ListNamespacesRequest,
    Namespace,
    UpdateNamespaceRequest,
)
from lightningstore.v1.resources_pb2 import WatchResourcesRequest
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest, GetRolloutRequest
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub
from lightningstore.v1.span_pb2 import QuerySpansRequest
from lightningstore.v1.statistics_pb2 import GetServerInfoRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.machines import Machines, Processes, Servers
from tests.namespaced import METHODS, Caller, reason_of
from tests.postgres import PostgresServer

pytestmark = pytest.mark.asyncio

NAMES = ("default", "a", "b", "c", "d", "e")


@pytest_asyncio.fixture(params=["processes", "database"])
async def machine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Machines]:
    """Two servers with the namespaces of NAMES."""
    machine: Machines
    if request.param == "processes":
        machine = Processes(tmp_path / "data")
    else:
        # Neither ends without a word: a lease that a busy machine renews late is not to run out.
        machine = Servers(request.getfixturevalue("postgres"), lease_seconds=30)
    await machine.start()
    for number, name in enumerate(NAMES[1:]):
        await machine.callers[number % 2].create(name, description=f"run {name}")
    yield machine
    await machine.stop()
    await machine.close()


def enqueue(text: str) -> EnqueueRolloutsRequest:
    """Return a request with one rollout."""
    request = EnqueueRolloutsRequest()
    request.rollouts.add(input_json=b'{"text": "%s"}' % text.encode())
    return request


async def test_both_servers_own_namespaces_and_each_one_is_open_once(machine: Machines) -> None:
    assert {await machine.owner(name) for name in NAMES} == {0, 1}
    for name in NAMES:
        await machine.callers[0].call(
            "GetStatistics", GetMessageClass(METHODS["GetStatistics"].input_type)(), name
        )
        opened = [
            [space.name for space in server.directory.spaces() if space.store is not None]
            for server in machine.servers
        ]
        assert [name in names for names in opened].count(True) == 1


async def test_what_one_server_stores_the_other_shows(machine: Machines) -> None:
    for name in NAMES:
        rollout = (await machine.callers[0].call("EnqueueRollouts", enqueue(name), name)).rollouts[
            0
        ]
        request = GetRolloutRequest(rollout_id=rollout.rollout_id)
        found = (await machine.callers[1].call("GetRollout", request, name)).rollout
        assert name.encode() in found.input_json
        for other in NAMES:
            if other != name:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await machine.callers[0].call("GetRollout", request, other)
                assert reason_of(raised.value)[1] == "ROLLOUT_NOT_FOUND"


async def test_server_info_names_the_owner_and_forwarded_answers_do_too(machine: Machines) -> None:
    for name in NAMES:
        owner = await machine.owner(name)
        for index, caller in enumerate(machine.callers):
            call = caller.begin("GetServerInfo", GetServerInfoRequest(), name)
            info = await call
            assert (info.owner, info.namespace) == (machine.addresses[owner], name)
            trailers = dict(await call.trailing_metadata())
            assert trailers.get(OWNER_KEY) == (None if index == owner else machine.addresses[owner])


async def test_every_call_is_answered_alike_by_both_servers(machine: Machines) -> None:
    """Empty requests: an answer, or the same error."""

    async def outcome(caller: Caller, method: str, name: str) -> Any:
        request = GetMessageClass(METHODS[method].input_type)()
        try:
            answers = await caller.call(method, request, name, timeout=1)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                return "waits"
            return reason_of(error)
        return type(answers)

    for method in METHODS:
        for name in ("default", "a", "b", "none"):
            first, second = [await outcome(caller, method, name) for caller in machine.callers]
            assert first == second, (method, name)


async def test_namespaces_are_listed_changed_and_deleted_through_any_server(
    machine: Machines,
) -> None:
    for number, caller in enumerate(machine.callers):
        listed = (await caller.call("ListNamespaces", ListNamespacesRequest())).namespaces
        assert [each.name for each in listed] == sorted(NAMES)
        assert {each.description for each in listed if each.name not in ("a", "default")} == {
            f"run {name}" for name in NAMES[2:]
        }
        changed = Namespace(name="a", description=f"changed {number}")
        await caller.call("UpdateNamespace", UpdateNamespaceRequest(namespace=changed))
        for each in machine.callers:
            found = await each.call("GetNamespace", GetNamespaceRequest(name="a"))
            assert found.namespace.description == f"changed {number}"
    await machine.callers[0].delete("a")
    await machine.callers[0].delete("b")
    for caller in machine.callers:
        listed = (await caller.call("ListNamespaces", ListNamespacesRequest())).namespaces
        assert [each.name for each in listed] == ["c", "d", "default", "e"]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await caller.call("EnqueueRollouts", enqueue("x"), "a")
        assert reason_of(raised.value)[1] == "NAMESPACE_NOT_FOUND"


async def test_a_namespace_created_twice_at_once_exists_once(machine: Machines) -> None:
    async def create(caller: Caller) -> bool:
        while True:
            try:
                await caller.create("fresh")
            except grpc.aio.AioRpcError as error:
                # The servers may not agree yet on who owns it: clients repeat such a call.
                if (reason := reason_of(error)[1]) == "NOT_OWNER":
                    await asyncio.sleep(0.05)
                    continue
                assert reason == "NAMESPACE_EXISTS"
                return False
            return True

    outcomes = await asyncio.gather(*[create(machine.callers[i % 2]) for i in range(8)])
    assert outcomes.count(True) == 1


async def test_polls_and_watches_work_through_the_other_server(machine: Machines) -> None:
    for name in NAMES:
        far = machine.callers[1 - await machine.owner(name)]
        watch = far.begin("WatchRollouts", WatchRolloutsRequest(), name, timeout=30)
        await watch.read()
        request = DequeueRolloutsRequest(limit=1, worker_id="w")
        request.wait.FromSeconds(20)
        polling = asyncio.ensure_future(far.call("DequeueRollouts", request, name, timeout=30))
        await asyncio.sleep(0.05)
        near = machine.callers[await machine.owner(name)]
        rollout_id = (
            (await near.call("EnqueueRollouts", enqueue(name), name)).rollouts[0].rollout_id
        )
        assert (await polling).rollouts[0].rollout_id == rollout_id
        cancel = GetMessageClass(METHODS["CancelRollouts"].input_type)(rollout_ids=[rollout_id])
        await near.call("CancelRollouts", cancel, name)
        assert (await watch.read()).rollouts[0].rollout_id == rollout_id
        watch.cancel()


def export(attempts: list[tuple[str, str, str]]) -> ExportTraceServiceRequest:
    """Return spans of attempts, each given as namespace, rollout id and attempt id."""
    request = ExportTraceServiceRequest()
    for number, (name, rollout_id, attempt_id) in enumerate(attempts):
        spans = request.resource_spans.add()
        for key, value in (
            ("lightningstore.namespace", name),
            ("agentlightning.rollout_id", rollout_id),
            ("agentlightning.attempt_id", attempt_id),
        ):
            spans.resource.attributes.add(key=key).value.string_value = value
        span = spans.scope_spans.add().spans.add(name="step")
        span.trace_id, span.span_id = bytes(16 - 1) + b"1", bytes(7) + bytes([number + 1])
        span.start_time_unix_nano = span.end_time_unix_nano = 1
    return request


@pytest.mark.parametrize("encoding", ["grpc", "protobuf", "json"])
async def test_spans_reach_the_namespace_that_their_resource_names(
    machine: Machines, encoding: str
) -> None:
    attempts = []
    for name in NAMES:
        request = StartRolloutRequest()
        request.rollout.input_json = b"{}"
        rollout = (await machine.callers[0].call("StartRollout", request, name)).rollout
        attempts.append((name, rollout.rollout_id, rollout.latest_attempt.attempt_id))
    attempts.append(("nowhere", *attempts[0][1:]))
    sent = export(attempts)
    path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    if encoding == "grpc":
        async with grpc.aio.insecure_channel(machine.addresses[0]) as channel:
            data = await channel.unary_unary(path)(sent.SerializeToString())
    else:
        data = await post(machine.servers[0], sent, encoding)
    answer = ExportTraceServiceResponse.FromString(data)
    assert answer.partial_success.rejected_spans == 1
    assert "nowhere" in answer.partial_success.error_message
    for name, rollout_id, _ in attempts[:-1]:
        request = QuerySpansRequest(rollout_id=rollout_id)
        answers = await machine.callers[1].call("QuerySpans", request, name)
        assert sum(len(batch.spans) for each in answers for batch in each.batches) == 1


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
async def test_http_headers_that_grpc_does_not_send_do_not_fail_an_export(
    machine: Machines, encoding: str
) -> None:
    """The headers are those of any proxy, or of anybody. The other server is reached by gRPC."""
    odd = {"x-lightning-!": "a", "x-lightning-note": "a\tb", "x-lightning-note-bin": "not base64!"}
    for name in NAMES:
        for server in machine.servers:
            headers = odd | {"x-lightning-namespace": name}
            await post(server, ExportTraceServiceRequest(), encoding, headers)


async def post(
    server: Server,
    sent: ExportTraceServiceRequest,
    encoding: str,
    more_headers: Mapping[str, str] | None = None,
) -> bytes:
    """Send spans over HTTP; return the answer as protobuf."""
    is_json = encoding == "json"
    body: Any = as_json(sent) if is_json else sent.SerializeToString()
    headers = {"Content-Type": f"application/{'json' if is_json else 'x-protobuf'}"}
    headers |= more_headers or {}
    url = f"http://127.0.0.1:{server.otlp_http_port}/v1/traces"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=body, headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        data = await response.read()
    if is_json:
        return json_format.Parse(data, ExportTraceServiceResponse()).SerializeToString()
    return data


def as_json(sent: ExportTraceServiceRequest) -> bytes:
    """Return a request in OTLP's JSON, whose ids are hexadecimal."""
    content = json_format.MessageToDict(sent, use_integers_for_enums=True)
    for resource in content.get("resourceSpans", []):
        for span in resource["scopeSpans"][0]["spans"]:
            for key in ("traceId", "spanId"):
                span[key] = base64.b64decode(span[key]).hex()
    return json.dumps(content).encode()


async def test_forwarded_call_about_a_namespace_is_for_its_owner_alone(machine: Machines) -> None:
    """Servers may disagree about the owner for a moment, and any client can write what a server writes."""
    other = machine.callers[1 - await machine.owner("a")]
    for method, request in (
        ("CreateNamespace", CreateNamespaceRequest(namespace=Namespace(name="a"))),
        ("GetNamespace", GetNamespaceRequest(name="a")),
        ("UpdateNamespace", UpdateNamespaceRequest(namespace=Namespace(name="a", description="x"))),
        ("DeleteNamespace", DeleteNamespaceRequest(name="a", force=True)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await other.call(method, request, more=((FORWARDED_KEY, "somebody:1"),))
        assert reason_of(raised.value)[1] == "NOT_OWNER", method
    found = await other.call("GetNamespace", GetNamespaceRequest(name="a"))
    assert found.namespace.description == "run a"


async def test_everything_is_there_after_a_restart(machine: Machines) -> None:
    ids = {}
    for name in NAMES:
        answer = await machine.callers[0].call("EnqueueRollouts", enqueue(name), name)
        ids[name] = answer.rollouts[0].rollout_id
    await machine.stop()
    await machine.start()
    for name, rollout_id in ids.items():
        for caller in machine.callers:
            await caller.call("GetRollout", GetRolloutRequest(rollout_id=rollout_id), name)


async def test_servers_are_listed_with_what_they_own(machine: Machines) -> None:
    owners = {name: machine.addresses[await machine.owner(name)] for name in NAMES}
    for caller in machine.callers:
        listed = (await caller.call("ListServers", ListServersRequest())).servers
        assert [each.address for each in listed] == sorted(machine.addresses)
        assert not any(each.draining for each in listed)
        found = {name: each.address for each in listed for name in each.namespaces}
        assert found == owners


async def test_a_namespace_moves_on_request_or_says_why_not(machine: Machines) -> None:
    for name in ("default", "a"):
        target = 1 - await machine.owner(name)
        rollout = (await machine.callers[0].call("EnqueueRollouts", enqueue(name), name)).rollouts[
            0
        ]
        move = MoveNamespaceRequest(name=name, address=machine.addresses[target])
        if isinstance(machine, Processes):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await machine.callers[0].call("MoveNamespace", move)
            assert reason_of(raised.value)[1:] == ("FIELD_INVALID", {"field": "address"})
            continue
        await machine.callers[0].call("MoveNamespace", move)
        for number in (0, 1, 0):
            request = GetRolloutRequest(rollout_id=rollout.rollout_id)
            while True:
                try:
                    info = await machine.callers[number].call(
                        "GetServerInfo", GetServerInfoRequest(), name
                    )
                    await machine.callers[number].call("GetRollout", request, name)
                except grpc.aio.AioRpcError as error:
                    assert reason_of(error)[1] in ("NOT_OWNER", "SHUTTING_DOWN")
                else:
                    if info.owner == machine.addresses[target]:
                        break
                await asyncio.sleep(0.05)
    for wrong in ("nowhere:1", "x"):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            move = MoveNamespaceRequest(name="a", address=wrong)
            await machine.callers[0].call("MoveNamespace", move)
        assert reason_of(raised.value)[1] == "FIELD_INVALID"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await machine.callers[0].call("MoveNamespace", MoveNamespaceRequest(name="none"))
    assert reason_of(raised.value)[1] == "NAMESPACE_NOT_FOUND"


async def test_namespace_that_was_taken_over_during_a_recovery_is_opened_again(
    postgres: PostgresServer,
) -> None:
    machine = Servers(postgres)
    await machine.start()
    directory = machine.servers[await machine.owner("default")].directory
    store = directory.find("default").store
    assert store is not None

    async def fail(_: object = None) -> None:
        raise StorageFailed("the connection was refused")

    async def lose() -> None:
        raise OwnershipLost("another server has taken over")

    store.engine.storage.commit, store.engine.storage.open = fail, lose  # type: ignore[method-assign,assignment]
    caller = machine.callers[await machine.owner("default")]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await caller.call("EnqueueRollouts", enqueue("lost"))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    await until_closed(store)
    answer = await caller.call("EnqueueRollouts", enqueue("kept"))
    assert len(answer.rollouts) == 1
    await machine.stop()
    await machine.close()


async def test_server_that_shuts_down_ends_what_waits_at_another_one(
    machine: Machines,
) -> None:
    other = 1 - await machine.owner("default")
    async with grpc.aio.insecure_channel(machine.servers[other].address) as channel:
        stub = LightningStoreServiceStub(channel)
        watches = [
            stub.WatchRollouts(WatchRolloutsRequest()),
            stub.WatchResources(WatchResourcesRequest()),
        ]
        for watch in watches:
            await watch.read()  # where it begins
        poll = DequeueRolloutsRequest(limit=1)
        poll.wait.FromSeconds(60)
        waiting = [
            *(asyncio.ensure_future(watch.read()) for watch in watches),
            asyncio.ensure_future(stub.DequeueRollouts(poll)),
        ]
        owner = machine.servers[1 - other].directory.find("default").store
        assert owner is not None
        while owner.engine.waiters.count + len(owner.engine.polls) < 3:
            await asyncio.sleep(0.01)
        await machine.servers[other].stop(600)  # pytest's own timeout is shorter
        for end in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(end, grpc.aio.AioRpcError)
            assert reason_of(end)[1] == "SHUTTING_DOWN"


async def test_processes_that_serve_nothing_get_no_namespaces_and_calls_say_who_owns(
    postgres: PostgresServer,
) -> None:
    """Such as `lightningstore migrate`, and programs that open a namespace of the database themselves."""
    machine = Servers(postgres, settle_seconds=0.0)
    await machine.start()
    caller = machine.callers[0]
    await caller.create("copied")
    for server in machine.servers:
        await server.directory.release("copied")
    storages = [PostgresStorage(Database(machine.url), f"own-{number}") for number in range(3)]
    for storage in storages:
        await storage.open()
    async with _owned(Database(machine.url), "copied"):
        for number in range(8):
            await caller.create(f"n{number}")
            await _enqueue_by_client(machine, f"n{number}")
        await asyncio.sleep(1.2)  # two looks: enough to hand a namespace over
        for number in range(8):
            await _enqueue_by_client(machine, f"n{number}")
        for each in machine.callers:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await each.call("EnqueueRollouts", enqueue("late"), "copied")
            code, reason, metadata = reason_of(raised.value)
            assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "NOT_OWNER")
            assert "(migrate, process" in metadata["owner"]
    await _enqueue_by_client(machine, "copied")
    for storage in storages:
        await storage.close()
    await machine.stop()
    await machine.close()


async def _enqueue_by_client(machine: Servers, namespace: str) -> None:
    """Enqueue a rollout with a client, which repeats the call if it meets a hand-over."""
    async with AsyncLightningStore(machine.addresses[1], namespace=namespace) as store:
        await store.enqueue_rollout(1)


async def test_look_that_failed_does_not_hinder_the_next_one(postgres: PostgresServer) -> None:
    machine = Servers(postgres)
    await machine.start(1)
    cluster = machine.servers[0]._cluster
    assert isinstance(cluster, DatabaseCluster)
    membership = cluster._database.membership
    look = membership.look

    async def fail() -> View:
        membership.look = look  # type: ignore[method-assign]
        raise KeyError("unexpected")

    membership.look = fail  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        await cluster.refresh()
    await cluster.refresh()
    await machine.stop()
    await machine.close()


async def until_closed(store: Store) -> None:
    """Return when a server no longer serves from a store."""
    async with asyncio.timeout(15):
        while not store.engine.closing:
            await asyncio.sleep(0.01)
