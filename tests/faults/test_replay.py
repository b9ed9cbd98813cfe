"""Histories of many clients under virtual time, with crashes and a disk that fails: nothing lost, and replayable."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from lightningstore.service.rules.errors import StoreError

from tests.calls import Calls
from tests.clock import ManualClock
from tests.faults.simulation import (
    Requests,
    SimulatedDisk,
    crash,
    dump,
    frozen,
    seeded,
    store_over,
)

ROOT = Path(__file__).parents[2]
CLIENTS = 6
LIVES = 3
CALLS = 12
FAILING = 0.05


class History:
    """One history: requests and answers in order, and a digest of them."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.clock = ManualClock()
        self.disk = SimulatedDisk(random.Random(seed + 1), FAILING)
        self.requests = Requests(self.dice)
        self.digest = hashlib.sha256()
        self.calls = self.refused = 0
        self.rollouts: set[str] = set()
        self.claims: dict[tuple[str, str], str] = {}
        self.spans: set[bytes] = set()
        self.numbers: set[tuple[str, str, int]] = set()

    async def play(self) -> None:
        """Open an engine, let clients work, crash it; and again. Then compare and write all down."""
        for _ in range(LIVES):
            store = store_over(self.disk, self.clock)
            while True:
                try:
                    await store.engine.open()
                except StoreError:
                    continue
                break
            clients = [asyncio.create_task(self._work(Calls(store))) for _ in range(CLIENTS)]
            for _ in range(self.dice.randrange(200)):
                await self.clock.advance(self.dice.choice([0, 0, 0.01, 0.6, 5]))
                if all(client.done() for client in clients):
                    break
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            await crash(store)
        self.disk.failing = 0
        store = store_over(self.disk, self.clock)
        await store.engine.open()
        await self._check(Calls(store))
        await crash(store)

    async def _work(self, store: Any) -> None:
        for _ in range(CALLS):
            method, request = self.requests.next()
            try:
                answer = await getattr(store, method)(request)
            except StoreError as error:
                self.refused += 1
                self._write(method, request, str(error).encode())
            else:
                self._write(method, request, frozen(answer))
                self.requests.learn(answer)
                self._note(method, request, answer)
            for _ in range(self.dice.randrange(4)):
                await asyncio.sleep(0)

    def _write(self, method: str, request: Message, answer: bytes) -> None:
        self.calls += 1
        for part in (method.encode(), frozen(request), answer):
            self.digest.update(len(part).to_bytes(4, "big") + part)

    def _note(self, method: str, request: Any, answer: Any) -> None:
        """Keep what must never go, and refuse what was given twice."""
        if method in ("enqueue_rollouts", "dequeue_rollouts"):
            self.rollouts.update(r.rollout_id for r in answer.rollouts)
        claimed = list(answer.rollouts) if method == "dequeue_rollouts" else []
        if method in ("start_rollout", "start_attempt"):
            claimed.append(answer.rollout)
        for record in claimed:
            name = (record.rollout_id, record.latest_attempt_id)
            assert name not in self.claims, f"{name} was claimed twice"
            self.claims[name] = request.request_id
        if method == "add_spans" and answer.result.accepted_count:
            assert answer.result.accepted_count == len(request.batch.spans)
            self.spans.update(span.span_id for span in request.batch.spans)
        if method == "allocate_sequence_ids":
            demand, first = request.demands[0], answer.ranges[0].first_sequence_id
            for number in range(first, first + demand.count):
                name = (demand.rollout_id, demand.attempt_id, number)
                assert name not in self.numbers, f"{name} was given twice"
                self.numbers.add(name)

    async def _check(self, store: Any) -> None:
        there = self.disk
        rollouts = {row.rollout.rollout_id: row.rollout for row in there._rollouts.values()}
        assert self.rollouts <= set(rollouts)
        attempts = {
            (a.attempt.rollout_id, a.attempt.attempt_id)
            for of_one in there._attempts.values()
            for a in of_one.values()
        }
        assert set(self.claims) <= attempts
        rows = [row for rows in there._spans.values() for _, _, row in rows]
        packed = b"".join(row.span_ids for row in rows)
        stored = [packed[n : n + 8] for n in range(0, len(packed), 8)]
        assert len(set(stored)) == len(stored)
        assert self.spans <= set(stored)
        numbers = [r.completion_number for r in rollouts.values() if r.completion_number]
        assert len(set(numbers)) == len(numbers)
        assert max(numbers, default=0) <= there._counters.completion_number
        for line in await dump(store):
            self.digest.update(line)


def play(seed: int) -> History:
    history = History(seed)
    with seeded(seed):
        asyncio.run(history.play())
    return history


def test_histories_under_a_failing_disk_lose_nothing_and_replay_to_the_bit(
    tries, seed: int
) -> None:
    calls = refused = faults = 0
    digests = []
    for n in range(tries("simulated histories")):
        history = play(seed + n)
        digests.append(history.digest.hexdigest())
        assert play(seed + n).digest.hexdigest() == digests[-1], f"--seed {seed + n} differs"
        calls, refused = calls + history.calls, refused + history.refused
        faults += history.disk.faults
    assert len(set(digests)) == len(digests)
    program = "import sys; from tests.faults.test_replay import play;"
    program += "print(play(int(sys.argv[1])).digest.hexdigest())"
    other = subprocess.run(  # sets of strings have another order there
        [sys.executable, "-c", program, str(seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(seed % 1000 + 1)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert other.stdout.strip() == digests[0]
    print(f"{len(digests)} histories twice: {calls} calls, {refused} refused, {faults} disk faults")
    assert faults > 0
