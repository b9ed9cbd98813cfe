"""Token counts that the model's server reported, under the keys of many instrumentations."""

from __future__ import annotations

import io
import json
from importlib import import_module
from typing import Any

import pytest
from lightningstore.client._datasets import rows
from lightningstore.client._datasets.exported import ExportedRollout
from lightningstore.client.datasets import triplet_to_json
from lightningstore.client.values import Rollout
from lightningstore.service.traces import timeline
from lightningstore.v1 import rollout_pb2

from tests import recorded
from tests.traces import extract, span

CALL = {"gen_ai.operation.name": "chat"}
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}


def counts(**attributes: Any) -> tuple[int | None, int | None]:
    (found,) = extract([(1, span("a", "x", attributes={**CALL, **attributes}))])
    return found.prompt_token_count, found.response_token_count


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"),
        ("gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens"),
        ("llm.token_count.prompt", "llm.token_count.completion"),
        ("ai.usage.promptTokens", "ai.usage.completionTokens"),
        ("ai.usage.inputTokens", "ai.usage.outputTokens"),
        ("usage_metadata.prompt_token_count", "usage_metadata.candidates_token_count"),
        ("agentlightning.operation.output.usage.prompt_tokens", "x.usage.outputTokenCount"),
        ("my.tokens.input", "my.tokens.output"),
    ],
)
def test_counts_are_known_by_their_words(prompt: str, response: str) -> None:
    assert counts(**{prompt: 5, response: 7}) == (5, 7)
    assert counts(**{prompt: 5.0}) == (5, None)


@pytest.mark.parametrize(
    "key",
    [
        "llm.token_count.prompt_details.cache_read",
        "gen_ai.usage.cache_read_input_tokens",
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.details.reasoning_output_tokens",
        "gen_ai.request.max_output_tokens",
        "gen_ai.usage.total_tokens",
        "llm.usage.total_tokens",
        "llm.x.prompt_token_ids",
        "gen_ai.usage.input_cost",
        "gen_ai.prompt.0.tokens",
    ],
)
def test_parts_of_counts_and_limits_are_not_counts(key: str) -> None:
    assert counts(**{key: 5}) == (None, None)


@pytest.mark.parametrize(
    "attributes",
    [
        {"llm.openai.usage": str(USAGE)},
        {"llm.openai.usage": USAGE},
        {"langfuse.observation.usage_details": json.dumps({"input": 5, "output": 7, "total": 12})},
        {"output.value": json.dumps({"id": "r", "choices": [], "usage": USAGE})},
        {
            "output.value": json.dumps(
                {"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 7}}
            )
        },
    ],
    ids=str,
)
def test_counts_of_an_object_are_read(attributes: dict[str, Any]) -> None:
    assert counts(**attributes) == (5, 7)


@pytest.mark.parametrize("value", ["5", -1, True, 1 << 40, [5], float("nan")])
def test_what_is_no_number_of_tokens_is_none(value: Any) -> None:
    assert counts(**{"gen_ai.usage.input_tokens": value}) == (None, None)


@pytest.mark.parametrize("stack", recorded.STACKS)
def test_recorded_calls_have_the_counts_that_the_trace_shows(stack: str) -> None:
    numbered = recorded.spans(stack)
    triplets, shown = extract(numbered), timeline.read(numbered)
    for name in ("prompt", "response"):
        found = [getattr(triplet, f"{name}_token_count") for triplet in triplets]
        total = sum(found) if found and None not in found else None
        assert total == shown.total(f"{name}_tokens")


def test_a_proxy_reports_counts_too() -> None:
    attributes = {
        "llm.hosted_vllm.prompt_token_ids": "[1, 2]",
        "llm.hosted_vllm.response_token_ids": "[[3]]",
        "llm.hosted_vllm.usage": str(USAGE),
    }
    proxied = span("a", "raw_gen_ai_request", attributes=attributes)
    (found,) = extract([(1, proxied)], source="TRIPLET_SOURCE_PROXY")
    assert (found.prompt_token_count, found.response_token_count) == (5, 7)


def test_counts_are_in_a_row_of_an_export() -> None:
    told = {"gen_ai.usage.input_tokens": 5}
    (found,) = extract([(1, span("a", "x", attributes={**CALL, **told}))])
    row = triplet_to_json(found)
    assert (row["prompt_token_count"], row["response_token_count"]) == (5, None)


def test_counts_are_columns_of_parquet() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    told = {"gen_ai.usage.input_tokens": 5}
    found = extract([(1, span("a", "x", attributes={**CALL, **told}))])
    record = rollout_pb2.Rollout(rollout_id="r", status=rollout_pb2.ROLLOUT_STATUS_SUCCEEDED)
    record.input_json = b"1"
    exported = ExportedRollout(Rollout(record), [], [], [found])
    file = io.BytesIO()
    import_module("lightningstore.client._datasets.parquet").convert([rows.encode(exported)], file)
    (row,) = parquet.read_table(file).to_pylist()
    (triplet,) = row["triplets"]
    assert (triplet["prompt_token_count"], triplet["response_token_count"]) == (5, None)
