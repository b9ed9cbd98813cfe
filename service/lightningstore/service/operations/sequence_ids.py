"""AllocateSequenceIds."""

from __future__ import annotations

from lightningstore.service.engine.engine import Engine
from lightningstore.service.rules.errors import FieldInvalid
from lightningstore.v1.attempt_pb2 import AttemptRef
from lightningstore.v1.span_pb2 import (
    AllocateSequenceIdsRequest,
    AllocateSequenceIdsResponse,
    SequenceIdRange,
)

MAX_SEQUENCE_IDS = 1_000_000


class SequenceIds:
    """AllocateSequenceIds: numbers of spans for callers that number their own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live

    async def allocate_sequence_ids(
        self, request: AllocateSequenceIdsRequest
    ) -> AllocateSequenceIdsResponse:
        """Reserve the next sequence ids of some attempts."""
        self._engine.committer.admit()
        self._engine.check_batch("demands", len(request.demands))
        for i, demand in enumerate(request.demands):
            if not 1 <= demand.count <= MAX_SEQUENCE_IDS:
                raise FieldInvalid(f"demands[{i}].count", f"must be from 1 to {MAX_SEQUENCE_IDS}")
        await self._engine.load_many(d.rollout_id for d in request.demands)
        if (answer := self._engine.requests.find("AllocateSequenceIds", request)) is not None:
            await self._engine.barrier()
            return AllocateSequenceIdsResponse.FromString(answer)
        attempts = [
            self._live.loaded_attempt(d.rollout_id, d.attempt_id, f"demands[{i}].")
            for i, d in enumerate(request.demands)
        ]
        reply = AllocateSequenceIdsResponse()
        for demand, attempt in zip(request.demands, attempts, strict=True):
            reference = AttemptRef(
                rollout_id=demand.rollout_id, attempt_id=attempt.record.attempt_id
            )
            first = attempt.last_sequence_id + 1
            attempt.last_sequence_id += demand.count
            reply.ranges.append(
                SequenceIdRange(attempt=reference, first_sequence_id=first, count=demand.count)
            )
            self._live.save_attempt(attempt)
        if request.request_id:
            self._engine.remember("AllocateSequenceIds", request, reply)
        await self._engine.commit()
        return reply
