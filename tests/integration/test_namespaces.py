"""Namespaces on one server: created, listed, changed and deleted, and named by calls."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from lightningstore.service.rules.namespaces import NAMESPACE_KEY
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest
from lightningstore.v1.namespace_pb2 import (
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    GetNamespaceRequest,
    ListNamespacesRequest,
    Namespace,
    UpdateNamespaceRequest,
)
from lightningstore.v1.resources_pb2 import GetResourcesRequest, UpdateResourcesRequest
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest, RolloutSpec
from lightningstore.v1.statistics_pb2 import GetServerInfoRequest, GetStatisticsRequest

from tests.contract.conftest import World
from tests.namespaced import METHODS, Caller, reason_of

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.parametrize(
        "world", ["memory-grpc", "sqlite-grpc", "postgres-grpc"], indirect=True
    ),
]


@pytest_asyncio.fixture
async def caller(channel: grpc.aio.Channel) -> Caller:
    return Caller(channel)


async def refused(work: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Return how a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await work
    return reason_of(caught.value)


def enqueue(count: int = 1) -> EnqueueRolloutsRequest:
    return EnqueueRolloutsRequest(rollouts=[RolloutSpec(input_json=b"{}")] * count)


async def names(caller: Caller, **fields: Any) -> list[str]:
    answer = await caller.call("ListNamespaces", ListNamespacesRequest(**fields))
    return [namespace.name for namespace in answer.namespaces]


async def test_new_server_has_the_default_namespace(world: World, caller: Caller) -> None:
    assert await names(caller) == ["default"]
    answer = await caller.call("GetNamespace", GetNamespaceRequest(name="default"))
    assert answer.namespace.store_id == (await world.store.get_server_info()).store_id
    assert not answer.namespace.HasField("create_time")


async def test_namespace_is_created_with_its_settings(caller: Caller) -> None:
    made = await caller.create(
        "run-1",
        description="the first run",
        labels={"team": "a", "empty": ""},
        retain_finished=Duration(seconds=60),
        max_bytes=1 << 40,
        max_queue_length=2,
    )
    assert made.HasField("create_time")
    assert not made.HasField("update_time")
    assert made.store_id
    found = await caller.call("GetNamespace", GetNamespaceRequest(name="run-1"))
    assert found.namespace == made
    listed = await caller.call("ListNamespaces", ListNamespacesRequest(name_contains="un"))
    assert list(listed.namespaces) == [made]


async def test_call_names_its_namespace(caller: Caller) -> None:
    made = await caller.create("a")
    await caller.call("EnqueueRollouts", enqueue(2), "a")
    await caller.call("EnqueueRollouts", enqueue(1), "default")
    for namespace, count in (("a", 2), ("", 1), ("default", 1)):
        found = await caller.call("GetStatistics", GetStatisticsRequest(), namespace)
        assert found.queue_depth == count
    info = await caller.call("GetServerInfo", GetServerInfoRequest(), "a")
    assert (info.namespace, info.store_id, info.owner) == ("a", made.store_id, "")
    own = await caller.call("GetServerInfo", GetServerInfoRequest())
    assert own.namespace == "default"
    assert own.store_id != info.store_id


@pytest.mark.parametrize("name", ["UPPER", "-a", "a-", "a/b", "x" * 64, "ä".encode().hex() + "."])
async def test_invalid_name_is_an_invalid_argument(caller: Caller, name: str) -> None:
    code, reason, _ = await refused(caller.call("GetStatistics", GetStatisticsRequest(), name))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    code, reason, found = await refused(caller.create(name))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert found == {"field": "namespace.name"}


async def test_every_call_in_an_unknown_namespace_is_not_found(caller: Caller) -> None:
    for name, method in METHODS.items():
        if method.containing_service.name != "LightningStoreService":
            continue
        request = method.input_type._concrete_class()
        code, reason, found = await refused(caller.call(name, request, "nowhere"))
        assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "NAMESPACE_NOT_FOUND"), name
        assert found == {"namespace": "nowhere"}
    assert await names(caller) == ["default"]


async def test_error_says_how_to_create_the_namespace(caller: Caller) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.call("GetStatistics", GetStatisticsRequest(), "nowhere")
    assert "lightningstore namespaces create nowhere" in str(caught.value.details())


async def test_call_that_names_two_namespaces_is_rejected(
    caller: Caller, channel: grpc.aio.Channel
) -> None:
    await caller.create("a")
    call = channel.unary_unary("/lightningstore.v1.LightningStoreService/GetStatistics")
    named = ((NAMESPACE_KEY, "a"), (NAMESPACE_KEY, "default"))
    code, reason, _ = await refused(call(b"", metadata=named))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")


async def test_creation_can_be_repeated_with_its_request_id(caller: Caller) -> None:
    request = CreateNamespaceRequest(namespace=Namespace(name="a"), request_id="1")
    first = (await caller.call("CreateNamespace", request)).namespace
    assert (await caller.call("CreateNamespace", request)).namespace == first
    for other in ("2", ""):
        request.request_id = other
        code, reason, found = await refused(caller.call("CreateNamespace", request))
        assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "NAMESPACE_EXISTS")
        assert found == {"namespace": "a"}
    assert (await refused(caller.create("default")))[1] == "NAMESPACE_EXISTS"


async def test_concurrent_creations_make_one_namespace(caller: Caller) -> None:
    request = CreateNamespaceRequest(namespace=Namespace(name="a"), request_id="1")
    made = await asyncio.gather(*[caller.call("CreateNamespace", request) for _ in range(5)])
    assert len({answer.namespace.store_id for answer in made}) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"description": "x" * 1001},
        {"labels": {str(n): "" for n in range(33)}},
        {"labels": {"": "x"}},
        {"labels": {"k" * 64: ""}},
        {"labels": {"k": "v" * 64}},
        {"retain_finished": Duration(seconds=-1)},
        {"max_bytes": -1},
        {"max_queue_length": -1},
        {"keep_resource_versions": -1},
        {"store_id": "mine"},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_invalid_settings_are_rejected(caller: Caller, fields: dict[str, Any]) -> None:
    code, reason, found = await refused(caller.create("a", **fields))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert found == {"field": f"namespace.{next(iter(fields))}"}
    assert await names(caller) == ["default"]


async def update(caller: Caller, *paths: str, **fields: Any) -> Namespace:
    request = UpdateNamespaceRequest(namespace=Namespace(**fields))
    if paths:
        request.update_mask.CopyFrom(FieldMask(paths=paths))
    changed: Namespace = (await caller.call("UpdateNamespace", request)).namespace
    return changed


@pytest.mark.parametrize("name", ["a", "default"])
async def test_settings_are_changed_by_mask(world: World, caller: Caller, name: str) -> None:
    if name == "a":
        await caller.create("a")
    await update(caller, name=name, description="one", labels={"k": "v"}, max_queue_length=1)
    changed = await update(caller, "description", "labels", name=name, labels={"l": "w"})
    assert (changed.description, dict(changed.labels)) == ("", {"l": "w"})
    assert (changed.HasField("max_queue_length"), changed.max_queue_length) == (True, 1)
    assert changed.HasField("update_time")
    world.clock.jump(10)
    assert await update(caller, "labels", name=name, labels={"l": "w"}) == changed  # a repeat
    cleared = await update(caller, "max_queue_length", name=name)
    assert not cleared.HasField("max_queue_length")
    code, _, _ = await refused(update(caller, "store_id", name=name))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    found = await caller.call("GetNamespace", GetNamespaceRequest(name=name))
    assert found.namespace == cleared


async def test_queue_limit_is_the_namespace_s_own(caller: Caller) -> None:
    await caller.create("a", max_queue_length=2)
    await caller.call("EnqueueRollouts", enqueue(2), "a")
    code, reason, _ = await refused(caller.call("EnqueueRollouts", enqueue(), "a"))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert (
        await caller.call("GetServerInfo", GetServerInfoRequest(), "a")
    ).limits.queue_length == 2
    await caller.call("EnqueueRollouts", enqueue(5))
    await update(caller, name="a", max_queue_length=3)
    await caller.call("EnqueueRollouts", enqueue(), "a")


async def test_number_of_kept_versions_is_the_namespace_s_own(caller: Caller) -> None:
    await caller.create("a", keep_resource_versions=2)
    publish, get = UpdateResourcesRequest(resources_id="r"), GetResourcesRequest(publish_number=1)
    for namespace in ("a", "default"):
        for _ in range(3):
            await caller.call("UpdateResources", publish, namespace)
    code, reason, _ = await refused(caller.call("GetResources", get, "a"))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCES_VERSION_REMOVED")
    assert (await caller.call("GetResources", get)).resources.version == 1
    info = await caller.call("GetServerInfo", GetServerInfoRequest(), "a")
    assert info.limits.resource_versions == 2
    await update(caller, name="a", keep_resource_versions=0)
    for _ in range(20):
        await caller.call("UpdateResources", publish, "a")
    get = GetResourcesRequest(publish_number=2)
    assert (await caller.call("GetResources", get, "a")).resources.version == 2


async def test_list_has_pages_and_a_filter(caller: Caller) -> None:
    made = [f"run-{n}" for n in range(5)] + ["other"]
    for name in made:
        await caller.create(name)
    assert await names(caller) == sorted([*made, "default"])
    found, token = [], ""
    while True:
        request = ListNamespacesRequest(name_contains="run", page_size=2, page_token=token)
        answer = await caller.call("ListNamespaces", request)
        found += [namespace.name for namespace in answer.namespaces]
        token = answer.next_page_token
        if not token:
            break
    assert found == made[:5]
    request = ListNamespacesRequest(page_size=2, page_token="x")
    assert (await refused(caller.call("ListNamespaces", request)))[1] == "PAGE_TOKEN_MISMATCH"
    request = ListNamespacesRequest(page_size=-1)
    assert (await refused(caller.call("ListNamespaces", request)))[1] == "FIELD_INVALID"


async def test_deleted_namespace_is_gone_and_its_name_is_free(caller: Caller) -> None:
    first = await caller.create("a")
    await caller.call("EnqueueRollouts", enqueue(), "a")
    await caller.delete("a")
    assert await names(caller) == ["default"]
    assert (await refused(caller.delete("a")))[1] == "NAMESPACE_NOT_FOUND"
    await caller.delete("a", allow_missing=True)
    answer = await refused(caller.call("EnqueueRollouts", enqueue(), "a"))
    assert answer[1] == "NAMESPACE_NOT_FOUND"
    second = await caller.create("a")
    assert second.store_id != first.store_id
    found = await caller.call("GetStatistics", GetStatisticsRequest(), "a")
    assert (found.queue_depth, len(found.rollouts)) == (0, 0)


async def test_namespace_with_running_attempts_is_deleted_by_force_only(caller: Caller) -> None:
    await caller.create("a")
    await caller.call("EnqueueRollouts", enqueue(2), "a")
    await caller.call("DequeueRollouts", DequeueRolloutsRequest(limit=2), "a")
    code, reason, found = await refused(caller.delete("a"))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NAMESPACE_IN_USE")
    assert found == {"namespace": "a", "count": "2"}
    await caller.delete("a", force=True)
    assert await names(caller) == ["default"]


async def test_default_namespace_cannot_be_deleted(caller: Caller) -> None:
    for force in (False, True):
        request = DeleteNamespaceRequest(name="default", force=force)
        code, reason, _ = await refused(caller.call("DeleteNamespace", request))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NAMESPACE_IN_USE")


async def test_only_a_medium_that_can_fail_is_looked_after(world: World, caller: Caller) -> None:
    """In memory all namespaces stay open: what each one does all the time adds up."""
    await caller.create("a")
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert "watchdog" in names
    assert ("storage" in names) == world.durable
