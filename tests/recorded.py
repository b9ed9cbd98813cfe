"""Recorded traces of agent stacks, and the table of their triplets: `python -m tests.recorded` prints it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightningstore.client import AttemptTriplets, Triplet
from lightningstore.client.otlp import request_batches
from lightningstore.service.traces import timeline
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.traces import extract

FOLDER = Path(__file__).parent / "stacks"
STACKS = sorted(path.stem for path in FOLDER.glob("*.json"))
TITLES = (
    "Stack",
    "Triplets",
    "Prompts",
    "Tools",
    "Tool call",
    "Final answer",
    "Agent",
    "Tokens",
    "Token ids",
    "Log-probabilities",
    "Reward",
)


def spans(stack: str) -> list[tuple[int, Span]]:
    """Return the spans of a stack, numbered as they were exported."""
    found: list[Span] = []
    for line in (FOLDER / f"{stack}.json").read_text().splitlines():
        for batch in request_batches(json.loads(line)):
            found.extend(batch.spans)
    return list(enumerate(found, 1))


def row(stack: str) -> tuple[str, ...]:
    """Return what the table says of a stack."""
    numbered = spans(stack)
    triplets = extract(numbered)
    shown = timeline.read(numbered)
    prompts = [json.dumps(triplet.prompt) for triplet in triplets]
    answers = [json.dumps(triplet.response) for triplet in triplets]
    return (
        stack,
        str(len(triplets)),
        _if(any(prompts), "system and user" if "system" in "".join(prompts) else "user"),
        _if(any(triplet.tools for triplet in triplets), "yes"),
        _if(bool(answers) and "get_weather" in answers[0], "yes"),
        _if(bool(answers) and "sunny in Paris" in answers[-1], "yes"),
        _agents(triplets),
        _if(
            shown.total("prompt_tokens") is not None,
            f"{shown.total('prompt_tokens')} → {shown.total('response_tokens')}",
        ),
        _counts(len(triplet.response_token_ids) for triplet in triplets),
        _counts(len(triplet.logprobs) for triplet in triplets),
        _rewards(triplets),
    )


def _if(condition: bool, text: str) -> str:
    return text if condition else "–"


def _agents(triplets: list[Triplet]) -> str:
    names = {triplet.agent_name for triplet in triplets} - {"*"}
    return _if(bool(names), ", ".join(sorted(names)))


def _counts(counts: Any) -> str:
    listed = list(counts)
    return _if(any(listed), " + ".join(map(str, listed)))


def _rewards(triplets: AttemptTriplets) -> str:
    if triplets and triplets[-1].reward is not None:
        return f"{triplets[-1].reward:g} on the last"
    unmatched: list[Any] = triplets.unmatched_rewards
    return _if(bool(unmatched), ", ".join(f"{value:g} unmatched" for value in unmatched))


def table() -> str:
    """Return the table as it is in docs/triplets.md."""
    rows = [TITLES, tuple("---" for _ in TITLES), *map(row, STACKS)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


if __name__ == "__main__":
    print(table())
