"""`lightningstore demo`: what the console shows is there, and nothing remains."""

from __future__ import annotations

import asyncio
import re
import signal
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from lightningstore.client import AsyncLightningStore, AttemptStatus, GroupStatus

from tests.integration.process import COMMAND, ENVIRONMENT

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(150)]

SECONDS = 60


class Demo(NamedTuple):
    """A running demo, and what it has printed."""

    process: asyncio.subprocess.Process
    address: str
    link: str
    folder: Path

    async def end(self) -> tuple[int | None, str]:
        """Wait for its end; return the exit code and the last line."""
        out, errors = await asyncio.wait_for(self.process.communicate(), SECONDS)
        assert errors.decode() == ""
        return self.process.returncode, out.decode().splitlines()[-1]


Start = Callable[..., Awaitable[Demo]]


@pytest_asyncio.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start demos, whose temporary folders are below that of the test."""
    started: list[Demo] = []

    async def begin(*options: str, **environment: str) -> Demo:
        process = await asyncio.create_subprocess_exec(
            COMMAND,
            "demo",
            *options,
            cwd=tmp_path,
            env={**ENVIRONMENT, "TMPDIR": str(tmp_path), **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        printed = await asyncio.wait_for(process.stdout.readuntil(b")\n"), SECONDS)
        found = re.search(
            r"^console: (\S+)\n.*ADDRESS=(\S+)\n.*\((.*)\)$",
            printed.decode(),
            re.MULTILINE | re.DOTALL,
        )
        assert found is not None, printed
        link, address, folder = found.groups()
        started.append(Demo(process, address, link, Path(folder)))
        return started[-1]

    yield begin
    for demo in started:
        if demo.process.returncode is None:
            demo.process.kill()
            await demo.process.communicate()


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait until a check holds."""
    async with asyncio.timeout(SECONDS):
        while not await check():
            await asyncio.sleep(0.05)


def page(link: str) -> str:
    with urllib.request.urlopen(link, timeout=SECONDS) as answer:
        return str(answer.read().decode())


async def check_rollouts(store: AsyncLightningStore) -> None:
    """Wait for rollouts of both queues and modes, for a failure, a retry and an attempt that timed out."""

    async def all_seen() -> bool:
        seen = [r async for r in store.iter_rollouts(statuses=["succeeded", "failed"])]
        attempts = [r.attempt for r in seen]
        return (
            {r.queue for r in seen} == {"", "validation"}
            and {r.labels["topic"] for r in seen} == {"sums", "products"}
            and {"train", "val"} == {r.mode.value for r in seen if r.mode is not None}
            and any(r.attempt_count == 2 and r.status.value == "succeeded" for r in seen)
            and any(a.status is AttemptStatus.TIMEOUT for a in attempts)
            and any(a.failure is not None and a.failure.type == "NonRetryable" for a in attempts)
        )

    await until(all_seen)


async def check_control(store: AsyncLightningStore) -> None:
    """Check groups, versions of resources, workers and consumers."""
    groups = await store.list_groups(statuses=[GroupStatus.COMPLETE])
    assert any(g.rewards is not None and g.rewards.std > 0 for g in groups)
    first, last = [await store.get_resources("policy", version=v) for v in (1, 0)]
    assert last.version > first.version
    assert last["weights"].value != first["weights"].value
    assert {w.worker_id for w in await store.list_workers()} == {"runner-1", "runner-2", "runner-3"}
    judge, trainer = await store.list_consumers()
    assert (judge.name, trainer.name) == ("judge", "trainer")
    assert judge.backlog_count > 0
    assert trainer.consumed_count > 0
    assert [b async for b in _series(store)]


async def _series(store: AsyncLightningStore) -> AsyncIterator[Any]:
    for bucket in await store.get_series("reward", axis="publish_number"):
        yield bucket


async def check_conversation(store: AsyncLightningStore) -> None:
    """Check that a conversation has a tool call and its result, and can be trained on as one row."""
    ids = [r.rollout_id for r in await store.list_rollouts(statuses=["succeeded"], page_size=200)]
    rows = [s async for attempt in store.list_samples(ids) for s in attempt]
    assert {s.index for s in rows} == {0}
    assert all(s.logprobs is not None and s.sampled_token_count > 4 for s in rows)
    chat = next(s.messages for s in rows if s.turn_count == 2)
    kinds = [(m["role"], part["type"]) for m in chat for part in m["parts"]]
    assert kinds == [
        ("system", "text"),
        ("user", "text"),
        ("assistant", "reasoning"),
        ("assistant", "tool_call"),
        ("tool", "tool_call_response"),
        ("assistant", "text"),
    ]


def browser(folder: Path) -> tuple[str, Path]:
    """Return a command that takes the place of a browser, and the file that it writes the link to."""
    command, opened = folder / "browser", folder / "opened"
    command.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}.part && mv {opened}.part {opened}\n')
    command.chmod(0o700)
    return f"{command} %s", opened


async def test_every_part_of_the_console_has_something_to_show(
    start: Start, tmp_path: Path
) -> None:
    # Settings of other servers have no effect.
    demo = await start("--no-browser", LIGHTNINGSTORE_TOKEN="x", LIGHTNINGSTORE_BACKEND="memory")
    assert await asyncio.to_thread(page, f"{demo.link}/healthz") == "alive\n"
    for namespace in ("default", "small-steps"):
        async with AsyncLightningStore(demo.address, namespace=namespace) as store:
            await check_rollouts(store)
            await check_control(store)
            await check_conversation(store)

    command, opened = browser(tmp_path)
    other = await start("--seconds", "0.1", BROWSER=command)
    assert await other.end() == (0, f"stopped, removed {other.folder}")
    assert opened.read_text() == other.link
    assert not other.folder.exists()
    assert (other.folder, other.address, other.link) != (demo.folder, demo.address, demo.link)

    assert await asyncio.to_thread(page, f"{demo.link}/readyz") == "ready\n"
    demo.process.send_signal(signal.SIGINT)
    assert await demo.end() == (0, f"stopped, removed {demo.folder}")
    assert not demo.folder.exists()
