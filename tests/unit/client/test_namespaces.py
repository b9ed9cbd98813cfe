"""The namespace of a client: where it comes from, and that every call names it."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from google.protobuf.message_factory import GetMessageClass
from lightningstore.client import AsyncLightningStore, LightningStore, Runner, SpanExporter
from lightningstore.client._transport.methods import SERVICE
from lightningstore.client.connection import NAMESPACE_VARIABLE, endpoint
from lightningstore.client.namespaces import NAMESPACE_KEY
from lightningstore.client.transports import AsyncGrpcTransport, GrpcTransport, ThreadedTransport

from tests.unit.client.fakes import FakeServer

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
