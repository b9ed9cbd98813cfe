"""CPU of ListSamples for 1,000 calls: `python -m benchmarks.samples [--backend sqlite] [--tokens 256]`.

The store is in this process, so what is counted is the server's work without gRPC, as in benchmarks/triplets.py:

  single  1,000 calls that continue none, each with prompt and response of the given number of tokens: 1,000 rows
  turns   100 conversations of 10 turns, each prompt with all tokens before it: 100 rows
  chain   one conversation of 1,000 turns with 8 + 8 new tokens each, each prompt with all tokens before it: 1 row

`parse_ms` is the part that reading the messages of the spans takes alone, with protobuf.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightningstore.service.server import tuning
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.v1.claim_pb2 import StartRolloutRequest
from lightningstore.v1.rollout_pb2 import RolloutSpec
from lightningstore.v1.sample_pb2 import ListSamplesRequest, ListSamplesResponse
from lightningstore.v1.span_pb2 import AddSpansRequest, SpanBatch
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.calls import Calls
from tests.traces import span

CALLS = 1000
#: New tokens of a prompt and of a response in the chain.
STEP = 8
VOCABULARY = 150_000


def call(number: int, prompt: list[int], response: list[int]) -> Span:
    """Return a call of a model."""
    attributes = {
        "gen_ai.response.id": f"r-{number}",
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ["stop"],
        "prompt_token_ids": prompt,
        "response_token_ids": response,
    }
    return span(str(number), "openai.chat.completion", "", (number + 1, number + 1.5), attributes)


def conversations(turns: int, tokens: int) -> Iterator[Span]:
    """Yield the calls of conversations with this number of turns."""
    dice = random.Random(5)

    def ids() -> list[int]:
        return [dice.randrange(VOCABULARY) for _ in range(tokens)]

    said: list[int] = []
    for number in range(CALLS):
        prompt = ([] if number % turns == 0 else said) + ids()
        response = ids()
        yield call(number, prompt, response)
        said = prompt + response


TRACES: dict[str, Callable[[int], Iterator[Span]]] = {
    "single": lambda tokens: conversations(1, tokens),
    "turns": lambda tokens: conversations(10, tokens),
    "chain": lambda _: conversations(CALLS, STEP),
}


async def measure(backend: str, path: Path, repeats: int, tokens: int) -> dict[str, Any]:
    """Return CPU milliseconds by trace."""
    service = await open_store(Config(backend=backend, db=path, port=0))  # type: ignore[arg-type]
    store = Calls(service)
    found: dict[str, Any] = {}
    try:
        for name, make in TRACES.items():
            started = await store.start_rollout(
                StartRolloutRequest(rollout=RolloutSpec(input_json=b"null"))
            )
            rollout_id = started.rollout.rollout_id
            made = list(make(tokens))
            stored: list[bytes] = []
            for start in range(0, CALLS, 50):
                batch = SpanBatch(rollout_id=rollout_id, attempt_id="latest")
                batch.spans.extend(made[start : start + 50])
                stored.append(batch.SerializeToString())
                await store.add_spans(AddSpansRequest(batch=batch))
            request = ListSamplesRequest(rollout_ids=[rollout_id])
            taken: list[float] = []
            parsed: list[float] = []
            rows = 0
            tuning.settle_garbage()
            for _ in range(repeats):
                began = time.process_time()
                answers = [answer async for answer in store.list_samples(request) if answer]
                taken.append((time.process_time() - began) * 1000)
                began = time.process_time()
                for data in stored:
                    SpanBatch.FromString(data)
                parsed.append((time.process_time() - began) * 1000)
                parts = [ListSamplesResponse.FromString(answer).attempts for answer in answers]
                rows = sum(len(part.samples) for attempts in parts for part in attempts)
            found[name] = {
                "rows": rows,
                "median_ms": round(statistics.median(taken), 1),
                "least_ms": round(min(taken), 1),
                "worst_ms": round(max(taken), 1),
                "parse_ms": round(min(parsed), 1),
            }
    finally:
        await service.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="memory", choices=["memory", "sqlite"])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=256, help="of each prompt and each response")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        work = measure(chosen.backend, path, chosen.repeats, chosen.tokens)

        async def _print() -> None:
            print(json.dumps(await work, indent=2))

        tuning.run(_print())


if __name__ == "__main__":
    main()
