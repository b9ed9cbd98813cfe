"""OpenTelemetry's own exporters of Go and Node, unchanged, against a server that does not keep up.

They are the ones in the conformance drivers. Python's is in tests/integration/test_otlp_sdk.py.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lightningstore.service.rules.errors import Busy
from lightningstore.v1.span_pb2 import AddSpansRequest, SpanBatch
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.calls import Calls
from tests.conformance.driver import ProcessDriver
from tests.conformance.languages import load
from tests.contract.conftest import World
from tests.contract.helpers import claim, names

pytestmark = pytest.mark.asyncio

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
SPANS = ["a", "b", "c"]
#: Longer than the first pause of Go's exporter by its own rule, 5 s ± half.
LONG_DELAY = 8.0

Name = tuple[str, str]


@pytest.fixture(scope="module")
def driver():
    """Return what starts the driver of a language, and builds it before."""
    built: set[str] = set()

    def start(language: str, address: str, folder: Path) -> ProcessDriver:
        if language not in built:
            if missing := load()[language].missing():
                pytest.skip(f"cannot build the {language} driver: {missing}")
            done = subprocess.run(
                ["make", "-s", f"{language}-driver"],
                cwd=ROOT,
                env={k: v for k, v in os.environ.items() if not k.startswith("MAKE")},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            assert done.returncode == 0, done.stdout.decode()
            built.add(language)
        return ProcessDriver([str(ROOT / "build/conformance" / language), address], folder / "log")

    return start


class Busyness(World):
    """A server whose disk can be held up, and which notes when exports ask to be let in."""

    async def start(self) -> None:
        await super().start()
        assert self.service is not None
        self.commits = asyncio.Event()
        self.commits.set()
        storage, committer = self.service.engine.storage, self.service.engine.committer
        commit, admit = storage.commit, committer.admit_soon
        #: When exports asked, and the delays that they are still to be refused with.
        self.asked: list[float] = []
        self.refusals: list[float] = []

        async def hang(changes: Any) -> None:
            await self.commits.wait()
            await commit(changes)

        async def refuse(size: int, seconds: float) -> None:
            self.asked.append(time.monotonic())
            if self.refusals:
                busy = Busy("the disk does not keep up")
                busy.retry_delay = self.refusals.pop(0)
                raise busy
            await admit(size, seconds)

        storage.commit, committer.admit_soon = hang, refuse

    async def fill(self, name: Name) -> asyncio.Task[Any]:
        """Hold the disk up and have more wait for it than may; returns the call that does."""
        assert self.service is not None
        self.commits.clear()
        span = Span(trace_id=b"t" * 16, span_id=os.urandom(8), name="x" * MIB)
        big = SpanBatch(rollout_id=name[0], attempt_id=name[1], spans=[span])
        store = self.service
        call = asyncio.create_task(Calls(store).add_spans(AddSpansRequest(batch=big)))
        while store.engine.committer.pending_bytes <= MIB:
            await asyncio.sleep(0)
        return call


@pytest_asyncio.fixture
async def busy(tmp_path: Path) -> AsyncIterator[Busyness]:
    """Such a server."""
    world = Busyness("sqlite-grpc", tmp_path, max_pending_bytes=MIB)
    await world.start()
    yield world
    world.commits.set()
    await world.stop()


async def claimed(world: World) -> Name:
    rollout, attempt = await claim(world)
    return rollout.rollout_id, attempt.attempt_id


async def export(start: Any, language: str, world: World, folder: Path, name: Name) -> dict:
    """Make and export a few spans; returns what the driver said."""
    assert world.server is not None
    address = world.server.address

    def run() -> dict:
        driver = start(language, address, folder)
        try:
            named = {"rollout_id": name[0], "attempt_id": name[1]}
            number = driver.send("export", exporter="otlp", spans=SPANS, **named)
            return driver.answer(number, ["span_ids", "error"], time.monotonic() + 60)
        finally:
            driver.close()

    return await asyncio.to_thread(run)


@pytest.mark.parametrize("language", ["go", "typescript"])
async def test_exporter_waits_out_a_slow_disk_twice_and_loses_nothing(
    busy: Busyness, driver: Any, tmp_path: Path, language: str
) -> None:
    """Neither is refused: an export waits for room, for half as long as these exporters wait."""
    name = await claimed(busy)
    for _ in range(2):
        begun = len(busy.asked)
        mine = await claimed(busy)
        filler = await busy.fill(name)
        exporting = asyncio.create_task(export(driver, language, busy, tmp_path, mine))
        while len(busy.asked) == begun and not exporting.done():
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)  # how long the disk is held up
        assert not exporting.done(), await exporting
        busy.commits.set()
        told = await exporting
        await filler
        assert "error" not in told, told
        assert sorted(await names(busy, mine[0])) == SPANS


async def test_exporter_of_go_refused_twice_comes_again_when_told_and_loses_nothing(
    busy: Busyness, driver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more patience than its default of 10 s: its own pauses take as long (5 and 7.5 s ± half)."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60000")
    busy.refusals = [LONG_DELAY, 0.5]
    mine = await claimed(busy)
    told = await export(driver, "go", busy, tmp_path, mine)
    first, second = (b - a for a, b in zip(busy.asked, busy.asked[1:], strict=False))
    print(f"Go's exporter came again after {first:.1f} s and {second:.1f} s")
    assert "error" not in told, told
    assert sorted(await names(busy, mine[0])) == SPANS
    assert LONG_DELAY <= first < LONG_DELAY + 1
    assert second >= 0.5


async def test_exporter_of_node_gives_up_at_once_when_it_is_refused(
    busy: Busyness, driver: Any, tmp_path: Path
) -> None:
    """Why an export waits for room. If this fails, Node's exporter repeats calls: say so in the docs."""
    busy.refusals = [0.5]
    mine = await claimed(busy)
    told = await export(driver, "typescript", busy, tmp_path, mine)
    assert len(busy.asked) == len(SPANS)  # a call for each span, none of them made again
    assert sorted(await names(busy, mine[0])) == SPANS[1:]
    assert told.get("error", {}).get("code") in ("UNKNOWN", "UNAVAILABLE"), told
