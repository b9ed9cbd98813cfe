"""What the spans of a call hold of prompt and answer, as instrumentations write it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from lightningstore.client.otlp import from_any_value
from lightningstore.service.triplets import events, logprobs, tokens, tool_calls, usage
from lightningstore.service.triplets.images import image_urls
from lightningstore.service.triplets.layouts import PARSED, TOOLS, Layout, Layouts, layouts_of
from lightningstore.service.triplets.values import (
    Attributes,
    Warn,
    attributes_of,
    ignore,
    parsed,
    plain,
    write_json,
)
from lightningstore.v1.triplet_pb2 import Triplet
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_SYSTEM_PARTS = ("system", "system_instruction", "instructions", "system_prompt")
_SYSTEM_ROLES = ("system", "developer")
_ANSWER_ROLES = ("assistant", "ai", "model")
#: Keys of a message that say nothing by themselves.
_HOLLOW_KEYS = frozenset({"role", "finish_reason", "type", "index", "id"})
#: Levels of a content that are looked into for words.
_MAX_LEVELS = 20


class Contents(NamedTuple):
    """What a span holds of a call; None for what it does not have."""

    prompt: Any
    #: Definitions of the tools that the model was offered.
    tools: Any
    #: The answers of the model, usually a list of one.
    response: Any
    request_metadata: Any
    response_metadata: Any


class Source:
    """One span of a call, and where it holds what."""

    def __init__(self, span: Span, warn: Warn) -> None:
        self.found: Attributes = attributes_of(span)
        self._has_messages = False
        if span.events:
            self.found, self._has_messages = events.merged(span, self.found)
        self.layouts = layouts_of(self.found)
        self._has_messages |= self.layouts.has_events
        self._span = span
        self._warn = warn

    def contents(self, *, metadata: bool) -> Contents:
        """Return what there is. `metadata`: with that of request and response."""
        layouts = self.layouts
        messages, request = self._prompt()
        return Contents(
            messages,
            self._tools(request) if layouts.tools or isinstance(request, dict) else None,
            self.response(),
            self._first(layouts.request_metadata)[0] if metadata else None,
            self._first(layouts.response_metadata)[0] if metadata else None,
        )

    def prompt(self) -> Any:
        """Return the messages that the model was given, the system's first; None if there are none."""
        return self._prompt()[0]

    def _prompt(self) -> tuple[Any, Any]:
        """Return the messages, and the request that they are a part of."""
        messages, request = self._first(self.layouts.prompt)
        if self._has_messages and messages is None:
            messages = events.messages_of(self._span, self.found).prompt or None
        system = None
        if self.layouts.system:
            system, _ = self._first(self.layouts.system)
        elif isinstance(request, dict) and messages is not request:
            system = next((request[part] for part in _SYSTEM_PARTS if part in request), None)
        return messages if system is None else _with_system(messages, system), request

    def _tools(self, request: Any) -> Any:
        for layout in self.layouts.tools:
            value = self._value(layout)
            if layout.parts:  # it has other parts, and may have no tools
                value = _tools_of(value, layout.parts)
            if isinstance(value, list) and value:
                return [parsed(item) for item in value]
            if isinstance(value, dict) and value:
                return value
        return _tools_of(request, TOOLS)

    def response(self) -> Any:
        """Return the answers of the model; None if there are none."""
        answers, _ = self._first(self.layouts.response)
        if self._has_messages and not has_words(answers):
            return events.messages_of(self._span, self.found).response or answers
        return answers

    def _first(self, layouts: Sequence[Layout]) -> tuple[Any, Any]:
        """Return the first content with words in it, or else the first; and the value that it is a part of."""
        first: tuple[Any, Any] = (None, None)
        for layout in layouts:
            whole = self._value(layout)
            content = _part(whole, layout.parts)
            if content is None or isinstance(content, bool | int | float):
                continue
            if first[0] is None:
                first = content, whole
            if len(layouts) == 1 or has_words(content):
                return content, whole
        return first

    def _value(self, layout: Layout) -> Any:
        if layout.whole:
            return plain(self.found[layout.whole])
        for key in layout.refused:
            self._warn(key, "nests too deep, or is a value where other keys say it is a map")
        return self._filled(layout.shape, plain if layout.parts is PARSED else from_any_value)

    def _filled(self, shape: Any, read: Callable[[AnyValue], Any]) -> Any:
        """Return maps and lists with the values of the keys that stand in them."""
        if isinstance(shape, str):
            return read(self.found[shape])
        if isinstance(shape, list):
            return [self._filled(item, read) for item in shape]
        return {key: self._filled(item, read) for key, item in shape.items()}


def _tools_of(request: Any, parts: Sequence[str]) -> Any:
    """Return the tools of a request, None if it has none."""
    if not isinstance(request, dict):
        return None
    found = (request.get(part) for part in parts)
    return next((tools for tools in found if tools and isinstance(tools, list)), None)


def _part(value: Any, parts: Sequence[str]) -> Any:
    """Return the part of a value that counts; of a list within a list the inner one."""
    if parts and isinstance(value, dict):
        value = next((value[part] for part in parts if value.get(part)), value)
    if parts and isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        return value[0]
    return value


def has_words(value: Any, level: int = 0) -> bool:
    """Tell whether a content says anything: a text or a tool call, not only whose it is and why it ended."""
    if level > _MAX_LEVELS:
        return True
    if isinstance(value, dict):
        return any(
            key not in _HOLLOW_KEYS and has_words(inner, level + 1) for key, inner in value.items()
        )
    if isinstance(value, list):
        return any(has_words(item, level + 1) for item in value)
    return isinstance(value, str | bytes) and bool(value.strip())


def _with_system(messages: Any, system: Any) -> Any:
    """Return the messages after the system's instructions, unless they begin with these."""
    if not has_words(system):
        return messages
    if isinstance(system, dict):
        system = [system]
    if isinstance(system, list) and any(isinstance(part, dict) for part in system):
        message = {"role": "system", "parts": system}
    else:
        text = system if isinstance(system, str) else "\n".join(map(str, system))
        message = {"role": "system", "content": text}
    if messages is None:
        return [message]
    if isinstance(messages, str):
        return [message, {"role": "user", "content": messages}]
    if not isinstance(messages, list):
        return [message, messages]
    first = messages[0] if messages else None
    if isinstance(first, dict) and first.get("role") in _SYSTEM_ROLES and _says(first, message):
        return messages
    return [message, *messages]


def _says(message: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether a message holds all texts of another one."""
    return _texts(other) <= _texts(message)


def _texts(value: Any, level: int = 0) -> set[str]:
    if isinstance(value, dict):
        value = [inner for key, inner in value.items() if key not in _HOLLOW_KEYS]
    if isinstance(value, list) and level < _MAX_LEVELS:
        return set().union(*(_texts(item, level + 1) for item in value))
    return {value.strip()} if isinstance(value, str) else set()


def fill(
    triplet: Triplet,
    spans: Sequence[Span],
    tool_spans: Sequence[Span],
    warn: Warn,
    warn_of_tokens: Warn,
) -> None:
    """Write what the spans of a call tell into its triplet. What the first lacks the others may have.

    `tool_spans`: spans of tools right below those of the call.
    """
    sources = [Source(span, warn) for span in spans]
    tokens.put(triplet, *tokens_of(sources, warn_of_tokens))
    prompt, response = triplet.prompt, triplet.response
    found = contents_of(sources, tool_spans)
    if found.prompt is not None:
        prompt.content_json = json_of(found.prompt, "prompt", warn)
        if urls := image_urls(found.prompt, warn):
            prompt.image_urls.extend(urls)
    if found.tools is not None:
        prompt.tools_json = json_of(found.tools, "tools", warn)
    if found.response is not None:
        response.content_json = json_of(found.response, "completion", warn)
    if found.request_metadata:
        triplet.request_json = json_of(found.request_metadata, "request", warn)
    if found.response_metadata:
        triplet.response_json = json_of(found.response_metadata, "response", warn)
    _fill_logprobs(triplet, sources, warn)
    _fill_usage(triplet, [(source.found, source.layouts) for source in sources])


def fill_from_proxy(triplet: Triplet, span: Span, warn: Warn) -> None:
    """Write what a proxy's record of a call tells into its triplet: token ids and log-probabilities."""
    found = attributes_of(span)
    layouts = layouts_of(found)
    # What is malformed in the token ids was found when the call was.
    tokens.put(triplet, *tokens.of_proxy(span.name, found, layouts.tokens, ignore))
    if layouts.answers or logprobs.CONTENT in found:
        logprobs.fill(triplet.response, found, layouts.answers, warn)
    _fill_usage(triplet, [(found, layouts)])


def _fill_usage(triplet: Triplet, sources: Iterable[tuple[Attributes, Layouts]]) -> None:
    for found, layouts in sources:
        prompt, response = usage.of_call(found, layouts.usage)
        if prompt is not None:
            triplet.prompt_token_count = prompt
        if response is not None:
            triplet.response_token_count = response
        if prompt is not None or response is not None:
            break


def _fill_logprobs(triplet: Triplet, sources: Sequence[Source], warn: Warn) -> None:
    for source in sources:
        if source.layouts.answers or logprobs.CONTENT in source.found:
            logprobs.fill(triplet.response, source.found, source.layouts.answers, warn)
            if triplet.response.logprobs_json:
                break


def contents_of(
    sources: Sequence[Source], tool_spans: Sequence[Span], *, metadata: bool = True
) -> Contents:
    """Return what the spans of a call hold.

    `tool_spans`: spans of tools right below them. `metadata`: with that of request and response.
    """
    parts = [source.contents(metadata=metadata) for source in sources]
    found = parts[0] if len(parts) == 1 else _joined(parts)
    if not tool_spans:
        return found
    return found._replace(response=tool_calls.with_calls(found.response, tool_spans))


def _joined(parts: Sequence[Contents]) -> Contents:
    """Return each content from the first of the parts that has it."""
    found = []
    for contents in zip(*parts, strict=True):
        known = [content for content in contents if content is not None]
        found.append(next(filter(has_words, known), known[0] if known else None))
    return Contents(*found)


def json_of(value: Any, what: str, warn: Warn) -> bytes:
    """Return a content as JSON, empty with a warning if it has none."""
    written = write_json(value)
    if written is None:
        warn(what, "cannot be written as JSON: too deep, or a number too large")
    return written or b""


def tokens_of(
    sources: Sequence[Source], warn: Warn, reading: tokens.Reading = tokens.read
) -> tuple[tokens.Tokens, tokens.Tokens]:
    """Return the token ids of prompt and response, of the first span that has both."""
    found = [
        tokens.of_call(source.found, source.layouts.tokens, warn, reading) for source in sources
    ]
    if len(found) == 1:
        return found[0]
    both = next((pair for pair in found if pair[0] and pair[1]), None)
    return both or next((pair for pair in found if pair[0] or pair[1]), (b"", b""))


def answer_within(prompt_json: bytes, following: Span) -> bytes | None:
    """Return the answer to a prompt out of the next call's prompt, None if that does not begin with it."""
    messages = Source(following, ignore).prompt()
    if not prompt_json or not isinstance(messages, list):
        return None
    asked = parsed(prompt_json.decode())
    if (
        not isinstance(asked, list)
        or len(asked) >= len(messages)
        or messages[: len(asked)] != asked
    ):
        return None
    answer = messages[len(asked)]
    if not isinstance(answer, dict) or answer.get("role") not in _ANSWER_ROLES:
        return None
    return write_json([answer])
