"""The environment of the loads of row 15: a watched server, a prober, and minimal calls."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from lightningstore.v1.attempt_pb2 import AttemptRef
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest, DequeueRolloutsResponse
from lightningstore.v1.rollout_pb2 import (
    EnqueueRolloutsRequest,
    EnqueueRolloutsResponse,
    GroupSpec,
    RolloutSpec,
)
from lightningstore.v1.statistics_pb2 import GetServerInfoResponse

from benchmarks import contenders
from benchmarks.contenders import Failed, Server
from benchmarks.grpc_client import INPUT, OPTIONS, PATH

SETTLE_SECONDS = 0.3
CALL_SECONDS = 180.0


@dataclass
class Seen:
    """What one load did to others."""

    row: str
    #: Maximum time without a beat, in processor time of the loop: the figure that the bound applies to.
    cpu_ms: float
    #: The same by the clock: other processes, disks and other threads of the server add to it.
    wall_ms: float
    #: Longest answer to the prober: to a call that waits for nothing, and to a write.
    gap_ms: float
    write_gap_ms: float
    peak_rss_mb: float
    seconds: float
    #: How the calls of the load ended.
    outcome: str


class Prober:
    """The prober's process."""

    def __init__(self, address: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.prober", address],
            cwd=contenders.ROOT,
            env=contenders.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def report(self) -> dict[str, float]:
        """Return what it has found since the last report."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"the prober ended with {self._process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


@dataclass
class Ground:
    """A server and all that is needed to load it."""

    server: Server
    db: Path
    prober: Prober
    channel: grpc.Channel
    #: Share of the full sizes.
    scale: float
    seen: list[Seen] = field(default_factory=list)

    def call(self, method: str, message: Message | bytes, **more: Any) -> bytes:
        """Call a unary method of the store, or one whose path is given whole, and return the answer's bytes."""
        data = message if isinstance(message, bytes) else message.SerializeToString()
        path = method if method.startswith("/") else PATH + method
        answer: bytes = self.channel.unary_unary(path)(data, timeout=CALL_SECONDS, **more)
        return answer

    def stream(self, method: str, message: Message) -> int:
        """Call a method that answers by a stream; returns the number of messages."""
        answers = self.channel.unary_stream(PATH + method)
        return sum(1 for _ in answers(message.SerializeToString(), timeout=CALL_SECONDS))

    def send(self, method: str, messages: Iterable[bytes]) -> bytes:
        """Call a method that takes a stream, and return the answer's bytes."""
        answer: bytes = self.channel.stream_unary(PATH + method)(
            iter(messages), timeout=CALL_SECONDS
        )
        return answer

    def items(self, full: int) -> int:
        """Return a size at this scale."""
        return max(1, int(full * self.scale))

    def info(self) -> GetServerInfoResponse:
        """Return what the server says of itself."""
        return GetServerInfoResponse.FromString(self.call("GetServerInfo", b""))

    def enqueue(self, count: int, **fields: Any) -> list[str]:
        """Enqueue rollouts, in calls of no more than the server allows, and return their ids."""
        spec, ids = RolloutSpec(**{"input_json": INPUT, **fields}), []
        for start in range(0, count, self.batch_items):
            part = [spec] * min(self.batch_items, count - start)
            answer = self.call("EnqueueRollouts", EnqueueRolloutsRequest(rollouts=part))
            ids += [r.rollout_id for r in EnqueueRolloutsResponse.FromString(answer).rollouts]
        return ids

    def enqueue_groups(self, groups: list[GroupSpec], members: list[str]) -> list[str]:
        """Create groups and a rollout for each id of a group in `members`, in one call; return the rollouts' ids."""
        rollouts = [RolloutSpec(input_json=INPUT, group_id=group_id) for group_id in members]
        request = EnqueueRolloutsRequest(groups=groups, rollouts=rollouts)
        answer = EnqueueRolloutsResponse.FromString(self.call("EnqueueRollouts", request))
        return [rollout.rollout_id for rollout in answer.rollouts]

    def claim(self, count: int, **fields: Any) -> list[AttemptRef]:
        """Claim rollouts, call by call, until `count` are claimed or none are left."""
        claimed: list[AttemptRef] = []
        while len(claimed) < count:
            limit = min(self.batch_items, count - len(claimed))
            answer = self.call("DequeueRollouts", DequeueRolloutsRequest(limit=limit, **fields))
            rollouts = DequeueRolloutsResponse.FromString(answer).rollouts
            claimed += [
                AttemptRef(rollout_id=r.rollout_id, attempt_id=r.latest_attempt_id)
                for r in rollouts
            ]
            if not rollouts:
                break
        return claimed

    def attempt(self) -> AttemptRef:
        """Return an attempt that runs."""
        self.enqueue(1)
        return self.claim(1)[0]

    @property
    def batch_items(self) -> int:
        """Maximum number of items of one call."""
        return self.info().limits.batch_items

    @contextlib.contextmanager
    def row(self, name: str) -> Iterator[list[str]]:
        """Measure what is done inside; the list takes how it ended, where that is not plain success.

        A call that the server refuses is no failure of a row: that may be the right answer.
        """
        time.sleep(SETTLE_SECONDS)
        self.server.report()
        self.prober.report()
        began, outcome = time.perf_counter(), list[str]()
        try:
            yield outcome
        except grpc.RpcError as error:
            outcome.append(f"{error.code().name}: {error.details()[:100]}")  # type: ignore[attr-defined]
        seconds = time.perf_counter() - began
        time.sleep(SETTLE_SECONDS)
        loop, probes = self.server.report(), self.prober.report()
        del probes["failed"]  # a server may refuse a heartbeat while it is full
        ended = "; ".join(outcome) or "OK"
        self.seen.append(Seen(row=name, **loop, **probes, seconds=seconds, outcome=ended))


@contextlib.contextmanager
def ground(folder: Path, scale: float, *flags: str, db: Path | None = None) -> Iterator[Ground]:
    """Start a watched server, its prober and a channel to it, over a new data file or a given one."""
    place = db or Path(tempfile.mkdtemp(dir=folder)) / "store.db"
    with contenders.watch(place, *flags, RETENTION_LOOK_SECONDS="1") as server:
        prober = Prober(server.address)
        try:
            with grpc.insecure_channel(server.address, options=OPTIONS) as channel:
                yield Ground(server, place, prober, channel, scale)
        finally:
            prober.stop()


@contextlib.contextmanager
def paused_backup(ground: Ground) -> Iterator[None]:
    """Begin a backup of the data file and stop its process in the middle of the copy."""
    target = ground.db.with_name("copy.db")
    command = [sys.executable, "-c", "from lightningstore.service.cli.entry import main; main()"]
    process = subprocess.Popen(
        [*command, "backup", str(target), "--db", str(ground.db)],
        cwd=contenders.ROOT,
        env=contenders.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    draft = target.with_name(f".{target.name}.{process.pid}")
    try:
        while process.poll() is None and not (draft.exists() and draft.stat().st_size):
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        yield
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        for path in (target, draft, Path(f"{draft}-journal")):
            path.unlink(missing_ok=True)
