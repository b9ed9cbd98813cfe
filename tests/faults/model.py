"""What SPEC sections 2 and 6 say of rollouts, attempts, workers and time, in plain lists. Slow and obvious.

Retries that become due at one instant share a place in the queue: which of them comes first is left open.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from tests.faults.consumer_model import Consumer, Refused

FINISHED = ("succeeded", "failed", "cancelled")
LIVE = ("preparing", "running")
ORPHAN_SILENCE = 600.0
#: Versions that are kept of each resources id.
KEPT = 2


@dataclass
class Attempt:
    """One try. Times are monotonic."""

    worker: str
    started: float
    heard: float
    status: str = "preparing"
    spans: int = 0
    #: The resources that it was claimed with: id, version, publish number.
    resources: tuple[str, int, int] = ("", 0, 0)


@dataclass
class Rollout:
    """One task. `place`: of its turn in the queue, 0 outside; `ready`: when it may be claimed."""

    priority: int = 0
    timeout: float | None = None
    silence: float | None = None
    most: int = 1
    #: Id of its resources, "latest" to follow the latest, or "".
    resources_id: str = ""
    retry: tuple[str, ...] = ()
    backoff: float = 0.0
    status: str = "queuing"
    place: int = 0
    ready: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)
    #: Completion number; 0 while it has none.
    number: int = 0
    queue: str = ""
    #: Name of its group, or a label.
    group: str = ""

    @property
    def finished(self) -> bool:
        """Whether its status is final."""
        return self.status in FINISHED


@dataclass
class Group:
    """Rollouts that complete together. `claimed`: when its deadline began to count; None before."""

    size: int
    deadline: float | None = None
    cancels: bool = True
    claimed: float | None = None
    closed: bool = False
    passed: bool = False
    number: int = 0


class Model:
    """A store. Every method is an event, at the time `now`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.rollouts: dict[str, Rollout] = {}
        self.workers: dict[str, str] = {}
        self.instant = 0  # events so far
        self.finishes = 0
        self.paused = False
        self.groups: dict[str, Group] = {}
        self.completions = 0
        self.publications = 0
        #: Versions that are kept, by id: version and publish number, oldest first.
        self.versions: dict[str, list[tuple[int, int]]] = {}
        self.consumers: dict[str, Consumer] = {}

    # Resources

    def publish(self, resources_id: str) -> tuple[int, int]:
        """Update resources; returns the version and the publish number. Two versions, and those in use, are kept."""
        self.publications += 1
        kept = self.versions.setdefault(resources_id, [])
        kept.append((kept[-1][0] + 1 if kept else 1, self.publications))
        attempts = [a for r in self.rollouts.values() for a in r.attempts if a.status in LIVE]
        used = [a.resources[1] for a in attempts if a.resources[0] == resources_id]
        self.versions[resources_id] = [
            version for version in kept if version in kept[-KEPT:] or version[0] in used
        ]
        return kept[-1]

    def latest(self) -> str:
        """Return the id that was published last, "" without any."""
        ids = {versions[-1][1]: resources_id for resources_id, versions in self.versions.items()}
        return ids[max(ids)] if ids else ""

    def _resources(self, rollout: Rollout) -> tuple[str, int, int]:
        """Return what a claim uses."""
        latest = rollout.resources_id == "latest"
        resources_id = self.latest() if latest else rollout.resources_id
        return (resources_id, *self.versions[resources_id][-1]) if resources_id else ("", 0, 0)

    # Groups

    def members(self, name: str) -> list[Rollout]:
        """Return the rollouts with the id of a group."""
        return [r for r in self.rollouts.values() if name and r.group == name]

    def create(self, name: str, group: Group) -> None:
        """Create a group, unless it is there."""
        old = self.groups.get(name)
        if old is not None:
            same = (old.size, old.deadline, old.cancels)
            if same != (group.size, group.deadline, group.cancels):
                raise Refused
            return
        members = self.members(name)
        if len(members) > group.size:
            raise Refused
        self.groups[name] = group
        if any(r.attempts for r in members):
            group.claimed = self.now
        self._settle(name)

    def move(self, rollout: Rollout, name: str) -> None:
        """Give a rollout another group."""
        if rollout.group == name:
            return
        self._check_room(name)
        left, rollout.group = rollout.group, name
        self._left(left)
        self._joined(rollout)

    def _check_room(self, name: str) -> None:
        group = self.groups.get(name)
        if group is not None and (group.closed or len(self.members(name)) >= group.size):
            raise Refused

    def _joined(self, rollout: Rollout) -> None:
        group = self.groups.get(rollout.group)
        if group is not None and rollout.attempts and group.claimed is None:
            group.claimed = self.now
        self._settle(rollout.group)

    def _left(self, name: str) -> None:
        if name in self.groups and not self.members(name):
            del self.groups[name]
        self._settle(name)

    def _settle(self, name: str) -> None:
        group = self.groups.get(name)
        if group is None:
            return
        members = self.members(name)
        finished = sum(r.finished for r in members)
        done = finished >= group.size or (group.closed and finished == len(members))
        if done and not group.number:
            self.completions += 1
            group.number, group.closed = self.completions, True
        elif not done:
            group.number = 0

    def _ends(self, group: Group) -> float | None:
        """Return when a group closes."""
        if group.closed or group.deadline is None or group.claimed is None:
            return None
        return group.claimed + group.deadline

    def _close_groups(self) -> None:
        due = [(e, n) for n, g in self.groups.items() if (e := self._ends(g)) is not None]
        for end, name in sorted(due):
            group = self.groups[name]
            if end > self.now or group.closed:
                continue
            group.closed = group.passed = True
            self._settle(name)
            for rollout in self.members(name) if group.cancels else ():
                self.cancel(rollout)

    # Queue and claims

    def enqueue(self, name: str, rollout: Rollout) -> None:
        """Add a rollout at the tail, unless it is there."""
        if name not in self.rollouts:
            self._check_room(rollout.group)
            rollout.resources_id = rollout.resources_id or self.latest()
            self.rollouts[name] = rollout
            self._tail(rollout)
            self._joined(rollout)

    def candidates(self, queues: Collection[str] = ("",)) -> list[str]:
        """Return those that may be claimed next; several only where they came at one instant."""
        ready = {n: r for n, r in self.rollouts.items() if r.place and r.ready <= self.now}
        waiting = {
            name: rollout
            for name, rollout in ready.items()
            if rollout.queue in queues and not self.paused and not self._is_held_back(rollout)
        }
        first = min(((-r.priority, r.place) for r in waiting.values()), default=None)
        return [n for n, r in waiting.items() if (-r.priority, r.place) == first]

    def _is_held_back(self, rollout: Rollout) -> bool:
        return any(consumer.refuses(self, rollout) for consumer in self.consumers.values())

    def claim(self, name: str, worker: str) -> None:
        """Start an attempt."""
        rollout = self.rollouts[name]
        if rollout.status == "cancelled" or self.paused:
            raise Refused
        self._out(rollout)
        rollout.status, rollout.number = "preparing", 0
        attempt = Attempt(worker, self.now, self.now, resources=self._resources(rollout))
        rollout.attempts.append(attempt)
        self._joined(rollout)
        if worker:
            self.workers[worker] = "busy"

    def asked_in_vain(self, worker: str) -> None:
        """Note a worker that got nothing."""
        if worker and not self._busy(worker):
            self.workers[worker] = "idle"

    # What runners say

    def stop(self, rollout: Rollout, attempt: Attempt) -> str:
        """Return why the runner of an attempt should stop."""
        if rollout.status == "cancelled":
            return "rollout_cancelled"
        if attempt is not rollout.attempts[-1]:
            return "superseded"
        return "rollout_finished" if rollout.finished else ""

    def heard(self, rollout: Rollout, attempt: Attempt, *, by_span: bool) -> None:
        """Take a span or a heartbeat."""
        attempt.heard = self.now
        if (by_span and attempt.status == "preparing") or (
            attempt.status == "unresponsive" and not rollout.finished
        ):
            self._status(attempt, "running")
        self._runs(rollout, attempt)
        self._worker_heard(attempt.worker)

    def beat(self, worker: str) -> None:
        """Take a worker's heartbeat."""
        self.workers[worker] = {"unknown": "idle", None: "unknown"}.get(
            self.workers.get(worker), self.workers.get(worker, "")
        )

    def report(self, rollout: Rollout, attempt: Attempt, word: str, *, retryable: bool) -> None:
        """Take a word about an attempt."""
        latest = attempt is rollout.attempts[-1]
        if word == attempt.status:
            pass
        elif word == "running":
            revives = attempt.status == "unresponsive" and not rollout.finished
            if attempt.status != "preparing" and not revives:
                raise Refused
            self._status(attempt, word)
            self._runs(rollout, attempt)
        elif attempt.status in ("succeeded", "failed") and latest and rollout.status != "cancelled":
            raise Refused
        else:
            self._end(rollout, attempt, word, retryable=retryable, verdict=False)
        self._worker_heard(attempt.worker)

    def put(self, rollout: Rollout, status: str) -> None:
        """Set the status of a rollout."""
        if status == rollout.status:
            return
        if status in FINISHED and not rollout.finished:
            self._finish(rollout, status)
        elif status in ("queuing", "requeuing"):
            rollout.status, rollout.number = status, 0
            self._tail(rollout)
            self._settle(rollout.group)
        else:
            raise Refused

    def cancel(self, rollout: Rollout) -> None:
        """Cancel, unless it is finished."""
        if not rollout.finished:
            self._finish(rollout, "cancelled")

    def delete(self, name: str) -> None:
        """Delete a finished rollout without a live attempt."""
        rollout = self.rollouts[name]
        if not rollout.finished or any(a.status in LIVE for a in rollout.attempts):
            raise Refused
        del self.rollouts[name]
        self._left(rollout.group)

    # Time

    def deadline(self, rollout: Rollout, attempt: Attempt) -> float | None:
        """Return when a live attempt is overdue."""
        ends = []
        if rollout.timeout is not None:
            ends.append(attempt.started + rollout.timeout)
        if rollout.silence is not None:
            ends.append(attempt.heard + rollout.silence)
        if not ends and rollout.finished:
            ends.append(attempt.heard + ORPHAN_SILENCE)
        return min(ends, default=None)

    def pass_time(self, seconds: float) -> None:
        """Let time pass with the watchdog awake."""
        until = self.now + seconds
        while (due := self._next_deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self.expire()
        self._move(until - self.now)

    def stall(self, seconds: float) -> None:
        """Let time pass in which the server cannot hear. It notices unless nothing could come due."""
        waiting = any(r.ready > self.now for r in self.rollouts.values())
        noticed = waiting or self._next_deadline() is not None
        self._move(seconds)
        if noticed:
            for attempt in (a for r in self.rollouts.values() for a in r.attempts):
                attempt.heard = self.now
        self.expire()

    def restart(self, down: float) -> None:
        """Stop and start again: time goes on, whatever the wall clock says."""
        self._move(down)
        for rollout in self.rollouts.values():
            for attempt in rollout.attempts:
                attempt.heard = self.now
        self.expire()

    def expire(self) -> None:
        """End all that is overdue now, in the order of the deadlines."""
        self.instant += 1
        live = [(r, a) for r in self.rollouts.values() for a in r.attempts if a.status in LIVE]
        due = [(d, n) for n, (r, a) in enumerate(live) if (d := self.deadline(r, a)) is not None]
        for deadline, n in sorted(due):
            if deadline <= self.now:
                rollout, attempt = live[n]
                late = rollout.timeout is not None and attempt.started + rollout.timeout <= self.now
                word = "timeout" if late and not rollout.finished else "unresponsive"
                self._end(rollout, attempt, word, retryable=True, verdict=True)
        self._close_groups()

    # Consequences

    def _next_deadline(self) -> float | None:
        live = [(r, a) for r in self.rollouts.values() for a in r.attempts if a.status in LIVE]
        ends = [self.deadline(r, a) for r, a in live] + [
            self._ends(group) for group in self.groups.values()
        ]
        return min((end for end in ends if end is not None), default=None)

    def _move(self, seconds: float) -> None:
        self.now += seconds

    def _end(
        self, rollout: Rollout, attempt: Attempt, word: str, *, retryable: bool, verdict: bool
    ) -> None:
        self._status(attempt, word, verdict=verdict)
        if attempt is not rollout.attempts[-1] or rollout.finished:
            return
        if word == "succeeded":
            self._finish(rollout, "succeeded")
        elif not retryable or word not in rollout.retry or len(rollout.attempts) >= rollout.most:
            self._finish(rollout, "failed")
        elif rollout.status != "requeuing":
            rollout.status = "requeuing"
            self._tail(rollout, rollout.backoff, verdict=verdict)

    def _status(self, attempt: Attempt, status: str, *, verdict: bool = False) -> None:
        was_live, attempt.status = attempt.status in LIVE, status
        if status in LIVE and not was_live:
            attempt.heard = self.now
            if attempt.worker:
                self.workers[attempt.worker] = "busy"
        elif was_live and status not in LIVE and attempt.worker and not self._busy(attempt.worker):
            self.workers[attempt.worker] = "unknown" if verdict else "idle"

    def _busy(self, worker: str) -> bool:
        attempts = (a for r in self.rollouts.values() for a in r.attempts)
        return any(a.worker == worker and a.status in LIVE for a in attempts)

    def _worker_heard(self, worker: str) -> None:
        if self.workers.get(worker) == "unknown":
            self.workers[worker] = "idle"

    def _runs(self, rollout: Rollout, attempt: Attempt) -> None:
        waits = rollout.status in ("queuing", "preparing", "requeuing")
        if attempt is rollout.attempts[-1] and attempt.status == "running" and waits:
            rollout.status = "running"
            self._out(rollout)

    def _finish(self, rollout: Rollout, status: str) -> None:
        self.finishes += 1
        rollout.status, rollout.number = status, self.finishes
        self._out(rollout)
        self._settle(rollout.group)
        latest = rollout.attempts[-1] if rollout.attempts else None
        for attempt in rollout.attempts[:-1]:
            left = attempt.status in LIVE and attempt.worker and attempt.worker == latest.worker
            if left and rollout.timeout is None and rollout.silence is None:
                self._status(attempt, "unresponsive")  # its worker has gone on to the latest

    def _tail(self, rollout: Rollout, delay: float = 0.0, *, verdict: bool = False) -> None:
        self.instant += not verdict
        rollout.place = self.instant
        rollout.ready = self.now + delay

    def _out(self, rollout: Rollout) -> None:
        rollout.place, rollout.ready = 0, 0.0
