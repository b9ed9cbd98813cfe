"""A trace as lines for people: the tree of its spans from above, with times, tokens, rewards, errors. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from lightningstore.client.otlp import from_any_value
from lightningstore.service.traces.texts import duration_text, printable
from lightningstore.service.triplets import (
    Node,
    Options,
    Place,
    Warnings,
    find_calls,
    run,
    tokens,
    tree,
    usage,
)
from lightningstore.service.triplets.kinds import Kind
from lightningstore.service.triplets.layouts import layouts_of
from lightningstore.service.triplets.values import Attributes, attributes_of, ignore
from lightningstore.v1.triplet_pb2 import ListTripletsRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

LOST = "(parent that never came)"
_STATUS_WORDS = {Status.STATUS_CODE_OK: "ok", Status.STATUS_CODE_ERROR: "error"}
#: Characters of a value that are shown, and values of a span.
VALUE_LENGTH = 160
SHOWN_ATTRIBUTES = 24
SHOWN_EVENTS = 8
#: Characters of a stack trace, from its end.
STACK_LENGTH = 4000


class Failure(NamedTuple):
    """An exception that a span recorded."""

    type: str
    message: str
    #: Its last lines, as far as they fit.
    stack_trace: str

    def __str__(self) -> str:
        return ": ".join(word for word in (self.type, self.message) if word) or "exception"


class Line(NamedTuple):
    """One span. Times are nanoseconds from the trace's first moment on."""

    depth: int
    name: str
    start: int
    duration: int
    #: "call", "agent", "reward", "lost" or "span".
    kind: str
    #: Tokens of prompt and response; None where nothing counts them.
    prompt_tokens: int | None
    response_tokens: int | None
    #: Which call of a model it records, from 0; several spans may record one. None: not a call that counts.
    call: int | None
    #: Id that the provider gave the response; empty if there is none.
    response_id: str
    #: Name and value of each dimension, the primary one first.
    rewards: tuple[tuple[str, float], ...]
    #: Why it failed; empty if it did not.
    error: str
    #: Exceptions that it recorded, whether it failed or not.
    exceptions: tuple[Failure, ...]
    #: Its attributes, status, events and links, cut to what fits.
    details: tuple[tuple[str, str], ...]

    @property
    def notes(self) -> list[str]:
        """The texts after the times: tokens and rewards."""
        notes = []
        if self.prompt_tokens is not None or self.response_tokens is not None:
            counts = (self.prompt_tokens, self.response_tokens)
            notes.append(" → ".join("?" if n is None else f"{n:,}" for n in counts) + " tokens")
        if self.rewards:
            name, value = self.rewards[0]
            rewards = [f"reward {value:g}" + ("" if name == "primary" else f" {printable(name)}")]
            rewards += [f"{printable(name)} {value:g}" for name, value in self.rewards[1:]]
            notes.append(", ".join(rewards))
        return notes


class Timeline(NamedTuple):
    """All lines of a trace."""

    lines: Sequence[Line]
    #: From the first start to the last end, in nanoseconds.
    duration: int

    def printable(self) -> Timeline:
        """Return it with texts that only show: spans may be anybody's. A stack trace keeps its lines."""
        return self._replace(lines=[_printable(line) for line in self.lines])

    def total(self, name: str) -> int | None:
        """Return the sum of prompt_tokens or response_tokens over all calls, None where no line has any.

        Each call counts once, with the first of its spans that has a count: the span of an agent's library, of the
        client below it and of a proxy may all record the same call. An agent's own sum is not a call. In a trace
        without calls every other span counts.
        """
        counts: dict[int, int] = {}
        has_calls = any(line.call is not None for line in self.lines)
        for at, line in enumerate(self.lines):
            key = line.call if has_calls or line.kind == "agent" else at
            if key is not None and (count := getattr(line, name)) is not None:
                counts.setdefault(key, count)
        return sum(counts.values()) if counts else None


def read(spans: Iterable[tuple[int, Span]]) -> Timeline:
    """Return the lines of numbered spans: a parent before its children, siblings by their start."""
    known = list(spans)
    nodes = _nodes(known)
    nodes.sort(key=lambda node: (node.sequence_id, node.start, node.span_id))
    root = run(tree.grow(nodes))
    if root is None:
        return Timeline((), 0)
    calls = _calls(known)
    virtual = root.span_id == tree.VIRTUAL_ROOT
    zero = min(node.begin for node in nodes)
    lines = []
    left = [(root, -1 if virtual else 0)]
    while left:
        node, depth = left.pop()
        if depth >= 0:
            span = known[node.at][1] if node.at >= 0 else None
            lines.append(_line(node, span, depth, zero, calls.get(node.span_id)))
        left.extend((child, depth + 1) for child in reversed(node.children))
    return Timeline(lines, max(node.finish for node in nodes) - zero)


def _nodes(spans: Sequence[tuple[int, Span]]) -> list[Node]:
    options, warnings = Options.of(ListTripletsRequest()), Warnings()
    return [
        Node.of(span, number, Place(0, at), options, warnings)
        for at, (number, span) in enumerate(spans)
    ]


def _calls(spans: Sequence[tuple[int, Span]]) -> dict[bytes, int]:
    """Return by span id which call of a model a span records, from 0."""
    # In nodes of their own, for repairs of the tree must not show.
    options = Options.of(ListTripletsRequest(exclude_calls_under_rewards=False))
    found = run(find_calls(_nodes(spans), options, Warnings()))
    return {
        record.span_id: number for number, call in enumerate(found.calls) for record in call.records
    }


def _line(node: Node, span: Span | None, depth: int, zero: int, call: int | None) -> Line:
    start, duration = node.begin - zero, max(0, node.finish - node.begin)
    if span is None:
        return Line(depth, LOST, start, duration, "lost", None, None, None, "", (), "", (), ())
    found = attributes_of(span)
    exceptions = tuple(_exceptions(span))
    prompt, response = _tokens(found)
    kind = "span"
    if node.reward:
        kind = "reward"
    elif node.is_call or (response is not None and node.kind is Kind.UNKNOWN):
        kind = "call"
    elif node.agent:
        kind = "agent"
    return Line(
        depth,
        span.name or "(no name)",
        start,
        duration,
        kind,
        prompt,
        response,
        call,
        node.response_id,
        tuple(node.reward or ()),
        _error(span, exceptions),
        exceptions,
        tuple(_details(node, span, found)),
    )


def _printable(line: Line) -> Line:
    return line._replace(
        name=printable(line.name),
        error=printable(line.error),
        exceptions=tuple(
            Failure(
                printable(failure.type),
                printable(failure.message),
                "\n".join(map(printable, failure.stack_trace.splitlines())),
            )
            for failure in line.exceptions
        ),
        details=tuple((printable(key), printable(value)) for key, value in line.details),
    )


def _tokens(found: Attributes) -> tuple[int | None, int | None]:
    """Return how many tokens a call took: as its usage says, or else as its token ids do."""
    layouts = layouts_of(found)
    prompt, response = usage.of_call(found, layouts.usage)
    if prompt is not None or response is not None:
        return prompt, response
    asked, answered = tokens.of_call(found, layouts.tokens, ignore)
    return tokens.count(asked) or None, tokens.count(answered) or None


def _error(span: Span, exceptions: Sequence[Failure]) -> str:
    """Return why a span failed: its status, or else the exception that it recorded."""
    if span.status.code != Status.STATUS_CODE_ERROR:
        return ""
    if span.status.message:
        return cut(span.status.message)
    return cut(str(exceptions[0])) if exceptions else "error"


def _exceptions(span: Span) -> Iterator[Failure]:
    events = (event for event in span.events if event.name == "exception")
    for event in islice(events, SHOWN_EVENTS):
        found = {pair.key: str(from_any_value(pair.value)) for pair in event.attributes}
        yield Failure(
            cut(found.get("exception.type", "")),
            cut(found.get("exception.message", "")),
            found.get("exception.stacktrace", "")[-STACK_LENGTH:],
        )


def _details(node: Node, span: Span, found: Attributes) -> Iterator[tuple[str, str]]:
    yield "sequence id", str(node.sequence_id)
    yield "span id", node.span_id.hex()
    if span.status.code:
        code = _STATUS_WORDS.get(span.status.code, str(span.status.code))
        yield "status", cut(f"{code} {span.status.message}".strip())
    for key, value in islice(found.items(), SHOWN_ATTRIBUTES):
        yield key, cut(_text(value))
    if len(found) > SHOWN_ATTRIBUTES:
        yield "…", f"{len(found) - SHOWN_ATTRIBUTES} more"
    for event in islice(span.events, SHOWN_EVENTS):
        attributes = ", ".join(f"{pair.key}={_text(pair.value)}" for pair in event.attributes)
        offset = max(0, event.time_unix_nano - span.start_time_unix_nano)
        place = f" at +{duration_text(offset)}" if event.time_unix_nano else ""
        yield f"event{place}", cut(f"{event.name} {attributes}".strip())
    for link in islice(span.links, SHOWN_EVENTS):
        yield "link", f"trace {link.trace_id.hex()} span {link.span_id.hex()}"
    more = max(0, len(span.events) - SHOWN_EVENTS) + max(0, len(span.links) - SHOWN_EVENTS)
    if more:
        yield "…", f"{more} more events and links"


def _text(value: Any) -> str:
    if value.WhichOneof("value") == "string_value":
        return str(value.string_value[: VALUE_LENGTH + 1])
    return str(from_any_value(value))


def cut(text: str) -> str:
    """Return a text that fits."""
    return text if len(text) <= VALUE_LENGTH else text[: VALUE_LENGTH - 1] + "…"
