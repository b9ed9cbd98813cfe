"""Token ids, as tracers and proxies write them: arrays of numbers, or texts of lists."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from lightningstore.client.otlp import from_any_value
from lightningstore.service.rules import wire
from lightningstore.service.triplets.kinds import OPERATION, provider_of
from lightningstore.service.triplets.search import find_first
from lightningstore.service.triplets.values import Attributes, Warn, read_json
from lightningstore.v1.triplet_pb2 import Triplet, TripletPrompt
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue

_PROMPT = ("prompt_token_ids", f"{OPERATION}.output.prompt_token_ids")
_RESPONSE = (
    "response_token_ids",
    f"{OPERATION}.output.response_token_ids.0",
    f"{OPERATION}.output.choices.0.token_ids",
    f"{OPERATION}.output.choices.0.provider_specific_fields.token_ids",
)
#: Names of the spans that a LiteLLM proxy makes.
RAW_REQUEST = "raw_gen_ai_request"
PROXY_REQUEST = "litellm_request"
PROXY_SPANS = frozenset({RAW_REQUEST, PROXY_REQUEST})
MALFORMED = "not token ids: they must be integers from 0 to 2147483647"
#: Attributes that may hold an answer of a model's server whole.
ANSWERS = (
    "output.value",
    "response_data",
    "gen_ai.completion",
    "mlflow.spanOutputs",
    "traceloop.entity.output",
)
_PROMPT_NAMES = frozenset({"prompt_token_ids"})
_RESPONSE_NAMES = frozenset(
    {"response_token_ids", "token_ids", "output_token_ids", "completion_token_ids"}
)
_TOKEN_IDS = TripletPrompt.TOKEN_IDS_FIELD_NUMBER
#: Token ids as protobuf packs them, or as numbers.
Tokens = bytes | list[int]
#: Lists in a text, one for each choice of an answer.
_MAX_LISTS = 10_000
#: Integers of an array that are packed by one call.
_PACKED_AT_ONCE = 1 << 16
_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_TOKENS = msgspec.json.Decoder(list[_TokenId]).decode
_TOKEN_LISTS = msgspec.json.Decoder(list[list[_TokenId]]).decode
# An element of an array of integers from 0 to 2^31 - 1: field 1, its length, field 3, the number.
_ITEMS = re.compile(
    rb"\n(?:[\x02-\x05]\x18(?=[\x80-\xff]{0,3}[\x00-\x7f])|\x06\x18(?=[\x80-\xff]{4}[\x00-\x07]))"
    rb"([\x80-\xff]*[\x00-\x7f])",
).findall
# The headers of those below 2^28. Bytes below 128 end a number, so none of these is ever part of one, nor is the
# mark that takes their place: without it two numbers might look like a header.
_HEADERS = (b"\n\x02\x18", b"\n\x03\x18", b"\n\x04\x18", b"\n\x05\x18")
_MARK = b"\x7f\x7e"
_UNFINISHED = bytes(range(128, 256))


def read(value: AnyValue) -> Tokens | None:
    """Return a list of token ids, None if the value has anything else. Text of a list, or of lists, counts as one."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        text = value.string_value
        try:
            if text.lstrip()[:2] == "[[":
                if text.count("[") > _MAX_LISTS:
                    return None
                lists = _TOKEN_LISTS(text)
                return lists[0] if lists else []
            return _TOKENS(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return None
    if kind != "array_value":
        return None
    items = value.array_value.values
    if items and items[0].WhichOneof("value") == "array_value":
        return read(items[0])
    return _packed(value.array_value)


def _packed(array: ArrayValue) -> bytes | None:
    """Return integers as protobuf packs them, None if the array has anything else.

    Each is a message in a message on the wire. Taking the headers away costs a tenth of making numbers of
    them, and they are most of what a trace holds.
    """
    if len(array.values) > _PACKED_AT_ONCE:
        return _packed_in_parts(array)
    data = array.SerializeToString()
    count = len(array.values)
    marked = data
    for header in _HEADERS:
        marked = marked.replace(header, _MARK)
    packed = marked.replace(_MARK, b"")
    # Each header lost a byte, each mark two, and one byte below 128 an item is left, the end of its number. An
    # item of another kind leaves two at least, and what looks like a header within it makes up for one.
    if (
        len(data) - len(marked) == count
        and len(marked) - len(packed) == 2 * count
        and len(packed.translate(None, _UNFINISHED)) == count
    ):
        return packed
    packed = b"".join(_ITEMS(data))
    # Three bytes of header each: anything but a small integer was passed over and makes a difference.
    return packed if len(packed) + 3 * count == len(data) else None


def _packed_in_parts(array: ArrayValue) -> bytes | None:
    """Return the same for a long array. Each part holds the interpreter for some milliseconds only."""
    parts = []
    for start in range(0, len(array.values), _PACKED_AT_ONCE):
        part = _packed(ArrayValue(values=array.values[start : start + _PACKED_AT_ONCE]))
        if part is None:
            return None
        parts.append(part)
    return b"".join(parts)


def _checked(ids: Any) -> list[int] | None:
    """Return a list of token ids, or the first of a list of lists; None for anything else."""
    if isinstance(ids, list) and ids and isinstance(ids[0], list):
        ids = ids[0]
    try:
        return msgspec.convert(ids, list[_TokenId])
    except msgspec.ValidationError:
        return None


# Of a call


class TokenPlaces(NamedTuple):
    """Keys of a span that hold token ids."""

    prompt: tuple[str, ...]
    response: tuple[str, ...]
    #: Those of a proxy's record, for any provider.
    proxied_prompt: tuple[str, ...]
    proxied_response: tuple[str, ...]
    choices: tuple[str, ...]
    #: Those that may hold an answer whole.
    answers: tuple[str, ...]


def places_of(keys: Sequence[str]) -> TokenPlaces:
    """Return which of the keys hold token ids."""
    proxied = [key for key in keys if key.startswith("llm.")]
    return TokenPlaces(
        tuple(key for key in _PROMPT if key in keys),
        tuple(key for key in _RESPONSE if key in keys),
        tuple(key for key in proxied if provider_of(key, "prompt_token_ids")),
        tuple(key for key in proxied if provider_of(key, "response_token_ids")),
        tuple(key for key in proxied if provider_of(key, "choices")),
        tuple(key for key in ANSWERS if key in keys),
    )


def of_call(found: Attributes, places: TokenPlaces, warn: Warn) -> tuple[Tokens, Tokens]:
    """Return the token ids of prompt and response, wherever the attributes of a call hold them."""
    prompt, response = _first(found, places.prompt, warn), _first(found, places.response, warn)
    if prompt and response:
        return prompt, response
    if places.proxied_prompt or places.choices:
        more = of_proxy("", found, places, warn)
        prompt, response = prompt or more[0], response or more[1]
    for key in places.answers:
        if not (prompt and response) and "token_ids" in (text := found[key].string_value):
            answer = _parsed_answer(key, text, warn)
            prompt = prompt or _within(answer, _PROMPT_NAMES, key, warn)
            response = response or _within(answer, _RESPONSE_NAMES, key, warn)
    return prompt, response


def of_proxy(
    name: str, found: Attributes, places: TokenPlaces, warn: Warn
) -> tuple[Tokens, Tokens]:
    """Return the token ids of prompt and response, as a proxy writes them for any provider."""
    if name == PROXY_REQUEST and "prompt_token_ids" in found:
        return _first(found, _PROMPT[:1], warn), _first(found, _RESPONSE[:1], warn)
    prompt = _first(found, places.proxied_prompt, warn)
    response = _first(found, places.proxied_response, warn)
    for key in places.choices:
        if not response:
            value = from_any_value(found[key])
            choices = _parsed_answer(key, value, warn) if isinstance(value, str) else value
            response = _within(choices, _RESPONSE_NAMES, key, warn)
    return prompt, response


def _parsed_answer(key: str, text: str, warn: Warn) -> Any:
    try:
        return read_json(text)
    except ValueError as error:
        warn(key, str(error))
        return None


def _within(answer: Any, names: frozenset[str], key: str, warn: Warn) -> Tokens:
    ids = find_first(answer, names)
    if ids is None:
        return []
    if (checked := _checked(ids)) is None:
        warn(key, MALFORMED)
        return []
    return checked


def _first(found: Attributes, keys: Iterable[str], warn: Warn) -> Tokens:
    for key in keys:
        if key in found:
            ids = read(found[key])
            if ids is not None:
                return ids
            warn(key, MALFORMED)
    return []


def count(ids: Tokens) -> int:
    """Return how many token ids there are. Each packed one ends in a byte below 128."""
    return len(ids.translate(None, _UNFINISHED)) if isinstance(ids, bytes) else len(ids)


def packed(ids: Tokens) -> bytes:
    """Return token ids as protobuf packs them."""
    if isinstance(ids, bytes):
        return ids
    data = TripletPrompt(token_ids=ids).SerializeToString()
    return data[wire.read_varint(data, 1)[1] :] if data else b""


def put(triplet: Triplet, prompt: Tokens, response: Tokens) -> None:
    """Write token ids into a triplet."""
    for side, ids in ((triplet.prompt, prompt), (triplet.response, response)):
        if isinstance(ids, bytes):
            side.MergeFromString(wire.field(_TOKEN_IDS, ids))
        elif ids:
            side.token_ids.extend(ids)
