"""Secrets in a whole process, old TLS, and the table of permissions against what the server itself lists."""

from __future__ import annotations

import asyncio
import re
import ssl
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from lightningstore.client import (
    LLM,
    AlreadyExistsError,
    AsyncLightningStore,
    InvalidArgumentError,
    NotFoundError,
    UnauthenticatedError,
)
from lightningstore.service.security import permissions as auth
from lightningstore.service.security import tokens
from lightningstore.service.security.permissions import OPEN, PERMISSIONS, Role

from tests.integration.process import serve
from tests.integration.scrapes import page_with
from tests.integration.test_security import Certificates, Secured, bearer, secured, tls_server

pytestmark = pytest.mark.asyncio
__all__ = ["secured"]

API_KEY = "sk-planted-in-a-process"


async def test_secrets_are_in_no_log_no_error_and_no_metric_of_a_process(tmp_path: Path) -> None:
    """At the most talkative log level, with metrics on, after calls that worked and calls that did not."""
    secret, made = auth.new_token("admin", Role.ADMIN, None)
    tokens.append(tmp_path / "tokens", made)
    options = (
        "--auth-tokens",
        "tokens",
        "--log-level",
        "debug",
        "--log-json",
        "--metrics-port",
        "0",
    )
    process = await serve("--port", "0", "--db", "s.db", *options, folder=tmp_path)
    shown = [process.first_line]
    assert process.process.stderr is not None
    log = b""
    while not (found := re.search(rb"metrics on (http://[^\" ]+)", log)):
        log += await asyncio.wait_for(process.process.stderr.readline(), 20)
    async with AsyncLightningStore(
        process.address, token=secret, allow_insecure_token=True, timeout=10
    ) as store:
        keeper = {"llm": LLM("http://x/v1", "m", api_key=API_KEY)}
        await store.add_resources(keeper, resources_id="r")
        for kind, wrong in (
            (NotFoundError, store.get_resources("nope")),
            (AlreadyExistsError, store.add_resources(keeper, resources_id="r")),
            (InvalidArgumentError, store.add_resources(keeper, resources_id="a" * 999)),
        ):
            with pytest.raises(kind) as refused:
                await wrong
            shown.append(repr(refused.value) + str(refused.value))
    for wrong in (secret[:-1], secret + "x"):
        async with AsyncLightningStore(
            process.address, token=wrong, allow_insecure_token=True, timeout=10
        ) as store:
            with pytest.raises(UnauthenticatedError) as caught:
                await store.get_server_info()
            assert caught.value.reason == "ERROR_REASON_TOKEN_INVALID"
            shown.append(repr(caught.value) + str(caught.value))
    rejected = 'lightningstore_calls_total{code="UNAUTHENTICATED",method="GetServerInfo"}'
    shown.append(await page_with(found[1].decode(), {rejected: 2.0}))
    process.process.terminate()
    out, errors = await asyncio.wait_for(process.process.communicate(), 20)
    shown += [out.decode(), (log + errors).decode()]
    for text in shown:
        assert "Traceback" not in text
        assert API_KEY not in text
        assert secret[:-1] not in text
    assert secret.encode() not in (tmp_path / "s.db").read_bytes()


async def test_server_lists_no_method_that_the_table_of_permissions_forgets(
    secured: Secured,
) -> None:
    async with secured.served(), grpc.aio.insecure_channel(secured.server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest

        async def answers(*requests: reflection_pb2.ServerReflectionRequest) -> list:
            call = stub.ServerReflectionInfo(
                iter(requests), metadata=(bearer(secured.secrets["read-only"]),)
            )
            return [answer async for answer in call]

        (listed,) = await answers(ask(list_services=""))
        services = [service.name for service in listed.list_services_response.service]
        files = await answers(*(ask(file_containing_symbol=name) for name in services))
    found = set()
    for answer in files:
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            for service in file.service:
                name = f"{file.package}.{service.name}"
                if name in services:
                    found |= {f"/{name}/{method.name}" for method in service.method}
    assert found == set(PERMISSIONS) | set(OPEN)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_tls_and_tls_without_http2_get_nowhere(tmp_path: Path) -> None:
    mine = Certificates(tmp_path / "mine")

    async def connects(version: ssl.TLSVersion, *protocols: str) -> bool:
        context = ssl.create_default_context(cafile=str(mine.ca))
        context.minimum_version = context.maximum_version = version
        context.set_ciphers("ALL:@SECLEVEL=0")
        if protocols:
            context.set_alpn_protocols(list(protocols))
        try:
            reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
            got = await asyncio.wait_for(reader.read(1), 10)  # the server's settings come first
            writer.close()
        except OSError:
            return False
        return bool(got)

    async with tls_server(**mine.server()) as address:
        port = int(address.rpartition(":")[2])
        assert await connects(ssl.TLSVersion.TLSv1_2, "h2")
        assert await connects(ssl.TLSVersion.TLSv1_3, "h2")
        assert not await connects(ssl.TLSVersion.TLSv1, "h2")
        assert not await connects(ssl.TLSVersion.TLSv1_1, "h2")
        assert not await connects(ssl.TLSVersion.TLSv1_3, "http/1.1")


async def test_keys_are_masked_in_every_version_and_in_the_watch(secured: Secured) -> None:
    async with secured.served(), secured.client() as store:
        for model in ("m1", "m2"):
            await store.update_resources("r", {"llm": LLM("http://x/v1", model, api_key=API_KEY)})
        for role, sees in (("runner", True), ("algorithm", True), ("read-only", False)):
            async with secured.client(role) as other:
                shown = [
                    await other.get_resources("r", version=1),
                    await other.get_resources(publish_number=2),
                ]
                async with other.watch_resources(0) as publications:
                    shown += [await anext(publications), await anext(publications)]
                    await store.update_resources("r", {"llm": LLM("http://x", api_key=API_KEY)})
                    shown.append(await anext(publications))
            assert [API_KEY in str(r.message) for r in shown] == [sees] * 5, role
        wrong = [("x-lightning-namespace", "not a name"), bearer(secured.secrets["read-only"])]
        async with grpc.aio.insecure_channel(secured.server.address) as channel:
            call = channel.unary_unary("/lightningstore.v1.LightningStoreService/GetResources")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(b"", metadata=wrong)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
