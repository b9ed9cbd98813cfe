"""Which spans are one call, what is warned of, and contents of every kind: numbers, images, hostile JSON."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from lightningstore.client import AttemptTriplets
from lightningstore.service.traces import timeline
from lightningstore.service.triplets import values
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.shapes import ASKED, PARTS, USER
from tests.traces import extract, span


def of(*spans: Span, **options: Any) -> AttemptTriplets:
    return extract(list(enumerate(spans, 1)), **options)


def chat(word: str, parent: str = "", at: tuple[float, float] = (1, 9), **more: Any) -> Span:
    attributes = {
        "gen_ai.operation.name": "chat",
        **{k.replace("__", "."): v for k, v in more.items()},
    }
    return span(word, f"chat {word}", parent, at, attributes)


# One call, several spans


def test_a_call_that_two_libraries_record_counts_once_with_what_both_have() -> None:
    outer = chat("framework", gen_ai__input__messages=json.dumps(PARTS))
    inner = chat(
        "client",
        "framework",
        (2, 8),
        gen_ai__response__id="x",
        prompt_token_ids=[1],
        response_token_ids=[2],
    )
    (triplet,) = of(outer, inner)
    assert triplet.prompt == PARTS
    assert (triplet.prompt_token_ids, triplet.response_token_ids) == ([1], [2])
    assert triplet.response_id == "x"
    assert triplet.span_id == outer.span_id.hex()
    assert len(of(outer, inner, skip_without_tokens=True)) == 1
    assert len(of(outer, inner, deduplicate=False)) == 2


def test_a_proxy_that_records_the_call_of_a_client_counts_once() -> None:
    usage = {"gen_ai.usage.input_tokens": 11, "gen_ai.usage.output_tokens": 3}
    client = span(
        "client",
        "ChatCompletion",
        "agent",
        (2, 8),
        {
            "openinference.span.kind": "LLM",
            "llm.input_messages.0.message.content": ASKED,
            "llm.token_count.prompt": 11,
            "llm.token_count.completion": 3,
        },
    )
    proxy = span(
        "proxy",
        "litellm_request",
        "",
        (3, 7),
        {"gen_ai.operation.name": "chat", "gen_ai.response.id": "x", **usage},
    )
    raw = span(
        "raw",
        "raw_gen_ai_request",
        "proxy",
        (4, 6),
        {
            "llm.hosted_vllm.id": "x",
            "llm.hosted_vllm.prompt_token_ids": "[5, 6]",
            "llm.hosted_vllm.choices": "[{'token_ids': [7], 'logprobs': {'content': [{'logprob': -0.5}]}}]",
        },
    )
    agent = span("agent", "run", "", (1, 9), {"gen_ai.operation.name": "invoke_agent", **usage})
    spans = [agent, client, proxy, raw]
    (triplet,) = of(*spans)
    assert triplet.prompt == [{"content": ASKED}]
    assert (triplet.prompt_token_ids, triplet.response_token_ids) == ([5, 6], [7])
    assert triplet.logprobs == [-0.5]
    shown = timeline.read(enumerate(spans, 1))
    assert (shown.total("prompt_tokens"), shown.total("response_tokens")) == (11, 3)


def test_a_span_around_several_calls_is_not_one_itself() -> None:
    loop = chat("loop")
    calls = [chat(w, "loop", (at, at + 1), gen_ai__response__id=w) for at, w in enumerate("abc", 2)]
    assert [t.response_id for t in of(loop, *calls)] == ["a", "b", "c"]


def test_calls_at_the_same_time_are_apart() -> None:
    root = span("root", "run", "", (0, 10))
    assert len(of(root, chat("long", "root", (1, 9)), chat("short", "root", (2, 3)))) == 2


def test_what_a_tool_of_a_call_asks_is_a_call_of_its_own() -> None:
    tool = span("tool", "search", "outer", (2, 8), {"gen_ai.operation.name": "execute_tool"})
    assert len(of(chat("outer"), tool, chat("inner", "tool", (3, 7)))) == 2


def test_many_records_of_one_call_are_joined_in_bounded_work() -> None:
    spans = [chat(str(at), at=(at, at + 1), gen_ai__response__id="x") for at in range(1, 20_001)]
    assert len(of(*spans)) == 1


def test_an_answer_that_only_the_next_prompt_repeats_is_taken_from_there() -> None:
    answer = {"role": "assistant", "content": "Let me look."}
    first = chat("a", at=(1, 2), gen_ai__input__messages=json.dumps([USER]))
    second = chat("b", at=(3, 4), gen_ai__input__messages=json.dumps([USER, answer, USER]))
    other = chat("c", at=(5, 6), gen_ai__input__messages=json.dumps([answer, USER]))
    assert [t.response for t in of(first, second, other)] == [[answer], None, None]


# Warnings


def test_calls_that_do_not_count_are_warned_of() -> None:
    found = of(chat("a"), agent_match="nobody")
    assert found == []
    assert "agent_match" in found.warnings[0][1]
    assert "skip_without_tokens" in of(chat("a"), skip_without_tokens=True).warnings[0][1]


def test_the_warning_is_bounded_and_does_not_depend_on_the_order() -> None:
    spans = [
        span(f"s{i}", f"name {i} " + "x" * 1000, attributes={f"key {i} " + "y" * 1000: 1})
        for i in range(500)
    ]
    (warning,) = of(*spans).warnings
    assert len(warning[1]) < 4000
    assert of(*reversed(spans)).warnings == [warning]


# Numbers that JSON does not have


@pytest.mark.parametrize("word", ["-Infinity", "NaN", "Infinity"])
def test_an_alternative_that_is_no_number_leaves_the_log_probabilities(word: str) -> None:
    tokens = f'[{{"token": "a", "logprob": -0.5, "top_logprobs": [{{"token": "\\u00e9\\/", "logprob": {word}}}]}}]'
    (triplet,) = found = of(chat("a", logprobs__content=tokens))
    assert triplet.logprobs == [-0.5]
    assert triplet.logprobs_content[0]["top_logprobs"] == [{"token": "é/", "logprob": None}]
    assert found.warnings == []


@pytest.mark.parametrize(
    "choice", ["{'score': nan, 'token_ids': [3]}", '{"score": NaN, "token_ids": [3]}']
)
def test_a_choice_with_a_value_that_is_no_number_keeps_its_call(choice: str) -> None:
    raw = span(
        "a",
        "raw_gen_ai_request",
        attributes={"llm.vllm.prompt_token_ids": "[1, 2]", "llm.vllm.choices": f"[{choice}]"},
    )
    (triplet,) = of(raw, source="TRIPLET_SOURCE_PROXY")
    assert (triplet.prompt_token_ids, triplet.response_token_ids) == ([1, 2], [3])
    assert len(of(raw)) == 1


@pytest.mark.parametrize(
    "provider", ["hosted_vllm", "openai", "vllm", "sglang", "a_provider_to_come"]
)
def test_a_proxy_is_read_for_every_provider(provider: str) -> None:
    choices = '[{"token_ids": [3, 4], "logprobs": {"content": [{"logprob": -1}, {"logprob": -2}]}}]'
    raw = span(
        "a",
        "raw_gen_ai_request",
        attributes={
            f"llm.{provider}.id": "x",
            f"llm.{provider}.prompt_token_ids": [1, 2],
            f"llm.{provider}.choices": choices,
        },
    )
    (triplet,) = of(raw, source="TRIPLET_SOURCE_PROXY")
    assert triplet.response_id == "x"
    assert (triplet.prompt_token_ids, triplet.response_token_ids) == ([1, 2], [3, 4])
    assert triplet.logprobs == [-1.0, -2.0]


# Images


@pytest.mark.parametrize(
    ("part", "url"),
    [
        ({"type": "uri", "modality": "image", "uri": "https://i/1.png"}, "https://i/1.png"),
        (
            {"type": "blob", "modality": "image", "mime_type": "image/jpeg", "content": "QUI="},
            "data:image/jpeg;base64,QUI=",
        ),
        ({"type": "file", "modality": "image", "file_id": "file-1"}, "file-1"),
        ({"type": "image_url", "image_url": {"url": "https://i/2.png"}}, "https://i/2.png"),
        ({"type": "input_image", "image_url": "https://i/3.png"}, "https://i/3.png"),
        (
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": "QUI="},
            },
            "data:image/png;base64,QUI=",
        ),
        ({"type": "image", "source": {"type": "url", "url": "https://i/4.png"}}, "https://i/4.png"),
        ({"type": "image", "image": {"image": {"url": "https://i/5.png"}}}, "https://i/5.png"),
        ({"inline_data": {"mime_type": "image/png", "data": "QUI="}}, "data:image/png;base64,QUI="),
        ({"type": "file", "mediaType": "image/png", "data": "QUI="}, "data:image/png;base64,QUI="),
        ({"type": "blob", "modality": "audio", "mime_type": "audio/wav", "content": "QUI="}, None),
        ({"type": "text", "content": "an image"}, None),
    ],
    ids=str,
)
def test_images_of_all_forms_are_found(part: dict[str, Any], url: str | None) -> None:
    messages = json.dumps([{"role": "user", "parts": [part]}])
    (triplet,) = of(chat("a", gen_ai__input__messages=messages))
    assert triplet.image_urls == ([] if url is None else [url])


# Hostile contents


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        "[" * 900 + "]" * 900,
        '{"messages":' * 400 + "[]" + "}" * 400,
        "[" + "[]," * 500_000 + "[]]",
        '{"choices": [' + '"\\ud800",' * 1000 + "NaN]}",
    ],
    ids=["open", "deep map", "deep list", "messages", "many values", "surrogates"],
)
@pytest.mark.parametrize(
    "keys",
    [
        ("gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions"),
        ("input.value", "output.value", "events"),
        ("logprobs.content", "llm.vllm.choices", "llm.invocation_parameters"),
    ],
    ids=str,
)
def test_hostile_json_costs_its_own_content_and_nothing_else(
    text: str, keys: tuple[str, ...]
) -> None:
    hostile = span(
        "a", "x", attributes={"gen_ai.operation.name": "chat", **dict.fromkeys(keys, text)}
    )
    found = of(hostile, chat("b", gen_ai__response__id="b"))
    assert [t.response_id for t in found] == ["", "b"]


@pytest.mark.parametrize("pattern", [values._JSON_OR_NOT, values._LITERAL], ids=["json", "literal"])
def test_a_text_cut_within_a_string_is_scanned_once(pattern: re.Pattern[str]) -> None:
    text = '["' + 'she said \\"no\\", ' * 2000
    # From the first quote to the end of the text: no later quote starts a scan of its own.
    (string,) = pattern.finditer(text)
    assert string.span() == (1, len(text))
