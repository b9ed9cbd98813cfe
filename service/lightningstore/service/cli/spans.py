"""`lightningstore spans` and `triplets`: what was traced of a rollout, and the training data in it."""

from __future__ import annotations

import json
import math
from collections.abc import Sized
from typing import Any

import click
from lightningstore.client import Span
from lightningstore.client.otlp import from_any_value
from lightningstore.client.values import AttemptTriplets, Triplet
from lightningstore.service.cli import units
from lightningstore.service.cli.connection import Connection
from lightningstore.service.cli.messages import last_text
from lightningstore.service.cli.output import Listing
from lightningstore.service.cli.table import Cell, Column
from lightningstore.service.cli.triplet_options import request_fields, triplet_options
from lightningstore.service.cli.views import (
    Limit,
    number,
    resolve,
    reward_cell,
    rollout_argument,
    view,
)
from lightningstore.v1 import span_pb2, triplet_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

_KINDS = trace_pb2.Span.SpanKind
_CODES = trace_pb2.Status.StatusCode


def attempt_option(default: str = "") -> click.Option:
    """Return --attempt."""
    return click.Option(
        ["--attempt"],
        default=default,
        metavar="ID",
        help=f"Attempt by its id, or latest. Default: {default or 'all'}.",
    )


@view(
    "spans",
    rollout_argument(),
    attempt_option(),
    click.Option(["--name"], default="", metavar="TEXT", help="Only names with this text."),
    click.Option(
        ["-L", "--limit"],
        type=Limit(),
        default="all",
        help="Maximum number of spans, or all. Default: all.",
    ),
)
def spans(server: Connection, rollout_id: str, attempt: str, name: str, limit: float) -> Listing:
    """List the spans of a rollout in their order. ROLLOUT may be `latest`."""
    request = span_pb2.QuerySpansRequest(
        rollout_id=resolve(server, rollout_id),
        attempt_id=attempt,
        limit=-1 if limit == math.inf else int(limit),
    )
    if name:
        request.name.contains = name
    found = [
        Span(span, batch, sequence_id)
        for answer in server.stream(request)
        for batch in answer.batches
        for span, sequence_id in zip(batch.spans, batch.sequence_ids, strict=True)
    ]
    columns = (
        Column("SEQ", "number", rank=0),
        Column("NAME", "text", rank=0),
        Column("DURATION"),
        Column("STATUS", rank=3),
        Column("ERROR", "text", rank=1),
        Column("SPAN", rank=4),
        Column("PARENT", rank=5),
        Column("ATTEMPT", "id", rank=6),
        Column("ATTRIBUTES", "text", rank=2),
        Column("KIND", wide=True),
        Column("TRACE", wide=True),
    )
    records = [_span(span) for span in found]
    return Listing("span", columns, [_row(record) for record in records], records)


def _row(record: dict[str, Any]) -> list[Any]:
    seconds = (record["end_time_unix_nano"] - record["start_time_unix_nano"]) / 1e9
    return [
        number(record["sequence_id"]),
        record["name"],
        Cell(units.span(seconds), f"{seconds:.6f}"),
        record["status"]["code"],
        " ".join(record["status"]["message"].split()),
        record["span_id"],
        record["parent_span_id"],
        record["attempt_id"],
        json.dumps(record["attributes"], ensure_ascii=False) if record["attributes"] else "",
        record["kind"],
        record["trace_id"],
    ]


def _span(span: Span) -> dict[str, Any]:
    """Return a span as JSON values, with all that it says."""
    otlp = span.otlp
    return {
        "rollout_id": span.rollout_id,
        "attempt_id": span.attempt_id,
        "sequence_id": span.sequence_id,
        "name": span.name,
        "kind": _word(_KINDS, otlp.kind, "SPAN_KIND_"),
        "trace_id": span.trace_id,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "start_time_unix_nano": otlp.start_time_unix_nano,
        "end_time_unix_nano": otlp.end_time_unix_nano,
        "status": {
            "code": _word(_CODES, otlp.status.code, "STATUS_CODE_"),
            "message": otlp.status.message,
        },
        "attributes": _attributes(otlp.attributes),
        "events": [
            {
                "name": event.name,
                "time_unix_nano": event.time_unix_nano,
                "attributes": _attributes(event.attributes),
            }
            for event in otlp.events
        ],
        "links": [
            {
                "trace_id": link.trace_id.hex(),
                "span_id": link.span_id.hex(),
                "attributes": _attributes(link.attributes),
            }
            for link in otlp.links
        ],
        "resource": _attributes(span.resource.attributes),
        "scope": {"name": span.scope.name, "version": span.scope.version},
    }


def _word(enum: Any, number_: int, prefix: str) -> str | int | None:
    if not number_:
        return None
    try:
        return str(enum.Name(number_)).removeprefix(prefix).lower()
    except ValueError:
        return number_


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _json(from_any_value(pair.value)) for pair in pairs}


def _json(value: Any) -> Any:
    """Return a value of an attribute as JSON: bytes in hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return [_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return value


@view("triplets", rollout_argument(), attempt_option("latest"), *triplet_options())
def triplets(server: Connection, rollout_id: str, attempt: str, **given: Any) -> Listing:
    """List the triplets of a rollout: calls of a model, each with prompt, response and reward.

    ROLLOUT may be `latest`. What could not be read is counted on stderr.
    """
    from lightningstore.client.datasets import triplet_to_json  # noqa: PLC0415

    request = triplet_pb2.ListTripletsRequest(
        rollout_ids=[resolve(server, rollout_id)],
        attempt_id="" if attempt == "all" else attempt,
        **request_fields(given),
    )
    parts = []
    for answer in server.stream(request):
        for message in answer.attempts:
            parts.append(AttemptTriplets(message.attempt.rollout_id, message.attempt.attempt_id))
            parts[-1].add(message)
    for line in _remarks(parts):
        click.echo(line, err=True)
    found = [triplet for part in parts for triplet in part]
    columns = (
        Column("SEQ", "number", rank=0),
        Column("AGENT", "text", rank=2),
        Column("PROMPT TOKENS", "number", rank=3),
        Column("RESPONSE TOKENS", "number", rank=3),
        Column("REWARD", "number", rank=0),
        Column("PROMPT", "text", rank=1),
        Column("RESPONSE", "text", rank=1),
        Column("ATTEMPT", wide=True),
        Column("SPAN", wide=True),
        Column("RESPONSE ID", wide=True),
    )
    records = [triplet_to_json(triplet) for triplet in found]
    return Listing("triplet", columns, [_triplet_row(triplet) for triplet in found], records)


def _triplet_row(triplet: Triplet) -> list[Any]:
    return [
        number(triplet.sequence_id),
        # "*": outside of any named agent.
        Cell("", "*") if triplet.agent_name == "*" else triplet.agent_name,
        _tokens(triplet.message.prompt.token_ids, triplet.prompt_token_count),
        _tokens(triplet.message.response.token_ids, triplet.response_token_count),
        reward_cell(triplet.reward),
        Cell.of(last_text(triplet.message.prompt.content_json)),
        Cell.of(last_text(triplet.message.response.content_json)),
        triplet.attempt_id,
        triplet.span_id,
        triplet.response_id,
    ]


def _tokens(ids: Sized, reported: int | None) -> Any:
    """Return the number of token ids, or else the number that the model's server reported."""
    return number(len(ids) or reported or 0)


def _remarks(parts: list[AttemptTriplets]) -> list[str]:
    remarks = []
    unmatched = sum(len(part.unmatched_rewards) for part in parts)
    if unmatched:
        remarks.append(f"{units.count(unmatched, 'reward')} without a call")
    warnings = [warning for part in parts for warning in part.warnings]
    if warnings:
        total = sum(part.warning_count for part in parts)
        span = f" (span {warnings[0].span_id})" if warnings[0].span_id else ""
        first = f"{warnings[0].message}{span}"
        remarks.append(f"{units.count(total, 'warning')}, the first: {first}")
    return remarks
