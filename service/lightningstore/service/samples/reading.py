"""What a sample takes from the spans of a call: its token ids, and what else there is of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lightningstore.service.triplets import contents, endings, logprobs, tokens
from lightningstore.service.triplets.images import image_urls
from lightningstore.service.triplets.layouts import layouts_of
from lightningstore.service.triplets.options import Options
from lightningstore.service.triplets.trace import Call
from lightningstore.service.triplets.values import Warn, attributes_of, ignore, parsed, write_json
from lightningstore.service.triplets.warnings import Warnings
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Ids(NamedTuple):
    """Token ids of a call."""

    prompt: tokens.Tokens
    response: tokens.Tokens


class Answer(NamedTuple):
    """The answer to a call, and what the model was given if the call is the last of its row."""

    #: Of each token of the response. Empty unless each has a finite one.
    logprobs: list[float]
    model: str
    finish_reason: str
    prompt_json: bytes = b""
    response_json: bytes = b""
    tools_json: bytes = b""
    image_urls: Sequence[str] = ()

    @property
    def messages_json(self) -> bytes:
        """The prompt and then the response, as one list of messages; empty if there are none."""
        messages = _messages(self.prompt_json, "user")
        answers = _messages(self.response_json, "assistant")
        if answers and isinstance(answers[0], dict) and isinstance(answers[0].get("message"), dict):
            answers = [answers[0]["message"]]  # of several choices the first has the token ids
        return (write_json([*messages, *answers]) or b"") if messages or answers else b""


class IdsReader:
    """Reads the token ids of the calls of a trace, one after another.

    Of a prompt that begins with the prompt and the response of the call before, only the rest is read: in a
    conversation of many turns nearly all of each prompt has been read before.
    """

    def __init__(self) -> None:
        #: Prompt and response of the call before: the serialised arrays, and their token ids.
        self._before = (b"", b"")
        #: The arrays of this call.
        self._arrays: list[tuple[bytes, tokens.Tokens]] = []

    def of(self, call: Call, spans: Sequence[Span], options: Options, warnings: Warnings) -> Ids:
        """Return the token ids of a call; empty where its spans have none. `spans`: those of its records."""

        def warn(key: str, message: str) -> None:
            warnings.add(call.node.where, key, message)

        if options.proxy:
            found = attributes_of(spans[0])
            # What is malformed in the token ids was found when the call was.
            return Ids(*tokens.of_proxy(spans[0].name, found, layouts_of(found).tokens, ignore))
        self._arrays.clear()
        sources = [contents.Source(span, warn) for span in spans]
        ids = Ids(*contents.tokens_of(sources, warn, self._read))
        whole = [array for side in ids for array, read in self._arrays if read is side]
        if len(whole) == len(ids):
            self._before = b"".join(whole), b"".join(ids)
        return ids

    def _read(self, value: bytes) -> tokens.Tokens | None:
        array = tokens.array_in(value)
        if array is None:
            return tokens.read(value)
        before, ids = self._before
        if not array.startswith(before):
            before = ids = b""
        rest = tokens.of_array(array[len(before) :])
        if rest is None:
            return tokens.read(value)
        ids += rest
        self._arrays.append((array, ids))
        return ids


def answer_of(
    call: Call,
    spans: Sequence[Span],
    tools: Sequence[Span],
    options: Options,
    warnings: Warnings,
    *,
    is_last: bool,
) -> Answer:
    """Return the answer to a call. `spans`, `tools`: those of its records and tools. `is_last`: in its row."""

    def warn(key: str, message: str) -> None:
        warnings.add(call.node.where, key, message)

    # The token ids were read, and warned of, before.
    sources = [contents.Source(span, warn) for span in spans]
    found = None
    if is_last and not options.proxy:
        found = contents.contents_of(sources, tools, metadata=False)
    numbers, model, reason = _logprobs(sources, warn), _model(sources), _reason(sources, found)
    if found is None:
        return Answer(numbers, model, reason)
    return Answer(
        numbers,
        model,
        reason,
        _json(found.prompt, "prompt", warn),
        _json(found.response, "completion", warn),
        _json(found.tools, "tools", warn),
        image_urls(found.prompt, warn),
    )


def lacks_answer(call: Call, answer: Answer) -> bool:
    """Tell whether the spans of a call have no answer, and the next call may repeat it in its prompt."""
    return call.following is not None and bool(answer.prompt_json) and not answer.response_json


def add_answer(answer: Answer, following: Span) -> Answer:
    """Take the answer from the prompt of the next call, if that begins with this one's and goes on with an answer."""
    found = contents.answer_within(answer.prompt_json, following)
    return answer if found is None else answer._replace(response_json=found)


def _json(value: Any, what: str, warn: Warn) -> bytes:
    return b"" if value is None else contents.json_of(value, what, warn)


def _logprobs(sources: Sequence[contents.Source], warn: Warn) -> list[float]:
    for source in sources:
        answers = source.layouts.answers
        if answers or logprobs.CONTENT in source.found:
            items = logprobs.items_of(source.found, answers, warn)
            if items is not None:
                return logprobs.numbers_of(items)
    return []


def _model(sources: Sequence[contents.Source]) -> str:
    for source in sources:
        if name := endings.model_of(source.found, source.layouts.ending):
            return name
    return ""


def _reason(sources: Sequence[contents.Source], found: contents.Contents | None) -> str:
    for source in sources:
        if reason := endings.reason_of(source.found, source.layouts.ending):
            return reason
    responses = [found.response] if found else (source.response() for source in sources)
    return next(filter(None, map(endings.reason_within, responses)), "")


def _messages(data: bytes, role: str) -> list[Any]:
    value = parsed(data.decode()) if data else None
    if value is None:
        return []
    if isinstance(value, list):
        return value
    return [value if isinstance(value, dict) else {"role": role, "content": value}]
