"""The HTTP port: every call of the contract by the Connect protocol, OTLP, metrics, health, and the page."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message_factory import GetMessageClass
from lightningstore.service.cluster.calls import SERVICE as SERVERS
from lightningstore.service.http import json_answers, json_messages
from lightningstore.service.rpc.handlers import NAMESPACES, SERVICE, path_of
from lightningstore.v1 import service_pb2
from lightningstore.v1.rollout_pb2 import (
    EnqueueRolloutsRequest,
    EnqueueRolloutsResponse,
    GetRolloutRequest,
)

from tests.contract.conftest import World
from tests.contract.helpers import claim, names
from tests.integration.conftest import world
from tests.integration.http_calls import (
    JSON,
    PROTO,
    STORE,
    STREAM_JSON,
    STREAM_PROTO,
    Stream,
    base64_of,
    call,
    enveloped,
    error,
    port_of,
    reason_of,
    stream,
)
from tests.integration.test_otlp_http import as_json, json_span, send

__all__ = ["world"]

pytestmark = pytest.mark.asyncio

METHODS = {
    path_of(method): method
    for service in (SERVICE, NAMESPACES, SERVERS)
    for method in service.methods
}
#: gRPC's names of codes, by Connect's.
CONNECT_CODES = {
    code.name.lower().replace("cancelled", "canceled"): code for code in grpc.StatusCode
}


async def over_grpc(world: World, path: str) -> tuple[str, bytes]:
    """Make a call with an empty request; returns code and answer, or first answer of a stream."""
    assert world.server is not None
    method = METHODS[path]
    async with grpc.aio.insecure_channel(world.server.address) as channel:
        try:
            if method.server_streaming:
                answers = channel.unary_stream(path)(b"", timeout=30)
                return "OK", await anext(aiter(answers), b"")
            return "OK", await channel.unary_unary(path)(b"", timeout=30)
        except grpc.aio.AioRpcError as caught:
            return caught.code().name, b""


@pytest.mark.parametrize("path", [path for path, m in METHODS.items() if not m.server_streaming])
async def test_every_call_answers_as_grpc_does(world: World, path: str) -> None:
    method = METHODS[path]
    answer = await call(port_of(world), path)
    if method.client_streaming:
        answer = await send(
            port_of(world), "POST", path, enveloped(b"{}"), {"Content-Type": STREAM_JSON}
        )
        last = json.loads(answer.body[5:])
        assert last["error"]["code"] == "unimplemented"
        assert "use gRPC" in last["error"]["message"]
        return
    code, _ = await over_grpc(world, path)
    if answer.status == 200:
        assert code == "OK"
        json_messages.serialised(answer.body, GetMessageClass(method.output_type))
        binary = await send(port_of(world), "POST", path, b"", {"Content-Type": PROTO})
        assert binary.status == 200
        assert binary.headers["Content-Type"] == PROTO
        GetMessageClass(method.output_type).FromString(binary.body)
    else:
        status, name, reason = error(answer)
        assert CONNECT_CODES[name].name == code
        assert reason


@pytest.mark.parametrize("path", [path for path, m in METHODS.items() if m.server_streaming])
async def test_every_stream_answers_as_grpc_does(world: World, path: str) -> None:
    code, first = await over_grpc(world, path)
    kind = GetMessageClass(METHODS[path].output_type)
    for form in (STREAM_JSON, STREAM_PROTO):
        request = b"{}" if form == STREAM_JSON else b""
        name = path.rpartition("/")[2]
        async with stream(port_of(world), name, request, form) as found:
            flags, answer = await asyncio.wait_for(found.next(), 30)
        if code == "OK":
            expected = b"".join(json_answers.parts(first, kind)) if form == STREAM_JSON else first
            assert (flags, answer) == (0, expected)
        else:
            assert flags == 2
            name, reason = reason_of(json.loads(answer)["error"])
            assert (CONNECT_CODES[name].name, bool(reason)) == (code, True)


async def test_write_is_stored_and_an_error_names_its_field(world: World) -> None:
    request = {"rollouts": [{"inputJson": base64_of({"q": 2}), "priority": 3}]}
    answer = await call(port_of(world), "EnqueueRollouts", request)
    assert answer.status == 200
    (entry,) = json.loads(answer.body)["rollouts"]
    rollout = await world.store.get_rollout(entry["rolloutId"])
    assert (rollout.input, rollout.priority) == ({"q": 2}, 3)

    answer = await call(port_of(world), "EnqueueRollouts", {"rollouts": [{"inputJson": "e3g="}]})
    assert error(answer) == (400, "invalid_argument", "FIELD_INVALID")
    described = json.loads(answer.body)["details"]
    assert described[1]["debug"]["fieldViolations"][0]["field"] == "rollouts[0].input_json"


async def test_protobuf_is_the_same_call(world: World) -> None:
    request = EnqueueRolloutsRequest(request_id="r-1")
    request.rollouts.add(input_json=b"1")
    path, kind = f"/{STORE}/EnqueueRollouts", {"Content-Type": PROTO}
    first = await send(port_of(world), "POST", path, request.SerializeToString(), kind)
    again = await call(
        port_of(world),
        "EnqueueRollouts",
        {"requestId": "r-1", "rollouts": [{"inputJson": "MQ=="}]},
    )
    (entry,) = EnqueueRolloutsResponse.FromString(first.body).rollouts
    assert [r["rolloutId"] for r in json.loads(again.body)["rollouts"]] == [entry.rollout_id]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"rolloutIdd": "x"}', "rolloutIdd: lightningstore.v1.GetRolloutRequest has no such"),
        (b'{"rolloutId": 5}', "rolloutId: "),
        (b"[]", "body: must be a JSON object"),
        (b"", "not a valid lightningstore.v1.GetRolloutRequest in JSON"),
        (b'{"rolloutId": "\xff"}', "not a valid lightningstore.v1.GetRolloutRequest in JSON"),
        (b"[" * 100_000, "not a valid lightningstore.v1.GetRolloutRequest in JSON"),
        (b'{"rolloutId": "x"} {}', "not a valid lightningstore.v1.GetRolloutRequest in JSON"),
    ],
)
async def test_json_that_is_no_request_is_refused(world: World, body: bytes, field: str) -> None:
    answer = await call(port_of(world), "GetRollout", body)
    assert error(answer)[:2] == (400, "invalid_argument")
    assert field in json.loads(answer.body)["message"]


async def test_limits_of_a_body(world: World) -> None:
    long = b'{"rolloutId": "' + b"x" * json_messages.MAX_BYTES + b'"}'
    assert error(await call(port_of(world), "GetRollout", long)) == (
        429,
        "resource_exhausted",
        "PAYLOAD_TOO_LARGE",
    )
    compressed = gzip.compress(long)
    answer = await call(port_of(world), "GetRollout", compressed, **{"Content-Encoding": "gzip"})
    assert error(answer) == (429, "resource_exhausted", "PAYLOAD_TOO_LARGE")
    many = b'{"rolloutId": [' + b"1," * json_messages.MAX_VALUES + b"1]}"
    answer = await call(port_of(world), "GetRollout", many)
    assert error(answer) == (429, "resource_exhausted", "BATCH_TOO_LARGE")
    large = GetRolloutRequest(rollout_id="x" * (json_messages.MAX_BYTES + 1)).SerializeToString()
    answer = await call(port_of(world), "GetRollout", large, **{"Content-Type": PROTO})
    assert error(answer) == (404, "not_found", "ROLLOUT_NOT_FOUND")  # read, in protobuf


async def test_compressed_requests(world: World) -> None:
    rollout, _ = await claim(world)
    body = gzip.compress(json.dumps({"rolloutId": rollout.rollout_id}).encode())
    answer = await call(port_of(world), "GetRollout", body, **{"Content-Encoding": "gzip"})
    assert json.loads(answer.body)["rollout"]["rolloutId"] == rollout.rollout_id
    for encoding, status in (("br", 415), ("identity", 400)):
        answer = await call(port_of(world), "GetRollout", body, **{"Content-Encoding": encoding})
        assert answer.status == status
    answer = await call(port_of(world), "GetRollout", b"{}", **{"Content-Encoding": "gzip"})
    assert error(answer) == (400, "invalid_argument", "FIELD_INVALID")
    headers = {"Content-Type": STREAM_JSON, "Connect-Content-Encoding": "gzip"}
    sent = enveloped(gzip.compress(b'{"rolloutIds": []}'), flags=1)
    answer = await send(port_of(world), "POST", f"/{STORE}/WaitForRollouts", sent, headers)
    assert reason_of(json.loads(answer.body[5:])["error"])[1] == "FIELD_INVALID"


@pytest.mark.parametrize(
    ("method", "verb", "headers", "status"),
    [
        ("GetRollout", "POST", {"Content-Type": "text/plain"}, 415),
        ("GetRollout", "POST", {"Content-Type": STREAM_JSON}, 415),
        ("GetRollout", "POST", {"Content-Type": "application/json; charset=latin-1"}, 415),
        ("GetRollout", "GET", {}, 405),
        ("GetRollout", "PUT", {"Content-Type": JSON}, 405),
        ("WatchRollouts", "POST", {"Content-Type": JSON}, 415),
        ("GetRollout", "POST", {"Content-Type": JSON, "Connect-Timeout-Ms": "soon"}, 400),
        ("GetRollout", "POST", {"Content-Type": JSON, "Connect-Timeout-Ms": "1" * 11}, 400),
        ("GetRollout", "POST", {"Content-Type": JSON, "Connect-Protocol-Version": "2"}, 400),
    ],
)
async def test_what_is_not_the_protocol_is_refused(
    world: World, method: str, verb: str, headers: dict[str, str], status: int
) -> None:
    answer = await send(port_of(world), verb, f"/{STORE}/{method}", b"{}", headers)
    assert error(answer) == (status, "invalid_argument", "FIELD_INVALID")
    if status == 405:
        assert answer.headers["Allow"] == "POST"
    if status == 415:
        assert "application/" in json.loads(answer.body)["message"] + str(answer.headers)


@pytest.mark.parametrize(
    "path", [f"/{STORE}/Nothing", "/some.Service/Call", "/grpc.health.v1.Health/Check"]
)
async def test_unknown_methods_are_unimplemented(world: World, path: str) -> None:
    assert error(await call(port_of(world), path)) == (501, "unimplemented", "")


@pytest.mark.parametrize(
    "sent",
    [b"", b"{}", b"\0\0\0\0", enveloped(b"{}") * 2, enveloped(b"{}", 2), enveloped(b"{}", 4)],
)
async def test_stream_takes_one_message_in_an_envelope(world: World, sent: bytes) -> None:
    headers = {"Content-Type": STREAM_JSON}
    answer = await send(port_of(world), "POST", f"/{STORE}/WatchRollouts", sent, headers)
    assert answer.status == 200
    assert reason_of(json.loads(answer.body[5:])["error"])[0] == "invalid_argument"


async def next_json(found: Stream) -> Any:
    return json.loads((await asyncio.wait_for(found.next(), 10))[1])


async def test_watch_sends_what_happens_while_it_is_open(world: World) -> None:
    async with stream(port_of(world), "WatchRollouts") as found:
        assert set(await next_json(found)) == {"storeId"}
        rollout, attempt = await claim(world)
        await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="succeeded")
        assert rollout.rollout_id in json.dumps(await next_json(found))


async def test_client_that_leaves_ends_its_call(world: World) -> None:
    assert world.service is not None
    waiters = world.service.engine.waiters
    async with stream(port_of(world), "WatchRollouts") as found:
        await found.next()
        poll = asyncio.create_task(
            call(port_of(world), "DequeueRollouts", {"workerId": "w", "limit": 1, "wait": "30s"})
        )
        while len(world.service.engine.polls) != 1 or waiters.count != 1:
            await asyncio.sleep(0.01)
        poll.cancel()
    async with asyncio.timeout(30):
        while len(world.service.engine.polls) or waiters.count:
            await asyncio.sleep(0.01)
    await world.store.enqueue_rollout({})  # which the poll that has gone does not claim
    assert len(await world.store.dequeue_rollouts(1)) == 1


async def test_deadline_ends_a_call_that_waits(world: World) -> None:
    async with stream(port_of(world), "WatchRollouts", **{"Connect-Timeout-Ms": "200"}) as found:
        _, last = await asyncio.wait_for(found.rest(), 30)
    assert reason_of(last["error"]) == ("deadline_exceeded", "")
    request, timeout = (
        {"workerId": "w", "limit": 1, "wait": "300s"},
        {"Connect-Timeout-Ms": "20000"},
    )
    claim = asyncio.create_task(call(port_of(world), "DequeueRollouts", request, **timeout))
    while not claim.done():  # A claim ends before its deadline, by the clock of the store.
        await world.advance(0.5)
        await asyncio.sleep(0.01)
    answer = await claim
    assert (answer.status, answer.body) == (200, b"{}")
    assert world.service is not None
    assert not len(world.service.engine.polls)


async def test_deadline_that_has_passed_ends_a_stream(world: World) -> None:
    """The call is cancelled while its body is read, which Python 3.11 forgets in `wait_for`."""
    async with asyncio.timeout(30):
        async with stream(port_of(world), "WatchRollouts", **{"Connect-Timeout-Ms": "0"}) as found:
            _, last = await found.rest()
    assert reason_of(last["error"]) == ("deadline_exceeded", "")


async def test_shutdown_ends_waits_with_a_reason(world: World) -> None:
    assert world.server is not None
    async with stream(port_of(world), "WatchRollouts") as found:
        await found.next()
        stopping = asyncio.create_task(world.server.stop(5))
        _, last = await asyncio.wait_for(found.rest(), 30)
        assert reason_of(last["error"]) == ("unavailable", "SHUTTING_DOWN")
        assert await stopping


async def test_namespace_is_that_of_the_header(world: World) -> None:
    port, inside = port_of(world), {"x-lightning-namespace": "run-1"}
    path = "/lightningstore.v1.NamespaceService/CreateNamespace"
    assert (await call(port, path, {"namespace": {"name": "run-1"}})).status == 200
    request = {"rollouts": [{"inputJson": "MQ=="}]}
    assert (await call(port, "EnqueueRollouts", request, **inside)).status == 200
    sizes = [
        len(json.loads((await call(port, "ListRollouts", {}, **headers)).body).get("rollouts", []))
        for headers in ({}, inside)
    ]
    assert sizes == [0, 1]
    answer = await call(port, "ListRollouts", {}, **{"x-lightning-namespace": "run-2"})
    assert error(answer) == (404, "not_found", "NAMESPACE_NOT_FOUND")


async def test_traces_metrics_and_health_are_on_the_port(world: World) -> None:
    port = port_of(world)
    rollout, attempt = await claim(world)
    own = (rollout.rollout_id, attempt.attempt_id)
    body = as_json(own, json_span("a"))
    assert (await send(port, "POST", "/v1/traces", body, {"Content-Type": JSON})).status == 200
    assert await names(world, own[0]) == ["a"]
    page = await send(port, "GET", "/metrics")
    assert b'lightningstore_spans{namespace="default"} 1.0' in page.body
    for path in ("/healthz", "/readyz"):
        assert (await send(port, "GET", path)).status == 200
    home = await send(port, "GET", "/")
    assert (home.status, home.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    for path in ("/nothing", "/v1/logs", "/metrics/x"):
        assert (await send(port, "GET", path)).status == 404


async def test_server_that_cannot_answer_is_not_ready(world: World) -> None:
    assert world.server is not None
    world.server._health.stop()
    assert (await send(port_of(world), "GET", "/readyz")).status == 503
    assert (await send(port_of(world), "GET", "/healthz")).status == 200


async def test_bytes_of_any_kind_come_back(world: World) -> None:
    """Inputs are bytes, and in JSON bytes are base64."""
    rollout, attempt = await claim(world)
    span = {
        "traceId": base64.b64encode(b"t" * 16).decode(),
        "spanId": base64.b64encode(b"s" * 8).decode(),
        "name": "né\u2028</script>",
    }
    batch = {"rolloutId": rollout.rollout_id, "attemptId": attempt.attempt_id, "spans": [span]}
    assert (await call(port_of(world), "AddSpans", {"batch": batch})).status == 200
    request = json.dumps({"rolloutId": rollout.rollout_id}).encode()
    async with stream(port_of(world), "QuerySpans", request) as found:
        answers, last = await found.rest()
    assert last == {}
    (stored,) = json.loads(answers[0])["batches"][0]["spans"]
    assert {key: stored[key] for key in span} == span


async def test_contract_has_no_bidirectional_stream() -> None:
    methods = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"].methods
    assert not [m.name for m in methods if m.client_streaming and m.server_streaming]
