"""Where OTLP over HTTP listens, and who gets in: the address, tokens, roles and TLS of the gRPC port."""

from __future__ import annotations

import asyncio
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from lightningstore.client import AsyncLightningStore
from lightningstore.service.security.permissions import PERMISSIONS, Role
from lightningstore.service.server.addresses import AddressInUse
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import Server, open_store, start_server
from opentelemetry.sdk.trace.export import SpanExportResult

from tests.contract.helpers import names, snapshot
from tests.integration.process import serve
from tests.integration.scrapes import scrape
from tests.integration.test_otlp_http import as_json, export, json_span, post
from tests.integration.test_otlp_sdk import owner, spans
from tests.integration.test_security import TRACES, Secured, credentials

pytestmark = pytest.mark.asyncio

JSON = "application/json"


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    return Secured(tmp_path, otlp_http_port=0)


async def claimed(store: AsyncLightningStore) -> tuple[str, str]:
    await store.enqueue_rollout({"task": 1})
    (rollout,) = await store.dequeue_rollouts(1)
    return rollout.rollout_id, rollout.attempt.attempt_id


async def test_nothing_is_stored_without_a_good_token(secured: Secured) -> None:
    async with secured.served(), secured.client() as store:
        own, port = await claimed(store), secured.service.info.otlp_http_port
        world: Any = SimpleNamespace(store=store)
        before = await snapshot(world)
        for what, metadata in credentials(secured).items():
            answer = await post(port, as_json(own, json_span("a")), JSON, **dict(metadata))
            assert answer.status == 401, what
            assert answer.reason().startswith("TOKEN_")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert b"lst_" not in answer.body
        assert await snapshot(world) == before


async def test_roles_are_those_of_the_grpc_call(secured: Secured) -> None:
    async with secured.served(), secured.client() as store:
        own, port = await claimed(store), secured.service.info.otlp_http_port
        stored = []
        for role in Role:
            headers = {"Authorization": f"bearer {secured.secrets[role.value]}"}
            answer = await post(port, as_json(own, json_span(role.value)), JSON, **headers)
            if role in PERMISSIONS[TRACES]:
                assert answer.status == 200
                stored.append(role.value)
            else:
                assert (answer.status, answer.reason()) == (403, "PERMISSION_DENIED")
        assert await names(SimpleNamespace(store=store), own[0]) == stored  # type: ignore[arg-type]
        assert "read-only" not in stored


async def test_body_without_a_token_is_not_waited_for(secured: Secured) -> None:
    async with secured.served():
        port = secured.service.info.otlp_http_port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: 1000\r\n\r\n".encode())
        assert (await asyncio.wait_for(reader.readline(), 5)).split()[1] == b"401"
        writer.close()


async def test_exporter_unchanged_gets_in_with_its_token(secured: Secured) -> None:
    async with secured.served(), secured.client() as store:
        own = await claimed(store)
        headers = {"authorization": f"Bearer {secured.secrets['runner']}"}
        port = secured.service.info.otlp_http_port
        results = await export(port, spans("a"), owner(own), headers=headers)
        assert results == [SpanExportResult.SUCCESS]
        assert await names(SimpleNamespace(store=store), own[0]) == ["a"]  # type: ignore[arg-type]


def certify(authority: trustme.CA, folder: Path, name: str) -> tuple[Path, Path]:
    """Write a certificate and its key, which replaces the one of that name."""
    made = authority.issue_cert("127.0.0.1")
    made.private_key_pem.write_to_path(str(folder / f"{name}.key"))
    chain = b"".join(pem.bytes() for pem in made.cert_chain_pems)
    (folder / f"{name}.pem").write_bytes(chain)
    return folder / f"{name}.pem", folder / f"{name}.key"


def ask(port: int, authority: Path, own: tuple[Path, Path] | None = None) -> int:
    """Send an empty export over TLS; returns the status. Raises URLError, or OSError."""
    context = ssl.create_default_context(cafile=str(authority))
    if own is not None:
        context.load_cert_chain(*own)
    url = f"https://127.0.0.1:{port}/v1/traces"
    request = urllib.request.Request(url, b"{}", {"Content-Type": JSON})
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        return int(answer.status)


async def secure_server(folder: Path, **settings: Any) -> Server:
    config = Config(backend="memory", port=0, otlp_http_port=0, grace=0.1, **settings)
    server = Server(await open_store(config), config)
    await server.start()
    return server


async def test_tls_is_that_of_the_grpc_port_and_takes_up_a_new_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # these overrule certificate_file
        monkeypatch.delenv(name, raising=False)
    old, new = trustme.CA(), trustme.CA()
    for name, authority in (("old", old), ("new", new)):
        authority.cert_pem.write_to_path(str(tmp_path / name))
    cert, key = certify(old, tmp_path, "server")
    server = await secure_server(tmp_path, tls_cert=cert, tls_key=key)
    port = server.directory.default.info.otlp_http_port
    try:
        async with AsyncLightningStore(
            f"https://{server.address}", tls_ca=tmp_path / "old"
        ) as store:
            own = await claimed(store)
            results = await export(
                port, spans("a"), owner(own), "https", certificate_file=str(tmp_path / "old")
            )
            assert results == [SpanExportResult.SUCCESS]
            assert await names(SimpleNamespace(store=store), own[0]) == ["a"]  # type: ignore[arg-type]
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            await asyncio.to_thread(ask, port, tmp_path / "new")
        certify(new, tmp_path, "server")
        assert await asyncio.to_thread(ask, port, tmp_path / "new") == 200
        async with AsyncLightningStore(
            f"https://{server.address}", tls_ca=tmp_path / "new", timeout=10
        ) as store:
            await store.get_server_info()  # gRPC has it too, though HTTP saw it first
        cert.write_bytes(b"broken")
        assert await asyncio.to_thread(ask, port, tmp_path / "new") == 200
    finally:
        await server.stop(0.1)


async def test_mutual_tls_wants_a_certificate_of_the_authority(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca"))
    cert, key = certify(authority, tmp_path, "server")
    server = await secure_server(
        tmp_path, tls_cert=cert, tls_key=key, tls_client_ca=tmp_path / "ca"
    )
    port = server.directory.default.info.otlp_http_port
    try:
        good, bad = certify(authority, tmp_path, "good"), certify(other, tmp_path, "bad")
        assert await asyncio.to_thread(ask, port, tmp_path / "ca", good) == 200
        for own in (bad, None):
            with pytest.raises(OSError):
                await asyncio.to_thread(ask, port, tmp_path / "ca", own)
    finally:
        await server.stop(0.1)


async def test_off_unless_asked_for_and_told_by_the_server(tmp_path: Path) -> None:
    for wanted in (None, 0):
        config = Config(backend="memory", port=0, grace=0.1, otlp_http_port=wanted)
        server = Server(await open_store(config), config)
        await server.start()
        async with AsyncLightningStore(server.address, timeout=10) as store:
            info = await store.get_server_info()
        assert ("otlp-http" in info.capabilities) == (wanted == 0)
        assert (info.otlp_http_port is None) == (wanted is None)
        if info.otlp_http_port is not None:
            assert (await post(info.otlp_http_port, b"{}", JSON)).status == 200
        await server.stop(0.1)


async def test_port_that_is_taken_is_told_before_any_file_is_touched(tmp_path: Path) -> None:
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    config = Config(db=tmp_path / "x.db", port=0, otlp_http_port=port)
    with pytest.raises(AddressInUse, match=str(port)):
        await start_server(config)
    assert list(tmp_path.iterdir()) == []
    taken.close()
    await taken.wait_closed()


async def test_both_cannot_have_one_port(tmp_path: Path) -> None:
    free = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = free.sockets[0].getsockname()[1]
    free.close()
    await free.wait_closed()
    config = Config(backend="memory", port=port, otlp_http_port=port, grace=0.1)
    with pytest.raises(AddressInUse, match=str(port)):
        await start_server(config)


async def test_calls_are_counted_with_those_over_grpc(tmp_path: Path) -> None:
    config = Config(backend="memory", port=0, otlp_http_port=0, metrics_port=0, grace=0.1)
    server = Server(await open_store(config), config)
    await server.start()
    assert server.metrics is not None
    for body in (b"{}", b"{}", b"["):
        await post(server.directory.default.info.otlp_http_port, body, JSON)
    found = await scrape(server.metrics_port)
    await server.stop(0.1)
    assert found['lightningstore_calls_total{code="OK",method="Export"}'] == 2
    assert found['lightningstore_calls_total{code="INVALID_ARGUMENT",method="Export"}'] == 1
    assert found['lightningstore_call_seconds_count{method="Export"}'] == 3


async def test_command_serves_it_and_ends_cleanly(tmp_path: Path) -> None:
    process = await serve("--port", "0", "--otlp-http-port", "0", folder=tmp_path)
    async with AsyncLightningStore(process.address, timeout=10) as store:
        own, info = await claimed(store), await store.get_server_info()
        assert info.otlp_http_port
        answer = await post(info.otlp_http_port, as_json(own, json_span("a")), JSON)
        assert answer.status == 200
        assert await names(SimpleNamespace(store=store), own[0]) == ["a"]  # type: ignore[arg-type]
    assert await process.stop() == 0
