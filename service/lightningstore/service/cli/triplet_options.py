"""The options that say how triplets and samples are made, of `triplets`, `samples` and `export`."""

from __future__ import annotations

from typing import Any

import click
from lightningstore.v1 import sample_pb2, triplet_pb2

SOURCES = [
    name.removeprefix("TRIPLET_SOURCE_").lower() for name in triplet_pb2.TripletSource.keys()[1:]
]
POLICIES = [
    name.removeprefix("REWARD_POLICY_").lower() for name in triplet_pb2.RewardPolicy.keys()[1:]
]
MERGES = [name.removeprefix("SAMPLE_MERGE_").lower() for name in sample_pb2.SampleMerge.keys()[1:]]


def merge_option() -> click.Option:
    """Return the option of samples alone."""
    return click.Option(
        ["--merge"],
        type=click.Choice(MERGES),
        help="How calls become rows: prefix continues the row whose tokens a prompt begins with. Default: prefix.",
    )


def triplet_options(*, skips: bool = True) -> list[click.Parameter]:
    """Return the options. `skips`: with the one of triplets alone."""
    skip = click.Option(
        ["--skip-without-tokens"],
        is_flag=True,
        help="Leave out calls without token ids of prompt or response.",
    )
    return [
        click.Option(
            ["--source"],
            type=click.Choice(SOURCES),
            help="Where calls of a model are read from. Default: tracer.",
        ),
        click.Option(
            ["--llm-call-match"],
            default="",
            metavar="RE2",
            help="Spans whose name matches are calls of a model. Default: as docs/triplets.md says.",
        ),
        click.Option(
            ["--agent-match"],
            default="",
            metavar="RE2",
            help="Only calls under an agent whose name matches. Default: all.",
        ),
        *([skip] if skips else ()),
        click.Option(
            ["--reward-policy"],
            type=click.Choice(POLICIES),
            help="Which call gets which reward. Default: first_occurrence, by_sequence for the proxy.",
        ),
    ]


def request_fields(given: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the options as fields of ListTripletsRequest or ListSamplesRequest."""
    fields: dict[str, Any] = {
        name: given[name]
        for name in ("llm_call_match", "agent_match", "skip_without_tokens")
        if name in given
    }
    for name, prefix in (
        ("source", "TRIPLET_SOURCE"),
        ("reward_policy", "REWARD_POLICY"),
        ("merge", "SAMPLE_MERGE"),
    ):
        if given.get(name):
            fields[name] = f"{prefix}_{given[name].upper()}"
    return fields
