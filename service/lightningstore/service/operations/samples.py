"""ListSamples, attempt by attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from lightningstore.service import samples
from lightningstore.service.engine.clock import Turn
from lightningstore.service.operations.traces import (
    EFFORT_PART,
    LARGE_TRACE,
    Batches,
    Target,
    Traces,
)
from lightningstore.service.rules import wire
from lightningstore.service.rules.checks import check_enum
from lightningstore.service.rules.limits import CHUNK_BYTES
from lightningstore.service.rules.times import NANOS
from lightningstore.service.samples import Answer, Fold, HeldIds, Ids, IdsReader, Row
from lightningstore.service.triplets import Call, Options, Warnings
from lightningstore.v1.attempt_pb2 import AttemptRef
from lightningstore.v1.sample_pb2 import (
    SAMPLE_MERGE_NONE,
    AttemptSamples,
    ListSamplesRequest,
    ListSamplesResponse,
    SampleMerge,
)

#: Maximum bytes of token ids held per attempt, besides its spans; others are loaded again when needed.
HELD_IDS_BYTES = 8 << 20
#: Bytes that take as long to read as a segment takes to make.
SEGMENT_BYTES = 256
_SAMPLES = AttemptSamples.SAMPLES_FIELD_NUMBER


class Samples:
    """The call of sample.proto."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    async def list_samples(self, request: ListSamplesRequest) -> AsyncIterator[bytes | None]:
        """Yield None once all rollouts are found, then ListSamplesResponses of about 1 MiB."""
        check_enum("merge", SampleMerge, request.merge, unspecified=True)
        options = Options.of(request)

        def answer(target: Target, batches: Batches) -> AsyncIterator[bytes]:
            return _AttemptSamples(self._traces, target, batches, options, request).parts()

        number = ListSamplesResponse.ATTEMPTS_FIELD_NUMBER
        async for data in self._traces.stream(request, number, answer):
            yield data


class _AttemptSamples:
    """The samples of one attempt."""

    def __init__(
        self,
        traces: Traces,
        target: Target,
        batches: Batches,
        options: Options,
        request: ListSamplesRequest,
    ) -> None:
        self._traces = traces
        self._target = target
        self._batches = batches
        self._options = options
        self._merges = request.merge != SAMPLE_MERGE_NONE
        about = target.about
        reward = about.reward
        if target.rollout_id in request.final_rewards:
            reward = request.final_rewards[target.rollout_id]
        self._about = samples.About(reward, about.scores, about.publish_number)
        self._warnings = Warnings()
        self._turn = Turn()
        self._held = HeldIds(HELD_IDS_BYTES)
        self._reader = IdsReader()
        self._calls: list[Call] = []

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the parts of the answer, of about 1 MiB each, serialised."""
        part = _part(self._target)
        made: list[bytes] = []
        size = 0
        for index, row in enumerate(await self._rows()):
            data = await self._sample(index, row)
            made += (wire.header(_SAMPLES, len(data)), data)
            size += len(data)
            if size >= CHUNK_BYTES:
                yield b"".join((part.SerializeToString(), *made))
                made, size = [], 0
            if self._turn.over():
                await self._turn.next()
        part.warnings.extend(self._warnings.messages())
        part.warning_count = self._warnings.count
        part.complete = True
        yield b"".join((part.SerializeToString(), *made))

    async def _rows(self) -> list[Row]:
        if self._target.attempt_key is None:
            return []
        trace = await self._traces.calls(self._batches, self._options, self._warnings, self._turn)
        self._calls = trace.calls
        fold = Fold()
        missing = 0
        for key, call in enumerate(self._calls):
            ids = await self._read_ids(key, self._warnings)
            if ids.prompt and ids.response:
                self._held.add(key, ids)
                fold.add(key, call.node.where, ids.prompt, ids.response)
            else:
                missing += 1
            if self._turn.over():
                await self._turn.next()
        if missing:
            text = f"{missing} of {len(self._calls)} calls have no token ids: they are in no sample"
            self._warnings.add((0, b""), "", text)
        unplaced = fold.unplaced() if self._merges else ()
        for key in unplaced:
            fold.place(key, (await self._ids(key)).prompt)
            if self._turn.over():
                await self._turn.next()
        return await self._folded(fold)

    async def _folded(self, fold: Fold) -> list[Row]:
        if len(self._calls) > LARGE_TRACE:
            rows, aside = await self._traces.in_thread(fold.rows)
        else:
            rows, aside = fold.rows()
        for call in aside:
            text = "its prompt continues several calls with the same tokens: it is in no sample"
            self._warnings.add(call.where, "", text)
        return rows

    async def _ids(self, key: int) -> Ids:
        return self._held.get(key) or await self._read_ids(key, Warnings())

    async def _read_ids(self, key: int, warnings: Warnings) -> Ids:
        call = self._calls[key]
        spans, weight = await self._batches.spans(call.records)
        work = partial(self._reader.of, call, spans, self._options, warnings)
        return await self._traces.read(weight, work)

    async def _sample(self, index: int, row: Row) -> bytes:
        ids = await self._ids(row.last.key)
        token_ids = ids.prompt + ids.response
        weight = SEGMENT_BYTES * len(row.calls) + len(token_ids) // EFFORT_PART
        calls = [self._calls[folded.key] for folded in row.calls]
        answers = []
        for call in calls:
            answers.append(await self._answer(call, is_last=call is calls[-1]))
            weight += 8 * len(answers[-1].logprobs)
            if self._turn.over():
                await self._turn.next()
        weight += len(answers[-1].prompt_json) + len(answers[-1].response_json)
        args = (index, row, token_ids, calls, answers, self._about, self._warnings)
        return await self._traces.read(weight, partial(samples.sample_of, *args))

    async def _answer(self, call: Call, *, is_last: bool) -> Answer:
        spans, weight = await self._batches.spans(call.records)
        tools, more = await self._batches.spans(call.tools) if is_last else ([], 0)
        work = partial(
            samples.answer_of, call, spans, tools, self._options, self._warnings, is_last=is_last
        )
        answer = await self._traces.read(weight + more, work)
        if call.following is not None and samples.lacks_answer(call, answer):
            (following,), weight = await self._batches.spans([call.following])
            weight += len(answer.prompt_json)
            answer = await self._traces.read(weight, partial(samples.add_answer, answer, following))
        return answer


def _part(target: Target) -> AttemptSamples:
    about = target.about
    part = AttemptSamples(
        attempt=AttemptRef(rollout_id=target.rollout_id, attempt_id=target.attempt_id),
        group_id=about.group_id,
        status=about.status,  # type: ignore[arg-type]
    )
    for field, nanoseconds in ((part.queue_time, about.queue_ns), (part.run_time, about.run_ns)):
        if nanoseconds is not None:
            field.seconds, field.nanos = divmod(nanoseconds, NANOS)
            field.SetInParent()
    return part
