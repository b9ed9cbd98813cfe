"""Access control: every call with every kind of credential, TLS, mutual TLS, and hidden secrets."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from lightningstore.client import (
    LLM,
    AsyncLightningStore,
    DeadlineExceededError,
    InvalidArgumentError,
    LightningStore,
    PermissionDeniedError,
    Runner,
    SpanExporter,
    UnauthenticatedError,
    UnavailableError,
)
from lightningstore.service.cluster.calls import SERVICE as SERVERS
from lightningstore.service.rules.errors import Misconfigured
from lightningstore.service.security import permissions as auth
from lightningstore.service.security import tokens
from lightningstore.service.security.permissions import OPEN, PERMISSIONS, Role
from lightningstore.service.server.config import Config
from lightningstore.service.server.gate import open_gate
from lightningstore.service.server.server import Server, open_store
from lightningstore.v1 import namespace_pb2, resources_pb2, service_pb2
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.clock import ManualClock
from tests.contract.helpers import poll, snapshot
from tests.integration.process import run, serve

pytestmark = pytest.mark.asyncio

STORE = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"]
TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
REFLECTION = [
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    for version in ("v1", "v1alpha")
]
NAMESPACES = namespace_pb2.DESCRIPTOR.services_by_name["NamespaceService"]
METHODS = [
    *(
        f"/{service.full_name}/{m.name}"
        for service in (STORE, NAMESPACES, SERVERS)
        for m in service.methods
    ),
    TRACES,
    *REFLECTION,
]
API_KEY = "sk-planted-and-searched-for"
DOCS = Path(__file__).parents[2] / "docs" / "security.md"


class Secured:
    """A server that wants tokens, one of them for each role."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.clock = ManualClock()
        self.file = folder / "tokens"
        self.secrets: dict[str, str] = {}
        for role in Role:
            self.add(role.value, role)
        self.secrets["expired"], expired = auth.new_token(
            "expired", Role.ADMIN, tokens.utc(self.clock) - timedelta(seconds=1)
        )
        tokens.append(self.file, expired)
        self.config = Config(backend="memory", port=0, grace=0.1, auth_tokens=self.file, **settings)

    def add(self, name: str, role: Role) -> str:
        self.secrets[name], made = auth.new_token(name, role, None)
        tokens.append(self.file, made)
        return self.secrets[name]

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Secured]:
        self.service = await open_store(self.config, self.clock)
        self.server = Server(self.service, self.config)
        await self.server.start()
        try:
            yield self
        finally:
            await self.server.stop(0.1)

    def client(self, who: str = "admin") -> AsyncLightningStore:
        return AsyncLightningStore(
            self.server.address, token=self.secrets[who], allow_insecure_token=True, timeout=10
        )


@pytest.fixture
def secured(tmp_path: Path) -> Secured:
    return Secured(tmp_path)


def keep_spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Return where --trace-calls leaves its spans from now on."""
    kept = InMemorySpanExporter()
    exporters = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
    monkeypatch.setattr(f"{exporters}.OTLPSpanExporter", lambda: kept)
    monkeypatch.setattr("opentelemetry.sdk.trace.export.BatchSpanProcessor", SimpleSpanProcessor)
    return kept


@pytest.fixture(params=["plain", "metrics", "metrics and tracing"])
def watched(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Iterator[Secured]:
    """The same, watched in every way: that changes no answer and leaves no traceback."""
    keep_spans(monkeypatch)
    port = None if request.param == "plain" else 0
    yield Secured(tmp_path, metrics_port=port, trace_calls="tracing" in request.param)
    left = [record for record in caplog.get_records("call") if record.exc_info]
    assert not [record for record in left if LOOP_CLOSED not in record.getMessage()]


#: What grpc.aio leaves in the log when it hears of a channel of an earlier test, whose event loop is closed.
LOOP_CLOSED = "PollerCompletionQueue._handle_events"
#: What grpc.aio says of a write after the end of a stream. It may replace the status of the server.
LATE_WRITE = "Internal error from Core"


async def code_of(
    channel: grpc.aio.Channel, path: str, *metadata: tuple[str, str], calls: list[str] | None = None
) -> str:
    """Call a method of whatever kind with an empty request; returns the status of the server.

    A server may end a stream before the client has sent its request, by which grpc.aio loses the status. Then the call
    is repeated; `calls` counts each.
    """
    for _ in range(10):
        if calls is not None:
            calls.append(path.rpartition("/")[2])
        code, details = await ending_of(channel, path, *metadata)
        if details != LATE_WRITE:
            break
    return code


async def ending_of(
    channel: grpc.aio.Channel, path: str, *metadata: tuple[str, str]
) -> tuple[str, str]:
    """Call a method of whatever kind with an empty request; returns status and details of the end."""
    method = STORE.methods_by_name.get(path.rpartition("/")[2])
    try:
        if path in REFLECTION:
            async for _ in channel.stream_stream(path)(iter([b""]), metadata=metadata, timeout=10):
                break
        elif path.endswith("IngestSpans"):
            await channel.stream_unary(path)(iter([b""]), metadata=metadata, timeout=10)
        elif method is not None and method.server_streaming:
            async for _ in channel.unary_stream(path)(b"", metadata=metadata, timeout=10):
                break
        else:
            await channel.unary_unary(path)(b"", metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        assert "lst_" not in (error.details() or "")
        return str(error.code().name), error.details() or ""
    return "OK", ""


def bearer(secret: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {secret}")


def credentials(secured: Secured) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return invalid credentials, by their defect."""
    good = secured.secrets["admin"]
    return {
        "none": (),
        "empty": (bearer(""),),
        "wrong": (bearer("lst_" + "x" * 43),),
        "truncated": (bearer(good[:-1]),),
        "longer": (bearer(good + "x"),),
        "expired": (bearer(secured.secrets["expired"]),),
        "its hash": (bearer(auth.digest_of(good).hex()),),
        "other scheme": (("authorization", f"Basic {good}"),),
        "other key": (("x-authorization", f"Bearer {good}"),),
        "other case": (bearer(good.swapcase()),),
    }


async def test_no_call_works_without_a_good_token(watched: Secured) -> None:
    async with (
        watched.served(),
        grpc.aio.insecure_channel(watched.server.address) as channel,
        watched.client() as store,
    ):
        world: Any = SimpleNamespace(store=store)
        before = await snapshot(world)
        for what, metadata in credentials(watched).items():
            for path in METHODS:
                found = await code_of(channel, path, *metadata)
                assert found == "UNAUTHENTICATED", (what, path)
        assert await snapshot(world) == before


async def test_each_role_may_call_what_the_table_says_and_nothing_else(watched: Secured) -> None:
    async with watched.served(), grpc.aio.insecure_channel(watched.server.address) as channel:
        for path in METHODS:
            for role in Role:
                found = await code_of(channel, path, bearer(watched.secrets[role.value]))
                denied = role not in PERMISSIONS[path]
                assert (found == "PERMISSION_DENIED") == denied, (role, path, found)
                assert found not in ("UNAUTHENTICATED", "UNKNOWN", "INTERNAL"), (role, path)


async def test_every_method_that_is_served_is_in_the_table() -> None:
    """By reflection of what the server registers: a method that the table forgets fails here."""
    assert set(METHODS) == set(PERMISSIONS)
    assert {role for roles in PERMISSIONS.values() for role in roles} == set(Role)


async def test_table_of_the_docs_is_the_table_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", DOCS.read_text(), re.MULTILINE)
    shown = {name: [cell.strip() == "yes" for cell in cells.split("|")] for name, cells in rows}
    roles = list(Role)
    assert shown == {
        path.rpartition("/")[2]: [role in allowed for role in roles]
        for path, allowed in PERMISSIONS.items()
    }


async def test_health_is_open(watched: Secured) -> None:
    async with watched.served(), grpc.aio.insecure_channel(watched.server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        assert {path.rpartition("/")[0] for path in OPEN} == {"/grpc.health.v1.Health"}


async def test_refusal_has_a_reason_and_no_secret(
    secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with secured.served(), grpc.aio.insecure_channel(secured.server.address) as channel:
        for who, reason in (("expired", "TOKEN_EXPIRED"), ("runner", "PERMISSION_DENIED")):
            metadata = (bearer(secured.secrets[who]),)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                path = f"/{STORE.full_name}/EnqueueRollouts"
                await channel.unary_unary(path)(b"", metadata=metadata)
            trailers = dict(caught.value.trailing_metadata() or ())
            status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
            info = error_details_pb2.ErrorInfo()
            assert status.details[0].Unpack(info)
            assert info.reason == f"ERROR_REASON_{reason}"
    for secret in secured.secrets.values():
        assert secret not in caplog.text


async def test_revoked_token_is_refused_and_a_new_one_works_without_a_restart(
    secured: Secured,
) -> None:
    async with secured.served(), secured.client("runner") as store:
        await store.dequeue_rollouts(1)
        tokens.remove(secured.file, "runner")
        secured.add("second", Role.RUNNER)
        await secured.clock.advance(tokens.LOOK_SECONDS)
        with pytest.raises(UnauthenticatedError):
            await store.dequeue_rollouts(1)
        async with secured.client("second") as other:
            assert await other.dequeue_rollouts(1) == []


async def test_what_was_open_when_a_token_was_revoked_goes_on(secured: Secured) -> None:
    """As docs/security.md says: the token is checked when a call starts."""
    async with secured.served(), secured.client("runner") as store, secured.client() as admin:
        world: Any = SimpleNamespace(store=store)
        watch = store.watch_rollouts()
        await watch.registered()
        waiting = await poll(world, limit=1, wait=60)
        tokens.remove(secured.file, "runner")
        await secured.clock.advance(tokens.LOOK_SECONDS)
        with pytest.raises(UnauthenticatedError):
            await store.get_statistics()
        (rollout,) = await admin.enqueue_rollouts([{"input": 1}])
        assert [r.rollout_id for r in await waiting] == [rollout.rollout_id]
        await admin.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        assert (await anext(watch)).rollout_id == rollout.rollout_id


async def test_token_ends_at_its_time(secured: Secured) -> None:
    secret, made = auth.new_token(
        "brief", Role.RUNNER, tokens.utc(secured.clock) + timedelta(minutes=1)
    )
    tokens.append(secured.file, made)
    secured.secrets["brief"] = secret
    async with secured.served(), secured.client("brief") as store:
        await secured.clock.advance(59)
        await store.dequeue_rollouts(1)
        await secured.clock.advance(1)
        with pytest.raises(UnauthenticatedError):
            await store.dequeue_rollouts(1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"host": "0.0.0.0"}, "--auth-tokens"),
        ({"host": "::"}, "--auth-tokens"),
        ({"host": "0.0.0.0", "auth_tokens": "tokens"}, "plain text"),
        ({"host": "0.0.0.0", "otlp_http_port": 0}, "--auth-tokens"),
        ({"metrics_host": "0.0.0.0", "metrics_port": 0}, "--metrics-host 0.0.0.0"),
        ({"metrics_host": "::", "metrics_port": 0, "auth_tokens": "tokens"}, "--metrics-host ::"),
        ({"tls_cert": "cert"}, "--tls-key"),
        ({"tls_client_ca": "ca"}, "--tls-cert"),
        ({"tls_cert": "missing", "tls_key": "missing"}, "cannot be read"),
    ],
)
async def test_unsafe_settings_are_refused_at_start(
    tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    files = ("auth_tokens", "tls_cert", "tls_key", "tls_client_ca")
    paths = {name: tmp_path / value if name in files else value for name, value in settings.items()}
    with pytest.raises(Misconfigured, match=re.escape(told)):
        open_gate(Config(**paths), ManualClock())


async def test_open_server_needs_to_be_asked_for_by_name(tmp_path: Path) -> None:
    options = ("--backend", "memory", "--port", "0", "--host", "0.0.0.0")
    metrics = ("--metrics-port", "0", "--metrics-host", "0.0.0.0")
    for exposed in (options, (*options[:-2], *metrics)):
        code, out, errors = await run("serve", *exposed, folder=tmp_path)
        assert code == 1
        assert "--insecure" in errors
        assert errors.count("\n") == 1
        assert out == ""
    # An address without a listener is harmless.
    open_gate(Config(metrics_host="0.0.0.0"), ManualClock())
    options += metrics
    process = await serve(*options, "--insecure", folder=tmp_path)
    assert await process.stop() == 0


async def test_tokens_file_open_to_others_is_refused(secured: Secured) -> None:
    secured.file.chmod(0o644)
    with pytest.raises(Misconfigured, match="chmod 600"):
        open_gate(secured.config, secured.clock)


async def test_keys_reach_those_who_work_and_nobody_who_only_looks(
    secured: Secured, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG, "lightningstore")
    async with secured.served(), secured.client() as store:
        await store.add_resources({"llm": LLM("http://x/v1", "m", api_key=API_KEY)})
        for role, sees in (("runner", True), ("algorithm", True), ("read-only", False)):
            async with secured.client(role) as other:
                shown = [(await other.get_resources()).message]
                shown += [r.message for r in await other.list_resources()]
                assert [API_KEY in str(message) for message in shown] == [sees] * 2, role
        for options in ((), ("--json",)):
            view = await run(
                "resources",
                *options,
                "--allow-insecure-token",
                folder=tmp_path,
                LIGHTNINGSTORE_ADDRESS=secured.server.address,
                LIGHTNINGSTORE_TOKEN=secured.secrets["admin"],
            )
            assert view[0] == 0
            assert API_KEY not in view[1] + view[2]
        bad = resources_pb2.AddResourcesRequest()
        bad.resources["llm"].llm.api_key = API_KEY
        bad.resources["llm"].llm.sampling_parameters_json = b"{"
        with pytest.raises(InvalidArgumentError) as caught:
            await store.call("AddResources", bad)
        assert API_KEY not in str(caught.value)
    assert API_KEY not in caplog.text


@pytest.mark.parametrize("kind", [LightningStore, AsyncLightningStore, SpanExporter])
async def test_client_sends_no_token_over_plain_text_unless_told_to(kind: Any) -> None:
    with pytest.raises(ValueError, match="plain text"):
        kind("127.0.0.1:1", token="lst_secret")
    with pytest.raises(ValueError, match="plain text"):
        Runner("127.0.0.1:1", print, token="lst_secret")
    made = kind("127.0.0.1:1", token="lst_secret", allow_insecure_token=True)
    assert "lst_secret" not in repr(made)


class Certificates:
    """An authority, and files signed by it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.write("server", "127.0.0.1", "localhost")
        self.write("client", "client@example.org")

    def write(self, name: str, *identities: str) -> None:
        issued = self.authority.issue_cert(*identities)
        issued.private_key_pem.write_to_path(self.folder / f"{name}.key")
        (self.folder / f"{name}.pem").write_bytes(
            b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        )

    def server(self, **more: Any) -> dict[str, Any]:
        return {
            "tls_cert": self.folder / "server.pem",
            "tls_key": self.folder / "server.key",
            **more,
        }

    def client(self) -> dict[str, Any]:
        return {"tls_cert": self.folder / "client.pem", "tls_key": self.folder / "client.key"}


@asynccontextmanager
async def tls_server(**settings: Any) -> AsyncIterator[str]:
    config = Config(backend="memory", port=0, grace=0.1, **settings)
    server = Server(await open_store(config), config)
    await server.start()
    try:
        yield f"localhost:{server.port}"
    finally:
        await server.stop(0.1)


async def gets_in(address: str, seconds: float = 30, **options: Any) -> bool:
    async with AsyncLightningStore(address, timeout=seconds, **options) as store:
        return bool((await store.get_server_info()).store_id)


async def is_kept_out(address: str, **options: Any) -> bool:
    with pytest.raises((UnavailableError, DeadlineExceededError)):
        await gets_in(address, 1, **options)
    return True


async def test_tls_lets_in_who_trusts_its_authority_and_no_plain_text(tmp_path: Path) -> None:
    mine, other = Certificates(tmp_path / "mine"), Certificates(tmp_path / "other")
    async with tls_server(**mine.server()) as address:
        assert await gets_in(address, tls_ca=mine.ca)
        assert await is_kept_out(address)
        assert await is_kept_out(address, tls_ca=other.ca)


async def test_mutual_tls_lets_in_only_certificates_of_its_authority(tmp_path: Path) -> None:
    mine, other = Certificates(tmp_path / "mine"), Certificates(tmp_path / "other")
    async with tls_server(**mine.server(tls_client_ca=mine.ca)) as address:
        assert await gets_in(address, tls_ca=mine.ca, **mine.client())
        assert await is_kept_out(address, tls_ca=mine.ca)
        assert await is_kept_out(address, tls_ca=mine.ca, **other.client())
        assert await is_kept_out(address)


async def test_certificate_is_read_again_when_it_changes(tmp_path: Path) -> None:
    old, new = Certificates(tmp_path / "old"), Certificates(tmp_path / "new")
    async with tls_server(**old.server()) as address:
        assert await gets_in(address, tls_ca=old.ca)
        for name in ("server.pem", "server.key"):
            (old.folder / name).write_bytes((new.folder / name).read_bytes())
        assert await gets_in(address, tls_ca=new.ca)
        assert await is_kept_out(address, tls_ca=old.ca)


async def test_broken_certificate_on_disk_leaves_the_one_in_use(tmp_path: Path) -> None:
    mine = Certificates(tmp_path / "mine")
    async with tls_server(**mine.server()) as address:
        (mine.folder / "server.pem").write_text("half a certif")
        assert await gets_in(address, tls_ca=mine.ca)


async def test_token_travels_over_tls(tmp_path: Path) -> None:
    mine = Certificates(tmp_path / "mine")
    file = tmp_path / "tokens"
    secret, made = auth.new_token("r", Role.RUNNER, None)
    tokens.append(file, made)
    async with tls_server(**mine.server(auth_tokens=file)) as address:
        assert await gets_in(f"https://{address}", tls_ca=mine.ca, token=secret)
        async with AsyncLightningStore(address, tls_ca=mine.ca, token=secret, timeout=5) as store:
            with pytest.raises(PermissionDeniedError):
                await store.enqueue_rollout(1)
