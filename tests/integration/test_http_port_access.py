"""Who gets in at the HTTP port: tokens, roles, namespaces and TLS of the gRPC port, and no page of another site."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lightningstore.client import LLM
from lightningstore.service.cluster.calls import SERVICE as SERVERS
from lightningstore.service.rpc.handlers import NAMESPACES, SERVICE, path_of
from lightningstore.service.security.permissions import PERMISSIONS, Role
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import Server, open_store

from tests.integration.http_calls import (
    JSON,
    STORE,
    STREAM_JSON,
    base64_of,
    call,
    enveloped,
    error,
    reason_of,
)
from tests.integration.test_otlp_http import Answer, send
from tests.integration.test_security import API_KEY, Certificates, Secured, credentials
from tests.integration.test_tokens_namespaces import Limited

pytestmark = pytest.mark.asyncio

METHODS = [method for service in (SERVICE, NAMESPACES, SERVERS) for method in service.methods]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def code_of(port: int, method: Any, headers: dict[str, str]) -> tuple[str, str]:
    """Return code and reason of a call with an empty request; "ok" for one that is answered."""
    streams = method.server_streaming or method.client_streaming
    kind, body = (STREAM_JSON, enveloped(b"{}")) if streams else (JSON, b"{}")
    sent = {"Content-Type": kind, "Connect-Timeout-Ms": "300", **headers}
    answer = await send(port, "POST", path_of(method), body, sent)
    if not streams:
        return ("ok", "") if answer.status == 200 else error(answer)[1:]
    data = answer.body
    while data:
        size = int.from_bytes(data[1:5], "big")
        if data[0] & 2 and "error" in (last := json.loads(data[5 : 5 + size])):
            return reason_of(last["error"])
        data = data[5 + size :]
    return "ok", ""


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    return Secured(tmp_path, count_calls=True)


async def test_roles_are_those_of_the_grpc_calls(secured: Secured) -> None:
    async with secured.served():
        port = secured.server.http.port
        for method in METHODS:
            for role in Role:
                code, reason = await code_of(port, method, bearer(secured.secrets[role.value]))
                denied = (code, reason) == ("permission_denied", "PERMISSION_DENIED")
                assert denied == (role not in PERMISSIONS[path_of(method)]), (method.name, role)


async def test_nothing_is_read_or_answered_without_a_good_token(secured: Secured) -> None:
    async with secured.served():
        port = secured.server.http.port
        for method in METHODS:
            for what, metadata in credentials(secured).items():
                code, reason = await code_of(port, method, dict(metadata))
                assert code == "unauthenticated", (method.name, what)
                assert reason.startswith("TOKEN_")
        answer = await call(port, "GetRollout")
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /{STORE}/GetRollout HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\n"
        writer.write(f"{head}Content-Length: 1000\r\n\r\n".encode())
        assert (await asyncio.wait_for(reader.readline(), 5)).split()[1] == b"401"
        writer.close()
        refused = secured.server.gate.guard
        assert refused is not None
        assert refused.refused["ERROR_REASON_TOKEN_MISSING"]


async def test_metrics_take_any_token_and_health_takes_none(secured: Secured) -> None:
    async with secured.served():
        port = secured.server.http.port
        for role in Role:
            headers = bearer(secured.secrets[role.value])
            answer = await send(port, "GET", "/metrics", None, headers)
            assert answer.status == 200
            assert b"lst_" not in answer.body
        answer = await send(port, "GET", "/metrics")
        assert (answer.status, answer.reason()) == (401, "TOKEN_MISSING")
        for path in ("/", "/healthz", "/readyz"):
            assert (await send(port, "GET", path)).status == 200


async def test_calls_are_counted_as_those_of_grpc_are(secured: Secured) -> None:
    async with secured.served():
        port, admin = secured.server.http.port, bearer(secured.secrets["admin"])
        await call(port, "GetStatistics", {}, **admin)
        await call(port, "GetRollout", {"rolloutId": "x"}, **admin)
        await call(port, "GetRollout", b"{", **admin)
        await call(port, "GetRollout", {})
        await call(port, f"/{STORE}/Invented", {}, **admin)
        page = (await send(port, "GET", "/metrics", None, admin)).body.decode()
        for method, code in (
            ("GetStatistics", "OK"),
            ("GetRollout", "NOT_FOUND"),
            ("GetRollout", "INVALID_ARGUMENT"),
            ("GetRollout", "UNAUTHENTICATED"),
        ):
            line = f'lightningstore_calls_total{{code="{code}",method="{method}"}} 1.0'
            assert line in page, page
        assert "Invented" not in page


async def test_read_only_token_sees_no_key_of_a_model(secured: Secured) -> None:
    async with secured.served(), secured.client() as store:
        await store.add_resources({"llm": LLM("http://x/v1", "m", api_key=API_KEY)})
        port = secured.server.http.port
        for method in ("GetResources", "ListResources"):
            for role, shows in (("read-only", False), ("runner", True)):
                answer = await call(port, method, {}, **bearer(secured.secrets[role]))
                assert answer.status == 200
                assert (API_KEY.encode() in answer.body) == shows


async def test_token_of_one_namespace_is_limited_to_it(tmp_path: Path) -> None:
    limited = Limited(tmp_path)
    async with limited.served():
        port = limited.server.http.port
        own = bearer(limited.secrets["admin-limited"])
        for headers in ({}, {"x-lightning-namespace": "b"}):
            answer = await call(port, "ListRollouts", {}, **own, **headers)
            assert error(answer) == (403, "permission_denied", "PERMISSION_DENIED")
        answer = await call(port, "ListRollouts", {}, **own, **{"x-lightning-namespace": "a"})
        assert answer.status == 200
        path = "/lightningstore.v1.NamespaceService/ListNamespaces"
        # One connection: what one caller may see is not what the next one may.
        for who, names in (("admin-limited", {"a"}), ("admin", {"a", "b", "default"})):
            answer = await call(port, path, {}, **bearer(limited.secrets[who]))
            assert {n["name"] for n in json.loads(answer.body)["namespaces"]} == names
        answer = await send(port, "GET", "/metrics", None, own)
        assert (answer.status, answer.reason()) == (403, "PERMISSION_DENIED")


async def test_tls_and_client_certificates_are_those_of_the_grpc_port(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "certificates")
    settings = certificates.server(tls_client_ca=certificates.ca)
    config = Config(backend="memory", port=0, grace=0.1, **settings)
    server = Server(await open_store(config), config)
    await server.start()
    assert server.http.scheme == "https"

    async def ask(context: ssl.SSLContext | None) -> bytes:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            server.http.port,
            ssl=context,
            server_hostname="localhost" if context else None,
        )
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        try:
            return await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.transport.abort()

    context = ssl.create_default_context(cafile=str(certificates.ca))
    try:
        assert await ask(None) == b""
        with contextlib.suppress(OSError):  # The reason arrives, or only the end.
            assert await ask(context) == b""
        folder = certificates.folder
        context.load_cert_chain(folder / "client.pem", folder / "client.key")
        assert (await ask(context)).startswith(b"HTTP/1.1 200")
    finally:
        await server.stop(0.1)


async def served(**settings: Any) -> Server:
    config = Config(backend="memory", port=0, grace=0.1, **settings)
    server = Server(await open_store(config), config)
    await server.start()
    return server


@pytest_asyncio.fixture
async def strict() -> AsyncIterator[int]:
    """The port of a server that allows nothing but what every server does."""
    server = await served()
    yield server.http.port
    await server.stop(0.1)


@pytest_asyncio.fixture
async def lenient() -> AsyncIterator[int]:
    """The port of a server with one more name, which pages of one origin may call."""
    server = await served(
        http_allow_hosts="store, store.example", http_allow_origins="https://lab.example"
    )
    yield server.http.port
    await server.stop(0.1)


PATHS = ["/", "/healthz", "/metrics", "/nothing", f"/{STORE}/GetStatistics"]


async def ask(port: int, path: str, *headers: str, verb: str = "") -> Answer:
    """Send a request with exactly these headers."""
    verb = verb or ("POST" if STORE in path else "GET")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{verb} {path} HTTP/1.1", *headers, "Connection: close", "Content-Length: 2"]
    writer.write("\r\n".join([*lines, f"Content-Type: {JSON}", "", "{}"]).encode("latin-1"))
    head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
    writer.close()
    first, *rest = head.decode("latin-1").split("\r\n")
    found = dict(line.split(": ", 1) for line in rest)
    return Answer(int(first.split()[1]), found, body)


GOOD_HOSTS = (
    "127.0.0.1",
    "127.0.0.1:4748",
    "10.1.2.3:80",
    "[::1]:4748",
    "localhost",
    "LocalHost:4748",
    "console.localhost",
    "localhost.:4748",
)
BAD_HOSTS = (
    "evil.example",
    "evil.example:4748",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "notlocalhost",
    "localhost@evil.example",
    "evil.example/localhost",
    "store",
    "",
    "127.0.0.1:port",
    "[::1",
)


@pytest.mark.parametrize("path", PATHS)
async def test_host_is_an_address_or_a_name_of_the_server(strict: int, path: str) -> None:
    good = 404 if path == "/nothing" else 200
    for host in GOOD_HOSTS:
        assert (await ask(strict, path, f"Host: {host}")).status == good, host
    for host in BAD_HOSTS:
        answer = await ask(strict, path, f"Host: {host}")
        assert answer.status == 421, host
        assert b"--http-allow-hosts" in answer.body
    assert (await ask(strict, path)).status in (400, 421)
    twice = await ask(strict, path, "Host: localhost", "Host: evil.example")
    assert twice.status in (400, 421)


@pytest.mark.parametrize("path", PATHS)
async def test_pages_of_other_sites_are_refused(strict: int, path: str) -> None:
    good = 404 if path == "/nothing" else 200
    host = f"Host: localhost:{strict}"
    for origin in (f"http://localhost:{strict}", f"http://LOCALHOST:{strict}"):
        assert (await ask(strict, path, host, f"Origin: {origin}")).status == good
    for origin in (
        "http://evil.example",
        "null",
        "",
        f"http://127.0.0.1:{strict}",
        "http://localhost:1",
        f"http://localhost:{strict}.evil.example",
        "http://[",
    ):
        for verb in ("", "OPTIONS"):
            more = ("Access-Control-Request-Method: POST",) if verb else ()
            answer = await ask(strict, path, host, f"Origin: {origin}", *more, verb=verb)
            assert answer.status == 403, origin
            assert b"--http-allow-origins" in answer.body
            assert "Access-Control-Allow-Origin" not in answer.headers


async def test_errors_of_the_port_are_in_the_form_of_the_protocol(strict: int) -> None:
    answer = await ask(strict, f"/{STORE}/GetStatistics", "Host: evil.example")
    assert error(answer) == (421, "permission_denied", "PERMISSION_DENIED")
    answer = await ask(strict, "/healthz", "Host: evil.example")
    assert answer.reason() == "PERMISSION_DENIED"


@pytest.mark.parametrize("path", PATHS)
async def test_options_allow_names_and_origins(lenient: int, path: str) -> None:
    good = 404 if path == "/nothing" else 200
    for host in ("store", "STORE.example:4748", "localhost"):
        answer = await ask(lenient, path, f"Host: {host}", "Origin: https://lab.example")
        assert answer.status == good
        assert answer.headers["Access-Control-Allow-Origin"] == "https://lab.example"
        assert answer.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in answer.headers
    preflight = (
        "Host: store",
        "Origin: https://lab.example",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: authorization,content-type",
    )
    answer = await ask(lenient, path, *preflight, verb="OPTIONS")
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST"
    answer = await ask(lenient, path, "Host: store", "Origin: https://lab.example.evil")
    assert answer.status == 403


@pytest.mark.parametrize("path", PATHS)
async def test_browsers_are_told_to_run_nothing(strict: int, path: str) -> None:
    for host in ("localhost", "evil.example"):
        answer = await ask(strict, path, f"Host: {host}")
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        # The page of the console contains nothing of the store.
        kept = "no-cache" if path == "/" and answer.status == 200 else "no-store"
        assert answer.headers["Cache-Control"] == kept
        assert "Set-Cookie" not in answer.headers
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_text_of_a_caller_is_not_shown_as_html(strict: int) -> None:
    marked = {"rolloutId": "<script>alert(1)</script>"}
    answer = await call(strict, "GetRollout", marked)
    assert answer.headers["Content-Type"] == JSON
    request = {"rollouts": [{"inputJson": base64_of("<script>")}]}
    assert (await call(strict, "EnqueueRollouts", request)).headers["Content-Type"] == JSON
