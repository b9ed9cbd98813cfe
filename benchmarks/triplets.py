"""CPU of ListTriplets a 1,000 spans: `python -m benchmarks.triplets [--backend sqlite] [--tokens 256]`.

The store is in this process, so what is counted is the server's work without gRPC: reading the spans,
finding calls and rewards, building and serialising the answer. Three traces of 1,000 spans each:

  agent   an agent's run: per step an agent, a chain, a call of a model with its tokens, a tool, a reward
  calls   nothing but calls, all loose, as benchmarks/spans.py makes them; no tokens
  proxy   raw requests of a proxy before vLLM with token ids as text, a reward after each fourth
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from lightningstore.service.server import tuning
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.v1.claim_pb2 import StartRolloutRequest
from lightningstore.v1.rollout_pb2 import RolloutSpec
from lightningstore.v1.span_pb2 import AddSpansRequest, SpanBatch
from lightningstore.v1.triplet_pb2 import ListTripletsRequest, ListTripletsResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks import spans as texts
from tests.calls import Calls
from tests.traces import span

SPANS = 1000


def ids(count: int) -> list[int]:
    """Return token ids out of a vocabulary of 150,000."""
    dice = random.Random(5)
    return [dice.randrange(150_000) for _ in range(count)]


def agent(tokens: int) -> list[Span]:
    """Return the run of an agent, 200 steps."""
    text = texts.Text(3)
    made = [span("root", "session", "", (1, 5 * SPANS))]
    for step in range(SPANS // 5):
        at = 10.0 * step + 2
        told = {
            "gen_ai.request.model": "m",
            "gen_ai.prompt.0.role": "system",
            "gen_ai.prompt.0.content": text.sentence(200),
            "gen_ai.prompt.1.role": "user",
            "gen_ai.prompt.1.content": text.sentence(400),
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.content": text.sentence(200),
            "gen_ai.response.id": f"r-{step}",
            "gen_ai.response.model": "m",
            "prompt_token_ids": ids(tokens),
            "response_token_ids": ids(tokens),
        }
        made += [
            span(f"a{step}", "agent", "root", (at, at + 8), {"agent.name": "solver"}),
            span(f"n{step}", "langchain.Chain.x", f"a{step}", (at + 1, at + 7), {"lc_name": "x"}),
            span(f"c{step}", "openai.chat.completion", "root", (at + 2, at + 3), told),
            span(f"t{step}", "tool", f"n{step}", (at + 4, at + 5), {"tool.name": "search"}),
            span(
                f"r{step}",
                "agentlightning.annotation",
                "root",
                (at + 9, at + 9),
                {"agentlightning.reward.0.value": 1.0},
            ),
        ]
    return made[:SPANS]


def calls(_tokens: int) -> list[Span]:
    """Return nothing but calls."""
    text = texts.Text(1)
    return [texts.span(text, number, bytes(range(1, 17))) for number in range(SPANS)]


def proxy(tokens: int) -> list[Span]:
    """Return what a proxy writes."""
    listed = str(ids(tokens))
    made = []
    for number in range(SPANS):
        if number % 5 == 4:
            made.append(
                span(
                    str(number),
                    "agentlightning.annotation",
                    "",
                    (1, 1),
                    {"agentlightning.reward": 1.0},
                )
            )
            continue
        told = {
            "llm.hosted_vllm.id": str(number),
            "llm.hosted_vllm.prompt_token_ids": listed,
            "llm.hosted_vllm.response_token_ids": f"[{listed}]",
        }
        made.append(span(str(number), "raw_gen_ai_request", "", (1, 2), told))
    return made


TRACES = {"agent": agent, "calls": calls, "proxy": proxy}


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
            rollout = started.rollout
            made = make(tokens)
            for start in range(0, SPANS, 100):
                batch = SpanBatch(
                    rollout_id=rollout.rollout_id,
                    attempt_id="latest",
                    spans=made[start : start + 100],
                )
                await store.add_spans(AddSpansRequest(batch=batch))
            request = ListTripletsRequest(rollout_ids=[rollout.rollout_id])
            if name == "proxy":
                request.source = 2
            taken: list[float] = []
            count = 0
            tuning.settle_garbage()
            for _ in range(repeats):
                began = time.process_time()
                answers = [answer async for answer in store.list_triplets(request) if answer]
                taken.append((time.process_time() - began) * 1000)
                parts = [ListTripletsResponse.FromString(answer).attempts for answer in answers]
                count = sum(len(part.triplets) for attempts in parts for part in attempts)
            found[name] = {
                "triplets": count,
                "median_ms": round(statistics.median(taken), 1),
                "least_ms": round(min(taken), 1),
                "worst_ms": round(max(taken), 1),
            }
    finally:
        await service.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="memory", choices=["memory", "sqlite"])
    parser.add_argument("--repeats", type=int, default=30)
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
