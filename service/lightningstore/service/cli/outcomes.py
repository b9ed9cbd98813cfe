"""How rollouts and imports end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightningstore.service.cli.units import count

if TYPE_CHECKING:
    from lightningstore.client import ImportResult

#: Statuses of finished rollouts.
FINISHED = ("succeeded", "failed", "cancelled")


def spans_told(result: ImportResult) -> str:
    """Return the outcome of an import for its spans, for people."""
    told = (
        f"{count(result.accepted_span_count, 'span')} stored, {result.duplicate_span_count:,} known"
    )
    if result.conflict_span_count:
        told += (
            f", {result.conflict_span_count} refused: another span of the attempt has their span_id"
        )
    return told
