"""EnqueueRollouts, and creating a rollout from its specification."""

from __future__ import annotations

import zlib
from typing import NamedTuple, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.engine.answers import compose_all
from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.requests import rollouts_of
from lightningstore.service.engine.state import Entry
from lightningstore.service.operations.bulk import Bulk
from lightningstore.service.operations.grouping import Grouping, Made, Members, make
from lightningstore.service.rules import wire
from lightningstore.service.rules.checks import (
    check_config,
    check_enum,
    check_json,
    check_labels,
    check_metadata,
    check_queue,
)
from lightningstore.service.rules.copies import evolve
from lightningstore.service.rules.errors import (
    FieldInvalid,
    PayloadTooLarge,
    QueueFull,
    ResourcesNotFound,
    RolloutExists,
)
from lightningstore.service.rules.ids import LATEST, check_label, check_new_id, new_id
from lightningstore.service.rules.rows import Shown
from lightningstore.v1.rollout_pb2 import (
    ROLLOUT_STATUS_QUEUING,
    EnqueueRolloutsRequest,
    EnqueueRolloutsResponse,
    Rollout,
    RolloutMode,
    RolloutSpec,
)

R = TypeVar("R", bound=Message)

NONE: frozenset[str] = frozenset()


class Prepared(NamedTuple):
    """The checked items of an EnqueueRollouts, none of which is stored yet."""

    #: In the order of the request. Known rollouts have a key.
    entries: list[Entry]
    #: The new ones among them, each once.
    new: list[Entry]
    #: Their ids, which others may take until they are stored.
    ids: list[str]
    #: The new ones by the id of their group.
    members: dict[str, list[Entry]]
    #: All of them as the answer shows them, if they are new: that does not change until they are stored.
    shown: list[Shown]
    #: Positions of the others.
    known: list[int]
    #: The part of the answer that is stored with a request id: an id for each item without one.
    kept: EnqueueRolloutsResponse
    #: When the new ones were created.
    now: Timestamp


class Enqueue:
    """EnqueueRollouts."""

    def __init__(self, engine: Engine, bulk: Bulk) -> None:
        self._engine = engine
        self._live = engine.live
        self._bulk = bulk
        self._grouping = Grouping(engine)

    async def enqueue_rollouts(self, request: EnqueueRolloutsRequest) -> EnqueueRolloutsResponse:
        """Create groups, and add rollouts to the tail of the queue, all of them or none."""
        self._engine.committer.admit()
        self._engine.check_batch("rollouts", len(request.rollouts))
        failures = self._engine.committer.failures
        with self._live.state.held, self._engine.committer.reserved(request.ByteSize()):
            await self._load_named(request)
            digest = await _digest(request) if request.request_id else 0
            answer = self._engine.requests.find("EnqueueRollouts", request, digest)
            if answer is not None:
                return await self._replay_enqueue(request, answer)
            prepared = await self._prepare(request)
            new = prepared.members
            made: dict[str, Made] = {}
            members: Members = {}
            if request.groups:
                made = await self._grouping.prepare(request, new, prepared.now)
            if made or self._live.groups.exist:  # else the ids of groups are labels
                with self._live.groups.reading() as reading:
                    members = await self._grouping.load(made, new, reading)
            self._engine.check_unbroken(failures)
            # No other task runs from here to the seal.
            answer = self._engine.requests.find("EnqueueRollouts", request, digest)
            if answer is not None:
                return await self._replay_enqueue(request, answer)
            self._settle_ids(request, prepared, made)
            self._check_queue_length(len(prepared.new))
            self._grouping.check(made, new, members)
            shown = self._shown(prepared)
            created = self._grouping.create(made, members) if made else NONE
            self._bulk.enqueue_all(prepared.new)
            if new:
                self._grouping.join(new, created)
            if request.request_id:
                self._engine.remember("EnqueueRollouts", request, prepared.kept, digest)
            self._engine.polls.serve()
            number = self._engine.seal_changes()
        reply = EnqueueRolloutsResponse()
        targets = (reply.rollouts.add() for _ in shown)
        all_new = len(prepared.new) == len(shown)  # then they were found to fit
        limit = None if all_new else self._engine.limits.message_bytes
        await compose_all(self._engine, shown, targets, limit)
        await self._engine.durable_since(number, failures)
        return reply

    async def _load_named(self, request: EnqueueRolloutsRequest) -> None:
        """Load the rollouts that a request names.

        Inputs that are not in memory are loaded only if they have the size of those in the request: they are
        loaded to be compared.
        """
        named = [spec for spec in request.rollouts if spec.rollout_id]
        if not named:
            return
        entries = {
            entry.rollout.rollout_id: entry
            for entry in await self._engine.load_many(spec.rollout_id for spec in named)
        }
        compared = [
            spec.rollout_id
            for spec in named
            if spec.rollout_id in entries
            and entries[spec.rollout_id].input_bytes == len(spec.input_json)
        ]
        await self._engine.load_many(compared, inputs=True)

    def _check_queue_length(self, added: int) -> None:
        """Raise QueueFull if the queue has no room for the added rollouts."""
        longest = self._engine.limits.queue_length
        if added and 0 < longest < self._live.queue_depth + added:
            raise QueueFull(longest)

    async def _prepare(self, request: EnqueueRolloutsRequest) -> Prepared:
        """Check all items and create the new rollouts, without changing the store."""
        now, turn = self._live.now(), Turn()
        prepared = Prepared([], [], [], {}, [], [], EnqueueRolloutsResponse(), now)
        named: dict[str, Entry] = {}
        made: list[str] = []
        inputs = answer = 0
        for i, spec in enumerate(request.rollouts):
            known = None
            if spec.rollout_id:
                known = self._live.state.entries.get(spec.rollout_id) or named.get(spec.rollout_id)
            entry = known
            if entry is None:
                rollout_id = spec.rollout_id or self.free_id()
                entry = self.new_entry(f"rollouts[{i}]", spec, now, rollout_id)
                prepared.new.append(entry)
                prepared.ids.append(rollout_id)
                if spec.group_id:
                    prepared.members.setdefault(spec.group_id, []).append(entry)
            elif not _same_content(spec, entry):
                raise RolloutExists(spec.rollout_id)
            else:
                prepared.known.append(i)
            shown = entry.shown()
            prepared.shown.append(shown)
            if known is None:
                answer += shown.size()
            if spec.rollout_id:
                named[spec.rollout_id] = entry
            else:
                made.append(entry.rollout.rollout_id)
            if request.request_id:
                prepared.kept.rollouts.add(rollout_id="" if spec.rollout_id else made[-1])
            prepared.entries.append(entry)
            inputs += len(spec.input_json)
            if turn.over():
                await turn.next()
        self._check_sizes(inputs, answer)
        # A generated id may, by chance, be that of a rollout that has left memory.
        if made:
            await self._engine.load_taken(made)
        return prepared

    def _check_sizes(self, inputs: int, answer: int) -> None:
        """Raise PayloadTooLarge if the inputs, or the new rollouts of the answer, have too many bytes."""
        limits = self._engine.limits
        if inputs > limits.inputs_bytes:
            raise PayloadTooLarge("rollouts[].input_json", inputs, limits.inputs_bytes)
        if answer > limits.message_bytes:
            raise PayloadTooLarge("rollouts (answer)", answer, limits.message_bytes)

    def _settle_ids(
        self, request: EnqueueRolloutsRequest, prepared: Prepared, made: dict[str, Made]
    ) -> None:
        """Replace generated ids that exist or have been taken since. Raises RolloutExists."""
        taken = self._live.state.entries
        if not any(map(taken.__contains__, prepared.ids)):
            return
        for i, (spec, entry) in enumerate(zip(request.rollouts, prepared.entries, strict=True)):
            known = taken.get(entry.rollout.rollout_id)
            if known is None or known is entry:
                continue
            if not spec.rollout_id:
                # The record is this operation's own, which is not visible yet.
                entry.rollout.rollout_id = self.free_id()
                if request.request_id:
                    prepared.kept.rollouts[i].rollout_id = entry.rollout.rollout_id
            elif _same_content(spec, known):
                prepared.entries[i] = known
                prepared.known.append(i)
                if entry in prepared.new:
                    self._leave_out(entry, prepared, made)
            else:
                raise RolloutExists(spec.rollout_id)

    @staticmethod
    def _leave_out(entry: Entry, prepared: Prepared, made: dict[str, Made]) -> None:
        """Leave a rollout out of the new ones, because another call has stored it."""
        prepared.new.remove(entry)
        group_id = entry.rollout.group_id
        if group_id:
            left = prepared.members[group_id]
            left.remove(entry)
            if not left:
                del prepared.members[group_id]
            if group_id in made:
                made[group_id] = make(made[group_id].spec, left, prepared.now)

    @staticmethod
    def _shown(prepared: Prepared) -> list[Shown]:
        """Return all rollouts as the answer shows them, the known ones as they are now."""
        for i in prepared.known:
            prepared.shown[i] = prepared.entries[i].shown()
        return prepared.shown

    def free_id(self) -> str:
        """Return a new rollout id that is not in memory."""
        while (rollout_id := new_id("ro-", 12)) in self._live.state.entries:
            pass
        return rollout_id

    async def _replay_enqueue(
        self, request: EnqueueRolloutsRequest, answer: bytes
    ) -> EnqueueRolloutsResponse:
        reply = EnqueueRolloutsResponse.FromString(answer)
        for spec, reference in zip(request.rollouts, reply.rollouts, strict=True):
            if spec.rollout_id:
                reference.rollout_id = spec.rollout_id
        return await self.replay(reply)

    def new_entry(self, field: str, spec: RolloutSpec, now: Timestamp, rollout_id: str) -> Entry:
        """Check a specification and create its rollout, which is not stored yet."""
        self._check_spec(field, spec)
        config = spec.config if spec.HasField("config") else None
        if config is not None:
            check_config(f"{field}.config", config)
        resources_id, resources = spec.resources_id, self._live.state.resources
        if not resources_id and resources.latest is not None:
            resources_id = resources.latest.resources_id
        if resources_id not in ("", LATEST) and resources_id not in resources:
            raise ResourcesNotFound(resources_id)
        record = Rollout()  # keywords cost three times as much as assignments
        record.rollout_id = rollout_id
        record.status = ROLLOUT_STATUS_QUEUING
        record.start_time.CopyFrom(now)
        for name in ("mode", "priority", "group_id", "metadata_json", "queue"):
            if value := getattr(spec, name):
                setattr(record, name, value)
        if spec.labels:
            record.labels.update(spec.labels)
        if resources_id:
            record.resources_id = resources_id
        stored = record.config
        if config is not None:
            stored.CopyFrom(config)
        if not stored.max_attempts:
            stored.max_attempts = 1
        return Entry(0, record, spec.input_json)

    def _check_spec(self, field: str, spec: RolloutSpec) -> None:
        """Check what does not depend on the store. Raises FieldInvalid, PayloadTooLarge."""
        if not spec.input_json:
            raise FieldInvalid(f"{field}.input_json", "required: a JSON value, null for none")
        if len(spec.input_json) > self._engine.limits.input_bytes:
            raise PayloadTooLarge(
                f"{field}.input_json", len(spec.input_json), self._engine.limits.input_bytes
            )
        check_json(f"{field}.input_json", spec.input_json)
        if spec.metadata_json:
            check_metadata(
                f"{field}.metadata_json", spec.metadata_json, self._engine.limits.metadata_bytes
            )
        # Most have few fields, and a name for each that is empty would take longer than to look.
        if spec.rollout_id:
            check_new_id(f"{field}.rollout_id", spec.rollout_id)
        if spec.group_id:
            check_label(f"{field}.group_id", spec.group_id)
        if spec.mode:
            check_enum(f"{field}.mode", RolloutMode, spec.mode, unspecified=True)
        if spec.queue:
            check_queue(f"{field}.queue", spec.queue)
        if spec.labels:
            check_labels(f"{field}.labels", spec.labels)

    async def replay(self, answer: R, limit: int = 0) -> R:
        """Return the answer to a repeated request id, with its rollouts in their current state.

        A claim keeps the attempt that it created, even if a newer one has replaced it. Payloads
        that exceed `limit` are omitted; the default is the message limit.
        """
        targets = rollouts_of(answer)
        shown: list[Shown] = []
        with self._live.state.held:
            found = await self._engine.load_many(target.rollout_id for target in targets)
            entries = {entry.rollout.rollout_id: entry for entry in found}
            for target in targets:
                entry = entries.get(target.rollout_id)
                if entry is None:  # it was removed since: its ids are what is left of it
                    kept = Rollout()
                    kept.CopyFrom(target)
                    shown.append(Shown(kept, b"", None))
                else:
                    shown.append(entry.shown(entry.attempts.get(target.latest_attempt.attempt_id)))
        await self._engine.barrier()
        limit = limit or self._engine.limits.message_bytes
        await compose_all(self._engine, shown, targets, limit)
        return answer


async def _digest(request: EnqueueRolloutsRequest) -> int:
    """Return the same as `ids.digest`, without a copy of the whole request; 0 without a request id."""
    number = 0
    if request.request_id:
        turn, tag = Turn(), EnqueueRolloutsRequest.ROLLOUTS_FIELD_NUMBER
        for spec in request.rollouts:
            number = zlib.crc32(wire.field(tag, spec.SerializeToString(deterministic=True)), number)
            if turn.over():
                await turn.next()
        tag = EnqueueRolloutsRequest.GROUPS_FIELD_NUMBER
        for group in request.groups:
            part = group.SerializeToString(deterministic=True)
            number = zlib.crc32(wire.field(tag, part), number)
    return number


def _same_resources(requested: str, stored: str) -> bool:
    """Return whether a request for resources led to what is stored. An empty one named the latest of its time."""
    return requested == stored or (not requested and stored != LATEST)


def _same_content(spec: RolloutSpec, entry: Entry) -> bool:
    """Return whether a rollout was created from this specification."""
    record = entry.rollout
    config = evolve(spec.config, max_attempts=spec.config.max_attempts or 1)
    return (
        spec.input_json == entry.input_json
        and spec.mode == record.mode
        and spec.priority == record.priority
        and spec.group_id == record.group_id
        and _same_resources(spec.resources_id, record.resources_id)
        and spec.queue == record.queue
        and spec.labels == record.labels
        and spec.metadata_json == record.metadata_json
        and config == record.config
    )
