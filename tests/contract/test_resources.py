"""AddResources, UpdateResources, GetResources, ListResources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lightningstore.client import (
    LLM,
    AlreadyExistsError,
    CustomResource,
    InvalidArgumentError,
    NotFoundError,
    PromptTemplate,
    ProxyLLM,
    ResourceExhaustedError,
)
from lightningstore.v1 import resources_pb2 as pb

from tests.contract.conftest import World
from tests.contract.helpers import claim, refused

pytestmark = pytest.mark.asyncio

ALL_KINDS = {
    "llm": LLM("http://h:8000/v1", "m", "key", {"temperature": 0.5, "n": 2**60 + 1}),
    "proxy": ProxyLLM("http://p/v1", "m"),
    "f": PromptTemplate("hello {name}", "f_string"),
    "jinja": PromptTemplate("{{ ü }}", "jinja"),
    "poml": PromptTemplate("<poml/>", "poml"),
    "weights": CustomResource("checkpoint", {"step": 7, "path": None}),
}


async def add(world: World, *resources_ids: str) -> None:
    for resources_id in resources_ids:
        await world.store.add_resources({"x": resources_id}, resources_id=resources_id)


async def listed(world: World, **options: object) -> list[str]:
    return [r.resources_id for r in await world.store.list_resources(**options)]


async def test_all_kinds_come_back_as_they_were_given(world: World) -> None:
    made = await world.store.add_resources(ALL_KINDS)
    assert re.fullmatch(r"rs-[0-9a-f]{12}", made.resources_id)
    assert made.version == 1
    assert made.message.create_time.ToNanoseconds() == world.clock.wall_ns()
    assert made.create_time == made.update_time
    assert made.resources == ALL_KINDS
    assert await world.store.get_resources(made.resources_id) == made


@pytest.mark.parametrize("text", [b'{"n": 1152921504606846977}', b" [1.0,1e3] ", b"null", b'""'])
async def test_custom_json_comes_back_byte_for_byte(world: World, text: bytes) -> None:
    resource = pb.Resource(custom=pb.CustomResource(value_json=text))
    request = pb.AddResourcesRequest(resources={"x": resource})
    made = (await world.store.call("AddResources", request)).resources
    stored = (await world.store.get_resources(made.resources_id)).message
    assert stored.resources["x"].custom.value_json == text
    assert stored == made


async def test_ids_of_the_callers_own_are_taken(world: World) -> None:
    made = await world.store.add_resources({}, resources_id="my/id")
    assert (made.resources_id, made.version, made.resources) == ("my/id", 1, {})
    async with refused(world, AlreadyExistsError, "RESOURCES_EXISTS", "my/id"):
        await world.store.add_resources({}, resources_id="my/id")


async def test_update_replaces_the_map_and_counts_the_version(world: World) -> None:
    made = await world.store.add_resources({"a": 1, "b": 2}, resources_id="r")
    await world.advance(5)
    changed = await world.store.update_resources("r", {"c": 3})
    assert changed.version == 2
    assert changed.resources == {"c": CustomResource("", 3)}
    assert changed.create_time == made.create_time
    assert changed.message.update_time.ToNanoseconds() == world.clock.wall_ns()
    assert await world.store.get_resources("r") == changed
    assert (await world.store.update_resources("r", {})).version == 3
    assert (await world.store.get_resources("r")).resources == {}


async def test_resources_keep_the_order_in_which_they_were_given(world: World) -> None:
    given = ["main", "judge", "embed", "ä", "b", "a"]
    made = await world.store.add_resources(dict.fromkeys(given, 1), resources_id="r")
    assert list(made.resources) == given
    if world.durable:
        await world.restart()
    assert list((await world.store.get_resources("r")).resources) == given
    assert [list(r.resources) for r in await world.store.list_resources()] == [given]
    changed = await world.store.update_resources("r", dict.fromkeys(given[::-1], 2))
    assert list(changed.resources) == given[::-1]
    assert list((await world.store.get_resources("r")).resources) == given[::-1]


async def test_names_are_kept_as_they_are_and_others_follow_by_name(world: World) -> None:
    resource = pb.Resource(custom=pb.CustomResource(value_json=b"1"))
    resources = dict.fromkeys("dcbae", resource)
    names = ["b", "gone", "d", "b", ""]
    request = pb.AddResourcesRequest(resources_id="r", resources=resources, names=names)
    await world.store.call("AddResources", request)
    stored = await world.store.get_resources("r")
    assert stored.message.names == names
    assert list(stored.resources) == list("bdace")
    update = pb.UpdateResourcesRequest(resources_id="r", resources=resources)
    await world.store.call("UpdateResources", update)
    stored = await world.store.get_resources("r")
    assert stored.message.names == []
    assert list(stored.resources) == list("abcde")


async def test_update_of_an_unknown_id_creates_it(world: World) -> None:
    made = await world.store.update_resources("new", {"a": 1})
    assert (made.resources_id, made.version) == ("new", 1)
    assert made.create_time == made.update_time
    assert await world.store.get_resources() == made


async def test_latest_is_what_was_added_or_updated_last(world: World) -> None:
    await add(world, "first", "second")
    assert (await world.store.get_resources()).resources_id == "second"
    await world.store.update_resources("first", {"x": 2})
    latest = await world.store.get_resources()
    assert (latest.resources_id, latest.version) == ("first", 2)
    await add(world, "third")
    assert (await world.store.get_resources()).resources_id == "third"


async def test_unknown_resources_are_not_found(world: World) -> None:
    async with refused(world, NotFoundError, "RESOURCES_NOT_FOUND"):
        await world.store.get_resources()
    await add(world, "r")
    async with refused(world, NotFoundError, "RESOURCES_NOT_FOUND", "nope"):
        await world.store.get_resources("nope")


async def test_all_survives_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    await add(world, "a", "b", "c")
    changed = await world.store.update_resources("b", ALL_KINDS)
    await world.restart()
    assert await world.store.get_resources() == changed
    assert await listed(world) == ["a", "b", "c"]
    assert (await world.store.update_resources("b", {})).version == 3


async def test_claim_names_the_version_of_its_moment(world: World) -> None:
    await add(world, "r")
    rollout, attempt = await claim(world)
    assert (rollout.resources_id, attempt.resources_id, attempt.resources_version) == ("r", "r", 1)
    await world.store.update_resources("r", {})
    second = (await world.store.start_attempt(rollout.rollout_id)).attempt
    assert (second.resources_id, second.resources_version) == ("r", 2)
    first = await world.store.get_attempt(rollout.rollout_id, attempt.attempt_id)
    assert first.resources_version == 1


async def test_list_is_in_order_of_first_adding(world: World) -> None:
    await add(world, "b", "c", "a")
    await world.store.update_resources("b", {})
    assert await listed(world) == ["b", "c", "a"]
    assert [r.version for r in await world.store.list_resources()] == [2, 1, 1]


async def test_list_filters_by_part_of_the_id(world: World) -> None:
    await add(world, "run-1", "Run-2", "run_3", "other")
    assert await listed(world, resources_id_contains="run") == ["run-1", "run_3"]
    assert await listed(world, resources_id_contains="un-") == ["run-1", "Run-2"]
    assert await listed(world, resources_id_contains="n_3") == ["run_3"]
    assert await listed(world, resources_id_contains="%") == []


async def test_pages_hold_all_once(world: World) -> None:
    await add(world, *(f"r{n}" for n in range(7)))
    seen: list[str] = []
    page = await world.store.list_resources(page_size=3)
    sizes = [len(page)]
    seen += [r.resources_id for r in page]
    await add(world, "r7")
    await world.store.update_resources("r0", {})
    while page.next_page_token:
        page = await world.store.list_resources(page_size=3, page_token=page.next_page_token)
        sizes.append(len(page))
        seen += [r.resources_id for r in page]
    assert seen == [f"r{n}" for n in range(8)]
    assert sizes == [3, 3, 2]


async def test_last_page_has_no_token(world: World) -> None:
    await add(world, "a", "b")
    assert (await world.store.list_resources(page_size=2)).next_page_token == ""
    assert (await world.store.list_resources(page_size=1)).next_page_token != ""


async def test_page_size_defaults_to_a_hundred(world: World) -> None:
    await add(world, *(f"r{n:03}" for n in range(101)))
    assert len(await world.store.list_resources()) == 100


async def test_page_token_is_bound_to_its_filter(world: World) -> None:
    await add(world, "a1", "a2", "a3")
    token = (await world.store.list_resources(page_size=1)).next_page_token
    async with refused(world, InvalidArgumentError, "PAGE_TOKEN_MISMATCH"):
        await world.store.list_resources(resources_id_contains="a", page_token=token)
    for bad in ("nope", token + "x", token[:-2], "é"):
        async with refused(world, InvalidArgumentError, "PAGE_TOKEN_MISMATCH"):
            await world.store.list_resources(page_token=bad)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "page_size"):
        await world.store.list_resources(page_size=-1)


@pytest.mark.parametrize(
    ("field", "resource"),
    [
        ("resources['bad']", pb.Resource()),
        ("custom.value_json", pb.Resource(custom=pb.CustomResource())),
        ("custom.value_json", pb.Resource(custom=pb.CustomResource(value_json=b"{"))),
        ("custom.value_json", pb.Resource(custom=pb.CustomResource(value_json=b"NaN"))),
        ("llm.sampling_parameters_json", pb.Resource(llm=pb.LLM(sampling_parameters_json=b"[]"))),
        (
            "proxy_llm.llm.sampling_parameters_json",
            pb.Resource(proxy_llm=pb.ProxyLLM(llm=pb.LLM(sampling_parameters_json=b"1"))),
        ),
        ("prompt_template.engine", pb.Resource(prompt_template=pb.PromptTemplate(template="t"))),
        (
            "prompt_template.engine",
            pb.Resource(prompt_template=pb.PromptTemplate(template="t", engine=99)),
        ),
    ],
    ids=str,
)
async def test_bad_resource_refuses_the_whole_map(
    world: World, field: str, resource: pb.Resource
) -> None:
    good = pb.Resource(custom=pb.CustomResource(value_json=b"1"))
    await add(world, "r")
    resources = {"good": good, "bad": resource}
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
        await world.store.call("AddResources", pb.AddResourcesRequest(resources=resources))
    request = pb.UpdateResourcesRequest(resources_id="r", resources=resources)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
        await world.store.call("UpdateResources", request)


async def test_empty_sampling_parameters_mean_none(world: World) -> None:
    request = pb.AddResourcesRequest(resources={"x": pb.Resource(llm=pb.LLM(endpoint="http://x"))})
    await world.store.call("AddResources", request)
    assert (await world.store.get_resources())["x"].sampling_parameters == {}


@pytest.mark.parametrize("resources_id", ["latest", "x" * 257, "x\0"])
async def test_bad_ids_are_refused(world: World, resources_id: str) -> None:
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "resources_id"):
        await world.store.add_resources({}, resources_id=resources_id)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "resources_id"):
        await world.store.update_resources(resources_id, {})


async def test_update_needs_an_id(world: World) -> None:
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "resources_id"):
        await world.store.update_resources("", {})


async def test_longest_id_is_taken(world: World) -> None:
    await add(world, "x" * 256)
    assert await listed(world) == ["x" * 256]


async def test_request_id_makes_a_repeat_of_add_harmless(world: World) -> None:
    first = await world.store.add_resources({"a": 1}, request_id="r1")
    if world.durable:
        await world.restart()
    assert await world.store.add_resources({"a": 1}, request_id="r1") == first
    assert await listed(world) == [first.resources_id]
    async with refused(world, InvalidArgumentError, "REQUEST_ID_REUSED", "r1"):
        await world.store.add_resources({"a": 2}, request_id="r1")


async def test_request_id_makes_a_repeat_of_update_harmless(world: World) -> None:
    await add(world, "r", "other")
    await world.store.update_resources("r", {"a": 1}, request_id="r1")
    await world.store.update_resources("other", {})
    if world.durable:
        await world.restart()
    again = await world.store.update_resources("r", {"a": 1}, request_id="r1")
    assert again.version == 2
    assert (await world.store.get_resources()).resources_id == "other"


async def test_request_id_is_for_one_call_alone(world: World) -> None:
    await world.store.add_resources({}, resources_id="r", request_id="r1")
    changed = None
    try:
        changed = await world.store.update_resources("r", {}, request_id="r1")
    except InvalidArgumentError as error:
        assert error.reason == "ERROR_REASON_REQUEST_ID_REUSED"
    assert changed is None or changed.version == 2


async def test_resources_larger_than_an_answer_can_be_are_refused(way: str, tmp_path: Path) -> None:
    world = World(way, tmp_path, max_message_bytes=5 << 20)
    await world.start()
    try:
        await add(world, "r")
        text = "x" * (1 << 20)
        async with refused(world, ResourceExhaustedError, "PAYLOAD_TOO_LARGE", "resources"):
            await world.store.update_resources("r", {"a": text, "b": text})
        async with refused(world, ResourceExhaustedError, "PAYLOAD_TOO_LARGE", "resources"):
            request = pb.UpdateResourcesRequest(resources_id="r", names=[text, text])
            await world.store.call("UpdateResources", request)
    finally:
        await world.stop()


async def test_page_of_large_resources_holds_fewer(way: str, tmp_path: Path) -> None:
    world = World(way, tmp_path, max_message_bytes=8 << 20)
    await world.start()
    try:
        for n in range(4):
            await world.store.add_resources({"x": "x" * (3 << 20)}, resources_id=f"r{n}")
        seen, token = [], ""
        for _ in range(5):
            page = await world.store.list_resources(page_token=token)
            seen += [r.resources_id for r in page]
            token = page.next_page_token
            if not token:
                break
        assert seen == ["r0", "r1", "r2", "r3"]
        assert token == ""
    finally:
        await world.stop()


async def test_too_many_resources_in_one_map_are_refused(world: World) -> None:
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "resources"):
        await world.store.add_resources({str(n): n for n in range(10_001)})
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "names"):
        await world.store.call("AddResources", pb.AddResourcesRequest(names=[""] * 10_001))


async def test_what_was_given_and_got_is_not_the_stores_own(world: World) -> None:
    request = pb.AddResourcesRequest(
        resources_id="r", resources={"x": pb.Resource(llm=pb.LLM(model="m"))}
    )
    answer = await world.store.call("AddResources", request)
    request.resources["x"].llm.model = "changed"
    answer.resources.resources["x"].llm.model = "changed"
    (await world.store.get_resources("r")).message.resources["x"].llm.model = "changed"
    assert (await world.store.get_resources("r"))["x"].model == "m"
