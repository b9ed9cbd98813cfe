"""Attributes of a span, or of its resource, that say where the span belongs."""

from __future__ import annotations

#: The rollout and the attempt.
ROLLOUT_ID = "agentlightning.rollout_id"
ATTEMPT_ID = "agentlightning.attempt_id"
#: The sequence id within the attempt.
SEQUENCE_ID = "agentlightning.span_sequence_id"
