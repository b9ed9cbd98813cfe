"""`lightningstore samples`: the rows of tokens in a rollout, or one of them with all that it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from lightningstore.client.values import AttemptSamples, Sample
from lightningstore.service.cli import units
from lightningstore.service.cli.connection import Connection
from lightningstore.service.cli.messages import last_text
from lightningstore.service.cli.output import Details, Listing
from lightningstore.service.cli.spans import attempt_option
from lightningstore.service.cli.table import Cell, Column
from lightningstore.service.cli.triplet_options import merge_option, request_fields, triplet_options
from lightningstore.service.cli.views import number, resolve, reward_cell, rollout_argument, view
from lightningstore.v1 import sample_pb2

_COLUMNS = (
    Column("INDEX", "number", rank=0),
    Column("TOKENS", "number", rank=0),
    Column("SAMPLED", "number", rank=0),
    Column("TURNS", "number", rank=0),
    Column("REWARD", "number", rank=0),
    Column("AGENT", "text", rank=2),
    Column("FINISH", rank=3),
    Column("LOGPROBS", rank=4),
    Column("LAST MESSAGE", "text", rank=1),
    Column("MODEL", "text", wide=True),
    Column("VERSIONS", wide=True),
    Column("GROUP", "id", wide=True),
    Column("ATTEMPT", wide=True),
)


@view(
    "samples",
    rollout_argument(),
    click.Argument(
        ["index"], metavar="[INDEX]", required=False, type=click.IntRange(0, units.MAX_INT64)
    ),
    attempt_option("latest"),
    merge_option(),
    *triplet_options(skips=False),
)
def samples(
    server: Connection, rollout_id: str, index: int | None, attempt: str, **given: Any
) -> Listing | Details:
    """List the samples of a rollout: rows of tokens to train on. With INDEX, show one of them.

    ROLLOUT may be `latest`. TOKENS counts all tokens of a row, SAMPLED those that a model sampled, which are trained. Calls
    that are in no sample are counted on stderr.
    """
    from lightningstore.client.datasets import samples_to_json  # noqa: PLC0415

    request = sample_pb2.ListSamplesRequest(
        rollout_ids=[resolve(server, rollout_id)],
        attempt_id="" if attempt == "all" else attempt,
        **request_fields(given),
    )
    parts = _read(server, request)
    for line in remarks(parts):
        click.echo(line, err=True)
    found = [sample for part in parts for sample in part]
    records = [record for part in parts for record in samples_to_json(part)]
    if index is not None:
        chosen = [record for record in records if record["index"] == index]
        if len(chosen) != 1:
            raise click.ClickException(_why_not(index, len(chosen), len(records)))
        return Details(chosen[0], shown=_shown(chosen[0]))
    return Listing("sample", _COLUMNS, [_row(sample) for sample in found], records)


def _read(server: Connection, request: sample_pb2.ListSamplesRequest) -> list[AttemptSamples]:
    parts: list[AttemptSamples] = []
    for answer in server.stream(request):
        for message in answer.attempts:
            ids = message.attempt.rollout_id, message.attempt.attempt_id
            if not parts or (parts[-1].rollout_id, parts[-1].attempt_id) != ids:
                parts.append(AttemptSamples(*ids))
            parts[-1].add(message)
    return parts


def _why_not(index: int, chosen: int, count: int) -> str:
    if chosen:
        return f"{chosen} attempts have a sample {index}: name one of them with --attempt"
    return f"there is no sample {index}: the rollout has {units.count(count, 'sample')}"


def _row(sample: Sample) -> list[Any]:
    segments = sample.segments
    agents = _distinct(segment.agent_name for segment in segments if segment.agent_name != "*")
    versions = [segment.publish_number for segment in segments]
    return [
        number(sample.index),
        number(len(sample.token_ids)),
        number(sample.sampled_token_count),
        number(sample.turn_count),
        reward_cell(sample.reward),
        agents,
        segments[-1].finish_reason,
        "no" if sample.logprobs is None else "yes",
        Cell.of(last_text(sample.message.messages_json)),
        _distinct(segment.model for segment in segments),
        _distinct(str(version) for version in versions if version),
        sample.group_id,
        sample.attempt_id,
    ]


def _distinct(texts: Any) -> str:
    return ", ".join(dict.fromkeys(filter(None, texts)))


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    """Return a sample without its arrays, for people."""
    shown = dict(record)
    ids, mask = shown.pop("token_ids"), shown.pop("mask")
    has_logprobs = shown.pop("logprobs") is not None
    counts = {"tokens": len(ids), "sampled_tokens": sum(mask), "has_logprobs": has_logprobs}
    return {**counts, **shown}


def remarks(parts: Sequence[AttemptSamples]) -> list[str]:
    """Return what is in no sample, in at most one line."""
    warnings = [warning for part in parts for warning in part.warnings]
    if not warnings:
        return []
    total = sum(part.warning_count for part in parts)
    span = f" (span {warnings[0].span_id})" if warnings[0].span_id else ""
    return [f"{units.count(total, 'warning')}, the first: {warnings[0].message}{span}"]
