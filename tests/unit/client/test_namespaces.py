"""The namespace of a client: where it comes from, and that every call names it."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.message_factory import GetMessageClass
from lightningstore.client import (
    AlreadyExistsError,
    AsyncLightningStore,
    FailedPreconditionError,
    InvalidArgumentError,
    LightningStore,
    NotFoundError,
    Runner,
    SpanExporter,
)
from lightningstore.client._transport.methods import SERVICE
from lightningstore.client.connection import NAMESPACE_VARIABLE, endpoint
from lightningstore.client.namespaces import NAMESPACE_KEY
from lightningstore.client.transports import AsyncGrpcTransport, GrpcTransport, ThreadedTransport

from tests.unit.client.fakes import FakeServer, RealServer
from tests.unit.client.twins import Twin

ADDRESS = "127.0.0.1:1"


def runner(*args: Any, **connection: Any) -> Runner:
    return Runner(*args, lambda *_: None, **connection)


@pytest.fixture(autouse=True)
def _no_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAMESPACE_VARIABLE, raising=False)


@pytest.fixture
def recorder(server: FakeServer) -> FakeServer:
    """A server that answers every method with an empty message, or a stream of one."""
    for method in SERVICE.methods:
        answer = GetMessageClass(method.output_type)()
        if method.server_streaming:
            server.on[method.name] = lambda _, answer=answer: iter([answer])
        elif method.client_streaming:
            server.on[method.name] = lambda requests, answer=answer: (list(requests), answer)[1]
        else:
            server.on[method.name] = lambda _, answer=answer: answer
    return server


@pytest_asyncio.fixture
async def real(kind: str, shared: RealServer) -> AsyncIterator[Twin]:
    """A client of a real server, of each kind."""
    twin = Twin(kind, shared.address)
    yield twin
    await twin.close()


async def call_all(transport: Any) -> None:
    """Call every method of the contract."""

    async def once(request: Any) -> AsyncIterator[Any]:
        yield request

    for method in SERVICE.methods:
        request = GetMessageClass(method.input_type)()
        if method.server_streaming:
            assert [a async for a in transport.server_stream(method.name, request, 10.0)]
        elif method.client_streaming:
            await transport.client_stream(method.name, once(request), 10.0)
        else:
            await transport.unary(method.name, request, 10.0)


def named(server: FakeServer) -> dict[str, str | None]:
    """Return the namespace that each method was called with."""
    return {seen.method: seen.metadata.get(NAMESPACE_KEY) for seen in server.seen}


def threaded(where: Any) -> ThreadedTransport:
    return ThreadedTransport(GrpcTransport(where))


@pytest.mark.asyncio
@pytest.mark.parametrize("make", [AsyncGrpcTransport, threaded])
@pytest.mark.parametrize("namespace", ["run-1", None])
async def test_every_call_names_the_namespace(
    recorder: FakeServer, make: Callable[..., Any], namespace: str | None
) -> None:
    transport = make(endpoint(recorder.address, namespace=namespace))
    await call_all(transport)
    await transport.close()
    assert named(recorder) == {method.name: namespace for method in SERVICE.methods}


@pytest.mark.parametrize("make", [LightningStore, AsyncLightningStore, SpanExporter, runner])
def test_namespace_is_taken_where_the_address_is(make: Callable[..., Any]) -> None:
    made = make(ADDRESS, namespace="run-1")
    store = made if isinstance(made, LightningStore | AsyncLightningStore) else made._store
    wanted = endpoint(ADDRESS, namespace="run-1")
    assert store._transport._holder.endpoint == wanted
    assert dict(wanted.metadata) == {NAMESPACE_KEY: "run-1"}
    if isinstance(store, LightningStore):
        assert pickle.loads(pickle.dumps(store))._transport._holder.endpoint == wanted
        store.close()


@pytest.mark.parametrize("make", [LightningStore, AsyncLightningStore, SpanExporter, runner])
@pytest.mark.parametrize("name", ["Run", "-a", "a/b", "a" * 64, "a\n"])
def test_invalid_name_is_rejected_when_the_client_is_made(
    make: Callable[..., Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="namespace must be 1 to 63 of"):
        make(ADDRESS, namespace=name)
    with pytest.raises(ValueError, match="namespace must be 1 to 63 of"):
        make(ADDRESS, metadata={NAMESPACE_KEY: name})
    monkeypatch.setenv(NAMESPACE_VARIABLE, name)
    with pytest.raises(ValueError, match="namespace must be 1 to 63 of"):
        make(ADDRESS)


@pytest.mark.asyncio
async def test_both_clients_manage_namespaces(real: Twin) -> None:
    name = f"run-{uuid.uuid4().hex[:8]}"
    made = await real.call("create_namespace", name, labels={"team": "a"}, retain_finished=60.5)
    assert (made.name, made.labels, made.retain_finished) == (name, {"team": "a"}, 60.5)
    assert (made.description, made.max_bytes, made.max_queue_length) == ("", None, None)
    assert made.store_id
    assert made.update_time is None
    assert made.create_time <= datetime.now(UTC)
    with pytest.raises(AlreadyExistsError):
        await real.call("create_namespace", name)
    changed = await real.call(
        "update_namespace", name, description="d", labels=None, retain_finished=0, max_bytes=1 << 40
    )
    assert (changed.description, changed.labels, changed.retain_finished) == ("d", {}, 0.0)
    assert (changed.max_bytes, changed.max_queue_length) == (1 << 40, None)
    cleared = await real.call("update_namespace", name, description=None, max_bytes=None)
    assert (cleared.description, cleared.max_bytes, cleared.retain_finished) == ("", None, 0.0)
    assert await real.call("get_namespace", name) == cleared
    assert await real.call("list_namespaces", name_contains=name) == [cleared]
    first = await real.call("list_namespaces", page_size=1)
    assert [namespace.name for namespace in first] == ["default"]
    rest = await real.call("list_namespaces", page_token=first.next_page_token)
    assert name in [namespace.name for namespace in rest]
    await real.call("delete_namespace", name)
    with pytest.raises(NotFoundError):
        await real.call("delete_namespace", name)
    await real.call("delete_namespace", name, allow_missing=True)
    with pytest.raises(NotFoundError):
        await real.call("update_namespace", name, description="d")
    with pytest.raises(FailedPreconditionError):
        await real.call("delete_namespace", "default", force=True)
    with pytest.raises(InvalidArgumentError, match="must be 1 to 63"):
        await real.call("create_namespace", "No")


def test_argument_precedes_metadata_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(**options: Any) -> str | None:
        return dict(endpoint(ADDRESS, **options).metadata).get(NAMESPACE_KEY)

    other = {"X-Lightning-Namespace": "metadata"}
    assert sent() is None
    assert sent(metadata=other) == "metadata"
    monkeypatch.setenv(NAMESPACE_VARIABLE, "environment")
    assert sent() == sent(namespace=None) == "environment"
    assert sent(metadata=other) == "metadata"
    assert sent(namespace="argument", metadata=other) == "argument"
    assert sent(namespace="", metadata=other) is None
    monkeypatch.setenv(NAMESPACE_VARIABLE, "")
    assert sent() is None
