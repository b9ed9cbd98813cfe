"""The options that say how triplets are made, of `triplets` and `export`."""

from __future__ import annotations

from typing import Any

import click
from lightningstore.v1 import triplet_pb2

SOURCES = [
    name.removeprefix("TRIPLET_SOURCE_").lower() for name in triplet_pb2.TripletSource.keys()[1:]
]
POLICIES = [
    name.removeprefix("REWARD_POLICY_").lower() for name in triplet_pb2.RewardPolicy.keys()[1:]
]


def triplet_options() -> list[click.Parameter]:
    """Return the options."""
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
        click.Option(
            ["--skip-without-tokens"],
            is_flag=True,
            help="Leave out calls without token ids of prompt or response.",
        ),
        click.Option(
            ["--reward-policy"],
            type=click.Choice(POLICIES),
            help="Which call gets which reward. Default: first_occurrence, by_sequence for the proxy.",
        ),
    ]


def request_fields(given: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the options as fields of ListTripletsRequest."""
    fields: dict[str, Any] = {
        name: given[name] for name in ("llm_call_match", "agent_match", "skip_without_tokens")
    }
    if given["source"]:
        fields["source"] = f"TRIPLET_SOURCE_{given['source'].upper()}"
    if given["reward_policy"]:
        fields["reward_policy"] = f"REWARD_POLICY_{given['reward_policy'].upper()}"
    return fields
