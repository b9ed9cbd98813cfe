"""Task queues, labels and the pause on the command line."""

from __future__ import annotations

import pytest

from tests.integration.test_cli_work import Shell, shell

__all__ = ["shell"]

pytestmark = pytest.mark.asyncio


async def test_queues_and_labels_from_enqueue_to_export(shell: Shell) -> None:
    labels = ("--label", "run=7", "--label", "note=a=b")
    gpu = (await shell("enqueue", "1", "--queue", "gpu", *labels)).strip()
    plain = (await shell("enqueue", "2", "--label", "run=7")).strip()
    shown = await shell.json("rollout", gpu)
    assert (shown["queue"], shown["labels"]) == ("gpu", {"run": "7", "note": "a=b"})
    for options, expected in (
        (("--queue", "gpu"), [gpu]),
        (("--queue", ""), [plain]),
        (("--queue", "", "--queue", "gpu", "--oldest"), [gpu, plain]),
        (("--label", "run=7", "--label", "note=a=b"), [gpu]),
        (("--label", "run=8"), []),
    ):
        assert [row[0] for row in await shell.rows("rollouts", *options)] == expected, options
    status = await shell("status")
    assert "gpu" in status
    assert "nothing to claim" in await shell("claim", "--queue", "cpu", code=1)
    assert [row[0] for row in await shell.rows("claim", "-L", "5")] == [plain]
    assert [row[0] for row in await shell.rows("claim", "--queue", "cpu", "--queue", "gpu")] == [
        gpu
    ]
    for rollout_id in (gpu, plain):
        await shell("report", rollout_id, "latest", "succeeded")
    await shell("export", "-o", "gpu.jsonl", "--queue", "gpu", "--label", "run=7")
    lines = (shell.folder / "gpu.jsonl").read_text().splitlines()
    assert [gpu in line for line in lines] == [True]


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("enqueue", "1", "--queue", "GPU"), 1, "rollouts[0].queue"),
        (("enqueue", "1", "--label", "run"), 2, "'run' must be KEY=VALUE"),
        (("rollouts", "--label", "a b=c"), 1, "labels"),
        (("claim", "--queue", "a b"), 1, "queues[0]"),
    ],
)
async def test_bad_queue_or_label_is_one_line(
    shell: Shell, arguments: tuple[str, ...], code: int, why: str
) -> None:
    assert why in await shell(*arguments, code=code)


async def test_claims_are_paused_and_resumed(shell: Shell) -> None:
    await shell("enqueue", "1")
    await shell("enqueue", "2")
    await shell("claim")
    paused = await shell("pause", "--reason", "new weights")
    assert paused.startswith("claims are paused since 2")
    assert paused.endswith(" (new weights); 1 attempt running\n")
    assert "nothing to claim" in await shell("claim", code=1)
    status = await shell.json("status")
    assert status["statistics"]["claim_pause"]["reason"] == "new weights"
    assert "new weights" in await shell("status")
    assert "new weights" in await shell("claim", "--id", "latest", code=1)
    resumed = await shell("resume")
    assert resumed.startswith("claims are resumed; they had been paused since 2")
    assert await shell("resume") == "claims were not paused; 1 attempt running\n"
    answer = await shell.json("pause")
    assert (answer["running_attempt_count"], answer["pause"]["reason"]) == (1, "")
    assert (await shell.json("resume"))["ended_pause"]["reason"] == ""
    assert len(await shell.rows("claim")) == 1
