"""The server is killed at random moments under mixed load: answered is stored, unanswered is whole or absent."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from pathlib import Path

import grpc
import pytest
from lightningstore.v1 import claim_pb2, rollout_pb2, statistics_pb2
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub

from tests.faults.lab import Lab
from tests.faults.ledger import Ledger, work_until
from tests.integration.process import run

pytestmark = pytest.mark.asyncio


async def test_nothing_answered_is_lost_by_kill_9(lab: Lab, dice: random.Random, tries) -> None:
    ledger = Ledger(dice)
    kills = tries("kills")
    lab.start()
    for kill in range(kills):
        await work_until(ledger, lab.address, dice.uniform(0.02, 0.35), lab.kill)
        assert lab.integrity() == "ok"
        if len(ledger.rollouts) > 8000 and kill + 1 < kills:
            # Comparing must not become all that is done: the rest is done to a new file.
            lab.start()
            await _compare(lab, ledger, finish=True)
            lab.end()
            lab.db.rename(lab.folder / f"full-{kill}.db")
            ledger = ledger.successor()
        lab.start()
        await _compare(lab, ledger)
    await _compare(lab, ledger, finish=True)
    assert lab.end() == 0
    assert lab.integrity() == "ok"
    print(f"{kills} kills, {ledger.answered} answered, {ledger.unanswered} unanswered")
    print(ledger.deliveries)
    assert ledger.unanswered > 0


@pytest.mark.parametrize(
    ("mutant", "finding"),
    [
        ("no stored acknowledgements", "came back|delivered after it was acknowledged"),
        ("no stored cursors", "counted twice|miscounted"),
    ],
)
async def test_ledger_finds_a_server_that_loses(
    lab: Lab, dice: random.Random, mutant: str, finding: str
) -> None:
    ledger = Ledger(dice)
    lab.start(mutant=mutant)
    with pytest.raises(AssertionError, match=finding):
        for _ in range(6):
            await work_until(ledger, lab.address, 0.4, lab.kill)
            lab.start(mutant=mutant)
            await _compare(lab, ledger)


async def test_pause_outlives_kill_9(lab: Lab, dice: random.Random, tries) -> None:
    """Claims that were paused, or resumed, before the answer stay so. A call without an answer has happened or not."""
    lab.start()
    expected: set[str] = {""}
    for n in range(min(20, tries("kills"))):
        async with grpc.aio.insecure_channel(lab.address) as channel:
            stub = LightningStoreServiceStub(channel)
            found = await stub.GetStatistics(statistics_pb2.GetStatisticsRequest())
            assert found.claim_pause.reason in expected
            spec = {"input_json": b"1"}
            await stub.EnqueueRollouts(rollout_pb2.EnqueueRolloutsRequest(rollouts=[spec]))
            claimed = await stub.DequeueRollouts(claim_pb2.DequeueRolloutsRequest(limit=1))
            assert len(claimed.rollouts) == (not found.HasField("claim_pause"))
            reason = f"pause {n}" if dice.random() < 0.7 else ""
            if reason:
                call = stub.PauseClaims(claim_pb2.PauseClaimsRequest(reason=reason))
            else:
                call = stub.ResumeClaims(claim_pb2.ResumeClaimsRequest())
            expected = {reason}
            if n % 2:
                await call
            else:
                await asyncio.sleep(dice.uniform(0, 0.004))
                if not call.done() or (await call.code()) is not grpc.StatusCode.OK:
                    expected = {reason, found.claim_pause.reason}
            lab.kill()
            call.cancel()
        assert lab.integrity() == "ok"
        lab.start()
    lab.end()


async def _compare(lab: Lab, ledger: Ledger, *, finish: bool = False) -> None:
    async with grpc.aio.insecure_channel(lab.address) as channel:
        stub = LightningStoreServiceStub(channel)
        await ledger.settle(stub)
        await ledger.check(stub, all_spans=finish)
        if finish:
            await ledger.finish_all(stub)


@pytest.mark.parametrize("what", ["garbage", "zeros", "foreign", "torn"])
async def test_file_that_is_no_store_is_refused_and_left_as_it_is(
    tmp_path: Path, what: str
) -> None:
    path = tmp_path / "store.db"
    if what == "foreign":
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
        connection.close()
    elif what == "torn":
        await _make_store(path)
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.write_bytes(random.Random(1).randbytes(50_000) if what == "garbage" else bytes(9000))
    before = path.read_bytes()
    code, _, errors = await run("serve", "--db", str(path), "--port", "0", folder=tmp_path)
    assert code == 1
    assert errors.count("\n") == 1
    assert str(path) in errors or path.name in errors
    assert path.read_bytes() == before


async def _make_store(path: Path) -> None:
    with Lab(path.parent) as lab:
        lab.db = path
        lab.start()
        await work_until(Ledger(random.Random(2)), lab.address, 0.3, lab.end)
