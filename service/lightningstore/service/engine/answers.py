"""Builds large answers in slices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.rules.rows import Shown
from lightningstore.v1.rollout_pb2 import Rollout


async def compose_all(
    engine: Engine, rollouts: Sequence[Shown], targets: Iterable[Rollout], limit: int | None
) -> None:
    """Fill the rollouts of an answer. `targets` may add them as they are taken.

    If together they exceed the limit, all of them are filled without payloads. A rollout whose
    input can no longer be loaded is also returned without payloads.
    """
    turn, total = Turn(), 0
    if limit is not None:
        for shown in rollouts:
            total += shown.size()
            if turn.over():
                await turn.next()
    fill = Shown.compose_bare
    if limit is None or total <= limit:
        fill = Shown.compose
        rollouts = await engine.with_inputs(rollouts)
    for shown, target in zip(rollouts, targets, strict=True):
        fill(shown, target)
        if turn.over():
            await turn.next()
