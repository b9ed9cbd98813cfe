"""PauseClaims and ResumeClaims."""

from __future__ import annotations

from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.live import ROW_BYTES
from lightningstore.service.rules.ids import check_label
from lightningstore.service.rules.times import stamp
from lightningstore.v1.claim_pb2 import (
    ClaimPause,
    PauseClaimsRequest,
    PauseClaimsResponse,
    ResumeClaimsRequest,
    ResumeClaimsResponse,
)


class Pauses:
    """The calls that pause and resume claims. The pause is a part of the counters, which every commit saves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live

    async def pause_claims(self, request: PauseClaimsRequest) -> PauseClaimsResponse:
        """Let no attempt begin."""
        self._engine.committer.admit(report=True)
        check_label("reason", request.reason)
        if self._engine.requests.find("PauseClaims", request) is None:
            counters = self._live.state.counters
            start_ns = counters.pause[0] if counters.pause else self._engine.clock.wall_ns()
            self._set([start_ns, request.reason])
            self._engine.remember("PauseClaims", request, PauseClaimsResponse())
        reply = PauseClaimsResponse(
            pause=self.pause, running_attempt_count=self._live.running_attempt_count
        )
        await self._engine.commit()
        return reply

    async def resume_claims(self, request: ResumeClaimsRequest) -> ResumeClaimsResponse:
        """Let attempts begin, first those of the long polls that wait."""
        self._engine.committer.admit(report=True)
        answer = self._engine.requests.find("ResumeClaims", request)
        if answer is not None:
            reply = ResumeClaimsResponse.FromString(answer)
        else:
            reply = ResumeClaimsResponse(ended_pause=self.pause)
            self._set([])
            self._engine.remember("ResumeClaims", request, reply)
            self._live.state.queue.feed_all()
            self._engine.polls.serve()
        reply.running_attempt_count = self._live.running_attempt_count
        await self._engine.commit()
        return reply

    def _set(self, pause: list[object]) -> None:
        counters = self._live.state.counters
        if counters.pause != pause:
            counters.pause = pause
            self._engine.changes.size += ROW_BYTES

    @property
    def pause(self) -> ClaimPause | None:
        """The pause, None if claims are not paused."""
        pause = self._live.state.counters.pause
        return ClaimPause(start_time=stamp(pause[0]), reason=pause[1]) if pause else None
