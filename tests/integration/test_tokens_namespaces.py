"""Tokens that are limited to namespaces: what they reach, and what they learn of others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from lightningstore.client import (
    AsyncLightningStore,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from lightningstore.client.namespaces import NAMESPACE_KEY
from lightningstore.service.security import permissions as auth
from lightningstore.service.security import tokens
from lightningstore.service.security.permissions import IN_NAMESPACE, Role, parse_tokens
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.integration.process import run
from tests.integration.test_otlp_http import as_json, json_span, post
from tests.integration.test_security import TRACES, Secured, code_of

pytestmark = pytest.mark.asyncio


class Limited(Secured):
    """A server with the namespaces a, b and default, and a token of each role for a alone."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, **settings)
        for role in Role:
            self.limit(role.value, role, "a")
        self.limit("two", Role.ADMIN, "a", "b")
        self.limit("default", Role.RUNNER, "default")

    def limit(self, name: str, role: Role, *namespaces: str) -> None:
        secret, made = auth.new_token(f"{name}-limited", role, None, namespaces)
        self.secrets[f"{name}-limited"] = secret
        tokens.append(self.file, made)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Limited]:
        async with super().served():
            async with self.store("admin") as store:
                await store.create_namespace("a")
                await store.create_namespace("b")
            yield self

    def store(self, who: str, namespace: str | None = "") -> AsyncLightningStore:
        return AsyncLightningStore(
            self.server.address,
            token=self.secrets[who],
            allow_insecure_token=True,
            timeout=10,
            namespace=namespace,
        )

    def metadata(self, who: str, *namespaces: str) -> list[tuple[str, str]]:
        named = [(NAMESPACE_KEY, namespace) for namespace in namespaces]
        return [("authorization", f"Bearer {self.secrets[who]}"), *named]


@pytest.fixture
def limited(tmp_path: Path) -> Limited:
    return Limited(tmp_path, otlp_http_port=0, metrics_port=0)


@pytest.mark.parametrize("path", sorted(IN_NAMESPACE))
async def test_no_call_leaves_the_namespaces_of_its_token(limited: Limited, path: str) -> None:
    async with limited.served(), grpc.aio.insecure_channel(limited.server.address) as channel:
        for namespaces in ([], ["default"], ["b"], ["none"], [""]):
            metadata = limited.metadata("admin-limited", *namespaces)
            assert await code_of(channel, path, *metadata) == "PERMISSION_DENIED", namespaces
        own = await code_of(channel, path, *limited.metadata("admin-limited", "a"))
        free = await code_of(channel, path, *limited.metadata("admin", "a"))
        assert own == free != "PERMISSION_DENIED"
        for namespaces in (["a", "b"], ["b", "a"]):
            metadata = limited.metadata("admin-limited", *namespaces)
            assert await code_of(channel, path, *metadata) == "INVALID_ARGUMENT"


async def test_denial_names_the_namespaces_of_the_token_alone(limited: Limited) -> None:
    async with limited.served():
        texts = []
        for namespace in ("b", "none", "default"):
            async with limited.store("two-limited" if namespace != "b" else "admin-limited") as s:
                with pytest.raises(PermissionDeniedError) as caught:
                    await s.get_statistics()
            texts.append((caught.value.message, caught.value.metadata))
        assert texts[0][1] == {"namespaces": "a"}
        assert texts[1] == texts[2]
        assert texts[1][1] == {"namespaces": "a, b"}
        assert "limited to namespaces: a, b" in texts[1][0]
        with pytest.raises(InvalidArgumentError, match="must be 1 to 63"):
            async with limited.store("two-limited") as store:
                store._transport._holder.endpoint = type(store._transport._holder.endpoint)(
                    limited.server.address,
                    tuple(limited.metadata("two-limited", "../a")),
                )
                await store.get_statistics()


async def test_limited_tokens_work_in_their_namespaces(limited: Limited) -> None:
    async with limited.served():
        for who, namespace in (("two-limited", "a"), ("two-limited", "b"), ("admin", "default")):
            async with limited.store(who, namespace) as store:
                await store.enqueue_rollout(namespace)
        for who, namespace in (("runner-limited", "a"), ("default-limited", "")):
            async with limited.store(who, namespace) as store:
                (rollout,) = await store.dequeue_rollouts()
                assert rollout.input == (namespace or "default")
        async with limited.store("runner-limited", "a") as store:
            with pytest.raises(PermissionDeniedError, match="the role runner"):
                await store.enqueue_rollout(1)


async def test_namespaces_outside_of_the_token_do_not_exist_for_it(limited: Limited) -> None:
    async with limited.served(), limited.store("admin-limited") as store:
        assert [n.name for n in await store.list_namespaces()] == ["a"]
        assert (await store.get_namespace("a")).name == "a"
        texts = []
        for name in ("b", "none"):
            for call in (store.get_namespace, store.delete_namespace, store.create_namespace):
                with pytest.raises(NotFoundError) as caught:
                    await call(name)
                texts.append(caught.value.message.replace(name, "NAME"))
            with pytest.raises(NotFoundError):
                await store.update_namespace(name, description="d")
            await store.delete_namespace(name, allow_missing=True)
        assert texts[:3] == texts[3:]
        await store.update_namespace("a", description="d")
        async with limited.store("admin") as other:
            assert [n.name for n in await other.list_namespaces()] == ["a", "b", "default"]
            assert (await other.get_namespace("a")).description == "d"


async def test_every_role_lists_the_namespaces_that_it_may_use(limited: Limited) -> None:
    async with limited.served():
        for role in Role:
            async with limited.store(f"{role.value}-limited") as store:
                assert [n.name for n in await store.list_namespaces()] == ["a"]
                assert (await store.get_namespace("a")).name == "a"
                for name in ("b", "default", "none"):
                    with pytest.raises(NotFoundError, match="limited to other namespaces"):
                        await store.get_namespace(name)
            async with limited.store(role.value) as store:
                assert [n.name for n in await store.list_namespaces()] == ["a", "b", "default"]
                assert (await store.get_namespace("b")).name == "b"
        async with limited.store("default-limited") as store:
            assert [n.name for n in await store.list_namespaces()] == ["default"]
        for role in set(Role) - {Role.ADMIN}:
            for who in (role.value, f"{role.value}-limited"):
                async with limited.store(who) as store:
                    for call in (store.create_namespace, store.delete_namespace):
                        with pytest.raises(PermissionDeniedError, match=f"the role {role.value}"):
                            await call("a")


async def test_export_stores_nothing_in_other_namespaces(limited: Limited) -> None:
    async with limited.served(), grpc.aio.insecure_channel(limited.server.address) as channel:
        async with limited.store("admin", "b") as store:
            made = await store.start_rollout(1)
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        for key, value in (
            ("lightningstore.namespace", "b"),
            ("agentlightning.rollout_id", made.rollout_id),
            ("agentlightning.attempt_id", made.attempt.attempt_id),
        ):
            resource.resource.attributes.add(key=key).value.string_value = value
        resource.scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, name="n")

        async def export(who: str) -> ExportTraceServiceResponse:
            call = channel.unary_unary(
                TRACES, response_deserializer=ExportTraceServiceResponse.FromString
            )
            data = request.SerializeToString()
            answer = await call(data, metadata=limited.metadata(who, "a"), timeout=10)
            assert isinstance(answer, ExportTraceServiceResponse)
            return answer

        refused = (await export("runner-limited")).partial_success
        assert refused.rejected_spans == 1
        assert "limited to namespaces: a" in refused.error_message
        async with limited.store("admin", "b") as store:
            assert [span async for span in store.query_spans(made.rollout_id)] == []
            assert not (await export("two-limited")).partial_success.rejected_spans
            assert len([span async for span in store.query_spans(made.rollout_id)]) == 1


async def test_http_headers_are_checked_as_metadata_is(limited: Limited) -> None:
    async with limited.served():
        port = limited.service.info.otlp_http_port
        async with limited.store("admin", "a") as store:
            made = await store.start_rollout(1)
        own = (made.rollout_id, made.attempt.attempt_id)

        async def status(who: str, **headers: str) -> int:
            headers["authorization"] = f"Bearer {limited.secrets[who]}"
            body = as_json(own, json_span("n"))
            return (await post(port, body, "application/json", **headers)).status

        key = NAMESPACE_KEY
        assert await status("runner-limited") == 403
        assert await status("runner-limited", **{key: "b"}) == 403
        assert await status("runner-limited", **{key: "none"}) == 403
        assert await status("runner-limited", **{key: "a"}) == 200
        assert await status("runner", **{key: "\xe4"}) == 400  # not taken for the default one
        async with limited.store("admin", "a") as store:
            assert len([span async for span in store.query_spans(made.rollout_id)]) == 1


async def test_lines_of_a_tokens_file() -> None:
    _, free = auth.new_token("n", Role.RUNNER, None)
    _, limited = auth.new_token("m", Role.ADMIN, None, ["b", "a", "a"])
    assert free.line().split()[:-1] == ["n", "runner", "never"]
    assert limited.line().split()[:-1] == ["m", "admin", "never", "namespaces=a,b"]
    assert parse_tokens(free.line() + limited.line()) == [free, limited]
    for cut in range(1, len(limited.line()) - 1):
        with pytest.raises(ValueError, match="line 1: "):
            parse_tokens(limited.line()[:cut])
    digest = limited.line().split()[-1]
    for word in ("namespaces=", "namespaces=a,", "namespaces=A", "namespace=a", "a"):
        with pytest.raises(ValueError, match="line 1: "):
            parse_tokens(f"m admin never {word} {digest}")
    for names in ([""], ["a,b"], ["A"], ["a", "b c"]):
        with pytest.raises(ValueError, match="must be 1 to 63"):
            auth.new_token("m", Role.ADMIN, None, names)


async def test_commands_limit_a_token_and_list_its_namespaces(tmp_path: Path) -> None:
    new = ("token", "new", "--file", "tokens", "--role", "runner", "--name")
    assert (await run(*new, "all", folder=tmp_path))[0] == 0
    limits = ("--namespace", "b", "--namespace", "a")
    assert (await run(*new, "some", *limits, folder=tmp_path))[0] == 0
    _, listed, _ = await run("token", "list", "--file", "tokens", folder=tmp_path)
    assert listed == "all\trunner\tnever\tall namespaces\nsome\trunner\tnever\ta,b\n"
    for wrong, why in (
        (("other", "--namespace", "No"), "must be 1 to 63"),
        (("other", "--expires", "soon"), "a lifetime must be like 30d"),
        (("two words",), "a name"),
    ):
        code, _, errors = await run(*new, *wrong, folder=tmp_path)
        assert code == 2
        assert why in errors
        assert "usage: lightningstore token new" in errors
    assert "other" not in (tmp_path / "tokens").read_text()
    code, _, errors = await run(*new, "some", folder=tmp_path)  # the name is in the file
    assert code == 1
