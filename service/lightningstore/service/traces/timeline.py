"""A trace as lines for people: the tree of its spans from above, with times, tokens, rewards, errors. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from lightningstore.service.triplets import Node, Options, Place, Warnings, payload, run, tree
from lightningstore.service.triplets.values import plain
from lightningstore.v1.triplet_pb2 import ListTripletsRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

LOST = "(parent that never came)"
_PROMPT_COUNTS = ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")
_RESPONSE_COUNTS = ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
_EXCEPTION = ("exception.type", "exception.message")
#: Characters of a value that are shown, and values of a span.
VALUE_LENGTH = 160
SHOWN_ATTRIBUTES = 24


class Line(NamedTuple):
    """One span. Times are nanoseconds from the trace's first moment on."""

    depth: int
    name: str
    start: int
    duration: int
    #: "call", "agent", "reward", "lost" or "span".
    kind: str
    #: Tokens of prompt and response; None where nothing tells them.
    prompt_tokens: int | None
    response_tokens: int | None
    #: What the provider calls the response; more than one span may tell of it. Empty: nothing.
    response_id: str
    #: Name and value of each dimension, the primary one first.
    rewards: tuple[tuple[str, float], ...]
    #: What went wrong; empty: nothing.
    error: str
    #: What else it says, by key, cut to what fits.
    details: tuple[tuple[str, str], ...]

    @property
    def notes(self) -> list[str]:
        """What is told beside the times: tokens and rewards."""
        notes = []
        if self.prompt_tokens is not None or self.response_tokens is not None:
            counts = (self.prompt_tokens, self.response_tokens)
            notes.append(" → ".join("?" if n is None else f"{n:,}" for n in counts) + " tokens")
        if self.rewards:
            name, value = self.rewards[0]
            told = [f"reward {value:g}" + ("" if name == "primary" else f" {printable(name)}")]
            told += [f"{printable(name)} {value:g}" for name, value in self.rewards[1:]]
            notes.append(", ".join(told))
        return notes


class Timeline(NamedTuple):
    """All lines of a trace."""

    lines: Sequence[Line]
    #: From the first start to the last end, in nanoseconds.
    duration: int

    def total(self, name: str) -> int | None:
        """Return the sum of prompt_tokens or response_tokens, None where no line tells any.

        Each response counts once: an agent's library and what lies below it may both tell of a call.
        """
        of: dict[object, int] = {}
        for at, line in enumerate(self.lines):
            if (count := getattr(line, name)) is not None:
                of.setdefault(line.response_id or at, count)
        return sum(of.values()) if of else None


def read(spans: Iterable[tuple[int, Span]]) -> Timeline:
    """Return the lines of numbered spans: a parent before its children, siblings by their start."""
    options = Options.of(ListTripletsRequest())
    known = list(spans)
    warnings = Warnings()
    nodes = [
        Node.of(span, number, Place(0, at), options, warnings)
        for at, (number, span) in enumerate(known)
    ]
    nodes.sort(key=lambda node: (node.sequence_id, node.start, node.span_id))
    root = run(tree.grow(nodes))
    if root is None:
        return Timeline((), 0)
    virtual = root.span_id == tree.VIRTUAL_ROOT
    zero = min(node.begin for node in nodes)
    lines = []
    left = [(root, -1 if virtual else 0)]
    while left:
        node, depth = left.pop()
        if depth >= 0:
            span = None if node.place is None else known[node.place.at][1]
            lines.append(_line(node, span, depth, zero))
        left.extend((child, depth + 1) for child in reversed(node.children))
    return Timeline(lines, max(node.finish for node in nodes) - zero)


def _line(node: Node, span: Span | None, depth: int, zero: int) -> Line:
    start, duration = node.begin - zero, max(0, node.finish - node.begin)
    if span is None:
        return Line(depth, LOST, start, duration, "lost", None, None, "", (), "", ())
    found = payload.attributes(span)
    prompt, response = _tokens(span, found)
    kind = "span"
    if node.reward:
        kind = "reward"
    elif node.is_call or response is not None:
        kind = "call"
    elif node.agent:
        kind = "agent"
    return Line(
        depth,
        printable(span.name) or "(no name)",
        start,
        duration,
        kind,
        prompt,
        response,
        node.response_id,
        tuple(node.reward or ()),
        _error(span),
        _details(node, found),
    )


def _tokens(span: Span, found: Any) -> tuple[int | None, int | None]:
    """Return how many tokens a call took: as its usage says, or else as its token ids do."""
    counts = tuple(_count(found, keys) for keys in (_PROMPT_COUNTS, _RESPONSE_COUNTS))
    if counts != (None, None):
        return counts[0], counts[1]
    prompt, response = payload.tracer_tokens(found, payload.nobody)
    if not (prompt or response):
        prompt, response = payload.proxy_tokens(span.name, found, payload.nobody)
    return len(prompt) if prompt else None, len(response) if response else None


def _count(found: Any, keys: Sequence[str]) -> int | None:
    for key in keys:
        value = plain(found[key]) if key in found else None
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15:
            return int(value)
    return None


def _error(span: Span) -> str:
    """Return what went wrong in a span: its status, or else the exception that it noted."""
    if span.status.code != Status.STATUS_CODE_ERROR:
        return ""
    if span.status.message:
        return cut(printable(span.status.message))
    for event in span.events:
        told = {pair.key: str(plain(pair.value)) for pair in event.attributes}
        words = [told[key] for key in _EXCEPTION if key in told]
        if words:
            return cut(printable(": ".join(words)))
    return "error"


def _details(node: Node, found: Any) -> tuple[tuple[str, str], ...]:
    told = [("sequence id", str(node.sequence_id)), ("span id", node.span_id.hex())]
    told += [
        (printable(key), cut(printable(_text(value))))
        for key, value in islice(found.items(), SHOWN_ATTRIBUTES)
    ]
    if len(found) > SHOWN_ATTRIBUTES:
        told.append(("…", f"{len(found) - SHOWN_ATTRIBUTES} more"))
    return tuple(told)


def _text(value: Any) -> str:
    if value.WhichOneof("value") == "string_value":
        return str(value.string_value[: VALUE_LENGTH + 1])
    return str(plain(value))


def cut(text: str) -> str:
    """Return a text that fits."""
    return text if len(text) <= VALUE_LENGTH else text[: VALUE_LENGTH - 1] + "…"


def printable(text: str) -> str:
    """Return a text in which no character does anything but show: spans may be anybody's.

    Control characters would move a terminal's cursor, and XML cannot hold them; others turn the direction
    of writing round.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def duration_text(nanoseconds: int) -> str:
    """Return a duration in the unit that suits it."""
    if not nanoseconds:
        return "0"
    for unit, size in (("ns", 1), ("µs", 1000), ("ms", 10**6)):
        if nanoseconds < 1000 * size:
            return f"{nanoseconds / size:.3g} {unit}"
    seconds = nanoseconds / 1e9
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
