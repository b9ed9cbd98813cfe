"""`lightningstore samples`, and `export --samples`: rows of tokens on the command line and in files."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lightningstore.v1.span_pb2 import SpanBatch
from pyarrow import parquet

from tests.integration.test_cli_work import Shell, shell
from tests.traces import span

__all__ = ["shell"]  # the fixture

pytestmark = pytest.mark.asyncio


async def made(shell: Shell) -> None:
    """Finish a rollout with two turns and a branch, and one without token ids."""

    def call(word: str, prompt: list[int], response: list[int]) -> Any:
        told = {
            "gen_ai.response.id": word,
            "gen_ai.response.model": "m",
            "gen_ai.response.finish_reasons": ["stop"],
            "gen_ai.completion.0.content": f"said {word}",
            "prompt_token_ids": prompt,
            "response_token_ids": response,
            "logprobs.content": json.dumps([{"logprob": -0.5}] * len(response)),
        }
        return span(word, "openai.chat.completion", "", (1, 2), told)

    spans = [call("a", [1, 2], [3]), call("b", [1, 2, 3, 4], [5, 6]), call("c", [1, 2, 3, 7], [8])]
    bare = [span("x", "openai.chat.completion", "", (1, 2))]
    for rollout_id, sent in (("ro-1", spans), ("ro-2", bare)):
        await shell.client.start_rollout("x", rollout_id=rollout_id)
        await shell.client.add_spans(
            SpanBatch(rollout_id=rollout_id, attempt_id="latest", spans=sent)
        )
        await shell.client.update_attempt(rollout_id, "latest", status="succeeded", reward=0.5)


async def test_samples_are_listed_and_one_is_shown(shell: Shell) -> None:
    await made(shell)
    assert await shell.rows("samples", "ro-1") == [
        ["0", "6", "3", "2", "0.5", "", "stop", "yes", "said b"],
        ["1", "5", "1", "1", "0.5", "", "stop", "yes", "said c"],
    ]
    assert "INDEX  TOKENS  SAMPLED" in await shell("samples", "ro-1", "-o", "table")
    found = await shell.json("samples", "ro-1")
    assert [row["token_ids"] for row in found] == [[1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 8]]
    assert found[0]["mask"] == [False, False, True, False, True, True]
    assert len(await shell.json("samples", "ro-1", "--merge", "none")) == 3
    one = await shell("samples", "ro-1", "1")
    assert "sampled_tokens\t1" in one
    assert "token_ids" not in one
    assert await shell.json("samples", "ro-1", "1") == found[1]
    assert "no sample 2: the rollout has 2 samples" in await shell("samples", "ro-1", "2", code=1)
    assert await shell("samples", "ro-2") == ""


async def test_export_writes_a_row_for_each_sample(shell: Shell) -> None:
    await made(shell)
    lines = (await shell("export", "--samples")).splitlines()
    assert [json.loads(line) for line in lines] == await shell.json("samples", "ro-1")
    await shell("export", "--samples", "-o", "a.jsonl", "--id", "ro-1")
    assert (shell.folder / "a.jsonl").read_text().splitlines() == lines
    await shell("export", "-o", "b.parquet", "--samples=verl", "--merge", "none")
    rows = parquet.read_table(shell.folder / "b.parquet").to_pylist()
    assert [row["prompt_ids"] + row["response_ids"] for row in rows] == [
        [1, 2, 3],
        [1, 2, 3, 4, 5, 6],
        [1, 2, 3, 7, 8],
    ]
    assert not list(shell.folder.glob("*.partial*"))


async def test_options_without_use_are_refused(shell: Shell) -> None:
    for arguments, why in (
        (("--samples", "--triplets"), "--samples and --triplets exclude each other"),
        (("--samples", "--resume", "-o", "x"), "--samples and --resume exclude each other"),
        (("--samples", "--skip-without-tokens"), "--skip-without-tokens: only with --triplets"),
        (("--triplets", "--merge", "none"), "--merge: only with --samples"),
        (("--merge", "none"), "--merge: only with --triplets or --samples"),
        (("--samples=nope",), "'nope' is not one of"),
    ):
        assert why in await shell("export", *arguments, code=2)
