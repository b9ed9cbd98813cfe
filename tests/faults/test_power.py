"""The power goes at any moment of a server's work under mixed load: what it answered is there."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.service.storage.sqlite import tools
from lightningstore.v1 import attempt_pb2, claim_pb2, rollout_pb2, span_pb2
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.faults.lab import Lab
from tests.faults.powercut import Disk, journal, put

pytestmark = pytest.mark.asyncio

CUTS_A_LIFE = 40
LIFE_SECONDS = 0.7
CLIENTS = 8


class Fact(NamedTuple):
    """The answers that a client received, with their times in monotonic nanoseconds."""

    time: int
    what: str
    value: Any


class Load:
    """Clients that enqueue, claim, send spans and report, and note what they are answered."""

    def __init__(self, stub: Any, dice: random.Random, facts: list[Fact]) -> None:
        self.stub, self.dice, self.facts = stub, dice, facts

    def note(self, what: str, *values: Any) -> None:
        now = time.monotonic_ns()
        self.facts += [Fact(now, what, value) for value in values]

    async def work(self) -> None:
        """Live one life after the other until the server is gone."""
        try:
            while True:
                await self._live()
        except grpc.aio.AioRpcError:
            return

    async def _live(self) -> None:
        names = [f"r{self.dice.getrandbits(60):x}" for _ in range(self.dice.choice([1, 2, 30]))]
        text = b'"' + b"x" * self.dice.choice([1, 1000, 9000]) + b'"'
        specs = [{"rollout_id": name, "input_json": text} for name in names]
        await self.stub.EnqueueRollouts(rollout_pb2.EnqueueRolloutsRequest(rollouts=specs))
        self.note("rollout", *names)
        answer = await self.stub.DequeueRollouts(claim_pb2.DequeueRolloutsRequest(limit=1))
        for claimed in answer.rollouts:
            latest = claimed.latest_attempt
            ids = {"rollout_id": latest.rollout_id, "attempt_id": latest.attempt_id}
            self.note("attempt", latest.attempt_id)
            spans = [
                Span(trace_id=b"t" * 16, span_id=os.urandom(8), name="s" * 300)
                for _ in range(self.dice.choice([1, 20]))
            ]
            batch = span_pb2.SpanBatch(**ids, spans=spans)
            await self.stub.AddSpans(span_pb2.AddSpansRequest(batch=batch))
            self.note("span", *(span.span_id for span in spans))
            report = {**ids, "status": attempt_pb2.ATTEMPT_STATUS_SUCCEEDED}
            await self.stub.UpdateAttempt(attempt_pb2.UpdateAttemptRequest(attempt=report))
            self.note("finish", latest.rollout_id)


async def live(lab: Lab, log: Path, dice: random.Random, *options: str) -> list[Fact]:
    """Let a server work for a while, killed at the end; returns what it answered."""
    log.unlink(missing_ok=True)
    lab.start(*options, journal=log)
    facts: list[Fact] = []
    channels = [grpc.aio.insecure_channel(lab.address) for _ in range(2)]
    loads = [
        Load(LightningStoreServiceStub(channels[n % 2]), random.Random(dice.random()), facts)
        for n in range(CLIENTS)
    ]
    tasks = [asyncio.create_task(load.work()) for load in loads]
    await asyncio.sleep(LIFE_SECONDS)  # the moment of the kill: nothing waits for it
    lab.kill()
    await asyncio.gather(*tasks)
    await asyncio.gather(*(channel.close() for channel in channels))
    return facts


async def missing(path: Path, facts: list[Fact]) -> list[Fact]:
    """Open a store as the next start would, which must be whole; returns those facts that it lost."""
    store = await open_store(Config(db=path))
    await store.close()
    assert tools.check(path) == []
    with closing(sqlite3.connect(path)) as connection:
        rollouts = dict(connection.execute("SELECT rollout_id, status FROM rollouts"))
        numbers = [
            number
            for (number,) in connection.execute(
                "SELECT completion_number FROM rollouts WHERE completion_number > 0"
            )
        ]
        attempts = {
            attempt_pb2.Attempt.FromString(record).attempt_id
            for (record,) in connection.execute("SELECT record FROM attempts")
        }
        packed = b"".join(ids for (ids,) in connection.execute("SELECT span_ids FROM spans"))
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    spans = [packed[n : n + 8] for n in range(0, len(packed), 8)]
    assert len(set(spans)) == len(spans)
    finished = {
        i for i, status in rollouts.items() if status == rollout_pb2.ROLLOUT_STATUS_SUCCEEDED
    }
    there = {"rollout": set(rollouts), "attempt": attempts, "span": set(spans), "finish": finished}
    return [fact for fact in facts if fact.value not in there[fact.what]]


class Cuts:
    """Lives of one store, each begun on what the cut before it left of the file, and cut at many moments."""

    def __init__(self, lab: Lab, dice: random.Random, *options: str) -> None:
        self.lab, self.dice, self.options = lab, dice, options
        self.log = lab.folder / "journal"
        self.image = lab.folder / "image" / "store.db"
        self.image.parent.mkdir()
        self.files: dict[str, bytes] = {}
        self.facts: list[Fact] = []
        self.cuts = self.lost = self.told = 0

    async def life(self, most: int) -> None:
        """Let the server live, and cut at up to `most` moments of its life."""
        put(self.files, self.lab.db)
        facts = self.facts + await live(self.lab, self.log, self.dice, *self.options)
        self.told += len(facts) - len(self.facts)
        events = list(journal(self.log))
        syncs = [n for n, event in enumerate(events) if event.what == "S"]
        places = self.dice.choices([0, 1], k=most)  # right after a sync, or anywhere
        chosen = sorted(
            self.dice.choice(syncs) + 1 if place else self.dice.randrange(len(events))
            for place in places
        )
        disk = Disk(self.files)
        done = 0
        for place in chosen:
            for event in events[done:place]:
                disk.apply(event)
            done = place
            # What was answered before the next event began relies on those that are done.
            end = events[place].time if place < len(events) else events[-1].time + 1
            self.files = disk.cut(self.dice)
            self.facts = [fact for fact in facts if fact.time < end]
            put(self.files, self.image)
            gone = await missing(self.image, self.facts)
            self.cuts += 1
            self.lost += bool(gone)
            if gone:
                self.facts = [fact for fact in self.facts if fact not in gone]

    def __str__(self) -> str:
        return f"{self.cuts} cuts, {self.lost} lost answered writes, {self.told} facts answered"


async def test_power_cut_loses_nothing_that_was_answered(
    lab: Lab, dice: random.Random, tries
) -> None:
    cuts = Cuts(lab, dice)
    while cuts.cuts < tries("power cuts"):
        await cuts.life(min(CUTS_A_LIFE, tries("power cuts") - cuts.cuts))
        assert cuts.lost == 0, cuts
    print(cuts)


async def test_power_cut_does_lose_answered_writes_where_they_are_not_synced(
    lab: Lab, dice: random.Random, tries
) -> None:
    """The same with relaxed durability: shows that the test above would find a loss."""
    cuts = Cuts(lab, dice, "--durability", "relaxed")
    while cuts.cuts < tries("power cuts, relaxed"):
        await cuts.life(min(CUTS_A_LIFE, tries("power cuts, relaxed") - cuts.cuts))
    print(cuts)
    assert cuts.lost > cuts.cuts / 20
