"""ListTriplets, attempt by attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from lightningstore.service import triplets
from lightningstore.service.engine.clock import Turn
from lightningstore.service.operations.traces import Batches, Target, Traces
from lightningstore.service.rules import wire
from lightningstore.service.rules.limits import CHUNK_BYTES
from lightningstore.service.triplets import Call, Options, Warnings
from lightningstore.v1.attempt_pb2 import AttemptRef
from lightningstore.v1.triplet_pb2 import (
    AttemptTriplets,
    ListTripletsRequest,
    ListTripletsResponse,
    Triplet,
)

_ATTEMPTS = ListTripletsResponse.ATTEMPTS_FIELD_NUMBER
_TRIPLETS = AttemptTriplets.TRIPLETS_FIELD_NUMBER


class Triplets:
    """The call of triplet.proto."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    async def list_triplets(self, request: ListTripletsRequest) -> AsyncIterator[bytes | None]:
        """Yield None once all rollouts are found, then ListTripletsResponses of about 1 MiB."""
        options = Options.of(request)

        def answer(target: Target, batches: Batches) -> AsyncIterator[bytes]:
            final = None
            if target.rollout_id in request.final_rewards:
                final = request.final_rewards[target.rollout_id]
            return self._attempt(target, batches, options, final)

        async for data in self._traces.stream(request, _ATTEMPTS, answer):
            yield data

    async def _attempt(
        self, target: Target, batches: Batches, options: Options, final: float | None
    ) -> AsyncIterator[bytes]:
        """Yield the parts of an attempt's answer, of about 1 MiB each, serialised."""
        warnings = Warnings()
        part = _part(target)
        if target.attempt_key is None:
            part.complete = True
            yield part.SerializeToString()
            return
        turn = Turn()
        trace = await self._traces.calls(batches, options, warnings, turn)
        # Triplets are kept serialised, because adding them to a message would copy each one.
        made: list[bytes] = []
        size = 0
        for at, call in enumerate(trace.calls):
            triplet = await self._triplet(call, batches, options, warnings)
            if final is not None and at == len(trace.calls) - 1:
                triplet.reward.CopyFrom(triplets.final_reward(final))
            data = triplet.SerializeToString()
            made += (wire.header(_TRIPLETS, len(data)), data)
            size += len(data)
            if size >= CHUNK_BYTES:
                yield _joined(part, made)
                made, size = [], 0
            if turn.over():
                await turn.next()
        if final is not None and not trace.calls:
            warnings.add((0, b""), "", "the final reward has no call")
        for node in trace.unmatched:
            if node.reward is not None:
                part.unmatched_rewards.append(
                    triplets.reward_message(node.reward, node.span_id, node.sequence_id)
                )
            size += 64
            if size >= CHUNK_BYTES:
                yield _joined(part, made)
                part, made, size = _part(target), [], 0
            if turn.over():
                await turn.next()
        part.warnings.extend(warnings.messages())
        part.warning_count = warnings.count
        part.complete = True
        yield _joined(part, made)

    async def _triplet(
        self, call: Call, batches: Batches, options: Options, warnings: Warnings
    ) -> Triplet:
        spans, weight = await batches.spans(call.records)
        tools, more = await batches.spans(call.tools)
        work = partial(triplets.triplet_of, call, spans, tools, options, warnings)
        triplet = await self._traces.read(weight + more, work)
        if call.following is not None and triplets.lacks_answer(call, triplet):
            (following,), weight = await batches.spans([call.following])
            weight += len(triplet.prompt.content_json)
            await self._traces.read(weight, partial(triplets.add_answer, triplet, following))
        if options.as_messages:
            weight = len(triplet.prompt.content_json) + len(triplet.response.content_json)
            await self._traces.read(weight, partial(triplets.use_messages, triplet))
        return triplet


def _part(target: Target) -> AttemptTriplets:
    ids = AttemptRef(rollout_id=target.rollout_id, attempt_id=target.attempt_id)
    return AttemptTriplets(attempt=ids)


def _joined(part: AttemptTriplets, made: list[bytes]) -> bytes:
    """Return a part with its serialised triplets."""
    return b"".join((part.SerializeToString(), *made))
