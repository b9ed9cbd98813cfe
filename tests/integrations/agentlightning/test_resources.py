"""Resources, statistics and capabilities."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import pytest
from agentlightning.types import LLM, PromptTemplate, ProxyLLM, ResourcesUpdate
from lightningstore.client import AsyncLightningStore
from lightningstore.integrations.agentlightning import GrpcLightningStore

from tests.integrations.agentlightning.conftest import LIGHT, ONE_BACK_END, serving
from tests.integrations.agentlightning.test_spans import a_span

pytestmark = pytest.mark.asyncio

NAMED = {
    "llm": LLM(
        endpoint="http://m/v1", model="m", api_key="k", sampling_parameters={"top_p": 0.5, "n": [1]}
    ),
    "proxy": ProxyLLM(endpoint="http://p/v1", model="p"),
    "prompt": PromptTemplate(template="Say {x}", engine="f-string"),
    "jinja": PromptTemplate(template="{{ x }}", engine="jinja"),
}


async def test_added_resources_are_the_latest_and_come_back_as_they_were(
    store: GrpcLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        added = await store.add_resources(NAMED)
        assert isinstance(added, ResourcesUpdate)
        assert (added.version, added.create_time) == (1, added.update_time)
        stored = await store.get_latest_resources()
    assert stored == added
    assert stored.resources == NAMED
    assert type(stored.resources["proxy"]) is ProxyLLM
    assert type(stored.resources["llm"]) is LLM
    assert caplog.text == ""  # a ProxyLLM warns those who read its endpoint
    assert await store.get_resources_by_id(added.resources_id) == added


#: Prints the models that an agent gets.
AGENT = """
import asyncio, sys
import agentlightning as agl
from lightningstore.integrations.agentlightning import GrpcLightningStore

@agl.rollout
def agent(task, llm):
    print("model", llm.model)

async def main():
    store = GrpcLightningStore(sys.argv[1])
    rollout = await store.start_rollout(1)
    for resources_id in sys.argv[2:]:
        found = await store.get_resources_by_id(resources_id)
        agent.rollout("task", found.resources, rollout)
    await store.close()

asyncio.run(main())
"""


@ONE_BACK_END
@pytest.mark.timeout(240)  # two processes import agentlightning
async def test_runners_in_any_process_take_the_first_model_that_was_given(
    store: GrpcLightningStore, address: str
) -> None:
    names = ["main", "judge", "embed", "draft", "big"]
    llms = {name: LLM(endpoint="http://h/v1", model=name) for name in names}
    added = await store.add_resources(llms)
    assert list(added.resources) == names
    turned = await store.update_resources(f"turned-{id(store)}", dict(reversed(llms.items())))
    runners = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", AGENT, address, added.resources_id, turned.resources_id),
            env={**os.environ, **LIGHT, "PYTHONHASHSEED": seed},
            stdout=asyncio.subprocess.PIPE,
        )
        for seed in ("1", "2")
    ]
    for runner in runners:
        out, _ = await runner.communicate()
        models = [line.split()[1] for line in out.decode().splitlines() if "model " in line]
        assert models == ["main", "big"]


async def test_an_update_replaces_and_becomes_the_latest(store: GrpcLightningStore) -> None:
    first = await store.add_resources(NAMED)
    await store.add_resources({})
    updated = await store.update_resources(first.resources_id, {"llm": NAMED["llm"]})
    assert (updated.version, updated.create_time) == (2, first.create_time)
    assert updated.update_time >= first.update_time
    assert updated.resources == {"llm": NAMED["llm"]}
    assert await store.get_latest_resources() == updated


async def test_an_update_of_an_unknown_id_makes_it(store: GrpcLightningStore) -> None:
    made = await store.update_resources(f"made-{id(store)}", NAMED)
    assert (made.version, made.resources) == (1, NAMED)


async def test_unknown_resources_are_none(store: GrpcLightningStore) -> None:
    await store.add_resources({})
    for missing in ("rs-nobody", "", "latest"):
        assert await store.get_resources_by_id(missing) is None


async def test_resources_are_found_sorted_and_paged(store: GrpcLightningStore) -> None:
    tag = f"find-{id(store)}"
    for name in ("b", "a", "ab"):
        await store.update_resources(f"{tag}-{name}", {})
    await store.update_resources(f"{tag}-b", {})

    async def names(**arguments: object) -> list[str]:
        found = await store.query_resources(**arguments)
        return [r.resources_id.rpartition("-")[2] for r in found if tag in r.resources_id]

    assert await names() == ["b", "a", "ab"]
    assert await names(resources_id=f"{tag}-a") == ["a"]
    assert await names(resources_id=f"{tag}-a", resources_id_contains="b-nobody") == []
    assert await names(resources_id_contains=f"{tag}-a") == ["a", "ab"]
    assert await names(sort_by="resources_id", sort_order="desc") == ["b", "ab", "a"]
    assert await names(sort_by="version", sort_order="desc") == ["b", "a", "ab"]
    page = await store.query_resources(resources_id_contains=tag, limit=1, offset=1)
    assert (page[0].resources_id, page.total, len(page)) == (f"{tag}-a", 3, 1)


async def test_resources_of_other_kinds_are_left_out_aloud(
    store: GrpcLightningStore, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncLightningStore(address) as client:
        await client.add_resources({"weights": [0.5]})
    latest = await store.get_latest_resources()
    assert latest is not None
    assert latest.resources == {}
    assert "weights" in caplog.text
    with pytest.raises(ValueError, match="weights"):
        await store.add_resources({"weights": [0.5]})


async def test_statistics_count_what_there_is(store: GrpcLightningStore, address: str) -> None:
    before = await store.statistics()
    rollout = await store.start_rollout(1, worker_id=f"count-{id(store)}")
    await store.start_attempt(rollout.rollout_id)
    await store.add_span(a_span(rollout))
    await store.add_resources({})
    after = await store.statistics()
    more = {key: after[key] - before[key] for key in before if key.startswith("total_")}
    assert more.pop("total_span_bytes") > 50
    assert more == {
        "total_rollouts": 1,
        "total_attempts": 2,
        "total_spans": 1,
        "total_resources": 1,
        "total_workers": 1,
    }
    assert after["name"] == "GrpcLightningStore"
    assert after["uptime"] > before["uptime"] > 0
    async with AsyncLightningStore(address) as client:
        evicts = (await client.get_server_info()).backend == "memory"
    assert ("eviction_threshold_bytes" in after, "safe_threshold_bytes" in after) == (evicts,) * 2


async def test_evicted_spans_are_a_runtime_error(tmp_path: object) -> None:
    options = ("--backend", "memory", "--eviction-threshold", "2000", "--safe-threshold", "100")
    with serving(tmp_path, *options) as address:
        store = GrpcLightningStore(address)
        rollouts = [await store.start_rollout(n) for n in range(2)]
        for rollout in rollouts:
            await store.add_many_spans([a_span(rollout, name="n" * 100) for _ in range(20)])
        with pytest.raises(RuntimeError, match="evicted"):
            await store.query_spans(rollouts[0].rollout_id)
        await store.close()


async def test_capabilities_say_what_holds(store: GrpcLightningStore) -> None:
    assert store.capabilities == {
        "thread_safe": True,
        "async_safe": True,
        "zero_copy": True,
        "otlp_traces": False,
    }
    with pytest.raises(NotImplementedError, match="OTLP"):
        store.otlp_traces_endpoint()
