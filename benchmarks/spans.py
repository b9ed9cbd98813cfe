"""Realistic OTLP spans: one call of a language model each, about 1.2 KB serialised, with ten attributes
and an event. The text is drawn from a vocabulary by Zipf's law, so that it compresses about as well as
English does (zlib: to about half); constant text would flatter the compressed figures.

Span ids are unique within a block and the same in each, so a block can be sent to an attempt once.
"""

from __future__ import annotations

import random
from itertools import accumulate

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

WORDS = 1500
START_NS = 1_790_000_000_000_000_000


class Text:
    """Random sentences."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        vocabulary = random.Random(1)  # the same words for every seed
        syllables = [
            a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "er", "in")
        ]
        self._words = [
            "".join(vocabulary.choices(syllables, k=vocabulary.choice((1, 2, 2, 3))))
            for _ in range(WORDS)
        ]
        self._weights = list(accumulate(1 / rank for rank in range(1, WORDS + 1)))

    def sentence(self, size: int) -> str:
        """Return about `size` characters."""
        words = self.random.choices(self._words, cum_weights=self._weights, k=size // 4)
        return " ".join(words)[:size]


def _attribute(key: str, value: str | float) -> KeyValue:
    if isinstance(value, str):
        return KeyValue(key=key, value=AnyValue(string_value=value))
    if isinstance(value, int):
        return KeyValue(key=key, value=AnyValue(int_value=value))
    return KeyValue(key=key, value=AnyValue(double_value=value))


def span(text: Text, number: int, trace_id: bytes) -> Span:
    """Return one span."""
    pick = text.random
    start = START_NS + number * 250_000_000 + pick.randrange(10_000_000)
    end = start + pick.randrange(50_000_000, 2_000_000_000)
    made = Span(
        trace_id=trace_id,
        span_id=pick.getrandbits(64).to_bytes(8, "big"),
        parent_span_id=pick.getrandbits(64).to_bytes(8, "big"),
        name="openai.chat.completion",
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=start,
        end_time_unix_nano=end,
        status=Status(code=Status.STATUS_CODE_OK),
    )
    values = {
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.request.temperature": round(pick.random(), 3),
        "gen_ai.response.id": f"chatcmpl-{pick.getrandbits(96):024x}",
        "gen_ai.usage.prompt_tokens": pick.randrange(50, 4000),
        "gen_ai.usage.completion_tokens": pick.randrange(5, 900),
        "gen_ai.prompt.0.role": "user",
        "gen_ai.prompt.0.content": text.sentence(380),
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": text.sentence(290),
    }
    made.attributes.extend(_attribute(key, value) for key, value in values.items())
    event = made.events.add(name="gen_ai.choice", time_unix_nano=end - 1_000_000)
    event.attributes.append(_attribute("finish_reason", "stop"))
    return made


def block(count: int, seed: int) -> list[Span]:
    """Return `count` spans with their own ids."""
    text = Text(seed)
    trace_id = text.random.getrandbits(128).to_bytes(16, "big")
    return [span(text, number, trace_id) for number in range(count)]


def resource(rollout_id: str = "", attempt_id: str = "") -> Resource:
    """Return what produced the spans; with ids, the way OTLP names an attempt."""
    made = Resource(attributes=[_attribute("service.name", "agent")])
    made.attributes.append(_attribute("telemetry.sdk.language", "python"))
    if rollout_id:
        made.attributes.append(_attribute("agentlightning.rollout_id", rollout_id))
        made.attributes.append(_attribute("agentlightning.attempt_id", attempt_id))
    return made


SCOPE = InstrumentationScope(name="opentelemetry.instrumentation.openai", version="0.40.1")
