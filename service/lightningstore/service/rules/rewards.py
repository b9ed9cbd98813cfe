"""The reward and the scores of an attempt: checks, which reward counts, and the form in which rewards are sorted."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

from lightningstore.service.rules.copies import evolve
from lightningstore.service.rules.errors import FieldInvalid
from lightningstore.v1.attempt_pb2 import (
    REWARD_SOURCE_REPORTED,
    REWARD_SOURCE_SPANS,
    Attempt,
    SpanReward,
)

#: Maximum number of scores of an attempt, and of characters of their names.
MAX_SCORES, MAX_NAME = 64, 128
#: What update masks may contain, besides the path of a single score.
PATHS = ("reward", "scores")
_ONE_SCORE = "scores."
#: Below and above every reward in its sortable form, and above the form of none.
_LOWEST, _HIGHEST = "0", "g"
_SIGN = 1 << 63
_ALL = (1 << 64) - 1


def check_number(field: str, value: float) -> None:
    """Raise FieldInvalid for a number that is not finite."""
    if not math.isfinite(value):
        raise FieldInvalid(field, f"{value} must be a finite number")


def check_score_name(field: str, name: str) -> None:
    """Raise FieldInvalid for the name of a score that is empty, too long, or has control characters."""
    if not 0 < len(name) <= MAX_NAME or not all(
        character == " " or character.isprintable() for character in name
    ):
        raise FieldInvalid(
            field,
            f"{name!r} must have 1 to {MAX_NAME} characters, none of them a control character",
        )


def check(field: str, record: Attempt, paths: Iterable[str] = ()) -> None:
    """Raise FieldInvalid for a reward, scores, or names of scores in paths that an attempt may not have."""
    for path in paths:
        if (named := score_of(path)) is not None:
            check_score_name("update_mask", named)
    check_number(f"{field}.reward", record.reward)
    if scores := record.scores:
        for name, value in scores.items():
            check_score_name(f"{field}.scores", name)
            check_number(f"{field}.scores[{name!r}]", value)
        check_count(f"{field}.scores", len(scores))


def check_count(field: str, count: int) -> None:
    """Raise FieldInvalid for too many scores."""
    if count > MAX_SCORES:
        raise FieldInvalid(field, f"{count} scores; must be at most {MAX_SCORES}")


def score_of(path: str) -> str | None:
    """Return the name of the score that a path of an update mask names, None for another path."""
    return path.removeprefix(_ONE_SCORE) if path.startswith(_ONE_SCORE) else None


def is_own(path: str) -> bool:
    """Return whether a path of an update names the reward, the scores or one of them."""
    return path in PATHS or path.startswith(_ONE_SCORE)


def report(record: Attempt, given: Attempt, paths: Iterable[str]) -> None:
    """Set the reward and the scores that the paths of an update name, in a copy of a record.

    Raises FieldInvalid if it had too many scores afterwards.
    """
    for path in paths:
        if path == "reward":
            _set_reported(record, given)
        elif path == "scores":
            record.ClearField("scores")
            record.scores.update(given.scores)
        elif (name := score_of(path)) is not None:
            if name in given.scores:
                record.scores[name] = given.scores[name]
            else:
                record.scores.pop(name, None)
    check_count("attempt.scores", len(record.scores))


def _set_reported(record: Attempt, given: Attempt) -> None:
    if given.HasField("reward"):
        record.reward = given.reward
        record.reward_source = REWARD_SOURCE_REPORTED
    elif record.HasField("span_reward"):
        record.reward = record.span_reward.value
        record.reward_source = REWARD_SOURCE_SPANS
    else:
        record.ClearField("reward")
        record.ClearField("reward_source")


def add_from_span(record: Attempt, found: SpanReward) -> None:
    """Record a reward that a span holds in a copy of a record, unless that of a later span is there."""
    if record.HasField("span_reward") and _place(record.span_reward) >= _place(found):
        return
    record.span_reward.CopyFrom(found)
    if record.reward_source != REWARD_SOURCE_REPORTED:
        record.reward = found.value
        record.reward_source = REWARD_SOURCE_SPANS


def later(one: SpanReward | None, other: SpanReward | None) -> SpanReward | None:
    """Return the reward of the span that is later."""
    if one is None or other is None:
        return one or other
    return max(one, other, key=_place)


def place(found: SpanReward, sequence_id: int) -> tuple[int, int, str]:
    """Return what orders the rewards in spans: that of the last span counts."""
    return sequence_id, found.start_time_unix_nano, found.span_id


def _place(found: SpanReward) -> tuple[int, int, str]:
    return place(found, found.sequence_id)


def imported(given: Attempt) -> dict[str, Any]:
    """Return the fields of an imported attempt that say where its reward came from."""
    if not given.HasField("reward"):
        return {"reward_source": None, "span_reward": None}
    if given.reward_source == REWARD_SOURCE_SPANS and given.HasField("span_reward"):
        return {}
    return {"reward_source": REWARD_SOURCE_REPORTED, "span_reward": None}


def without_span_rewards(record: Attempt) -> Attempt:
    """Return a copy without what was taken from spans."""
    copy = evolve(record, span_reward=None)
    if record.reward_source == REWARD_SOURCE_SPANS:
        copy.ClearField("reward")
    copy.ClearField("reward_source")
    return copy


def differ(one: Attempt, other: Attempt) -> bool:
    """Return whether two records of an attempt have different rewards or scores."""
    return (
        one.reward_source != other.reward_source
        or one.reward != other.reward
        or one.scores != other.scores
    )


def sortable(value: float | None) -> str:
    """Return a text that sorts as numbers do; "" for None, which sorts first."""
    if value is None:
        return ""
    (bits,) = struct.unpack(">Q", struct.pack(">d", value + 0.0))  # -0.0 equals 0.0
    return f"{bits ^ (_ALL if bits & _SIGN else _SIGN):016x}"


def check_range(request: Any) -> None:
    """Raise FieldInvalid for a filter by reward with a limit that is not finite."""
    check_number("min_reward", request.min_reward)
    check_number("max_reward", request.max_reward)


def range_of(request: Any) -> tuple[str, str] | None:
    """Return the `reward_range` of a request with min_reward and max_reward."""
    least, most = (
        getattr(request, name) if request.HasField(name) else None
        for name in ("min_reward", "max_reward")
    )
    return reward_range(least, most)


def number_of(text: str) -> float:
    """Return the number of a sortable form that is not empty."""
    bits = int(text, 16)
    (value,) = struct.unpack(">d", struct.pack(">Q", bits ^ (_SIGN if bits & _SIGN else _ALL)))
    return float(value)


def reward_range(least: float | None, most: float | None) -> tuple[str, str] | None:
    """Return what the sortable forms of rewards from `least` to `most` lie between; None for no limit."""
    if least is None and most is None:
        return None
    return sortable(least) or _LOWEST, sortable(most) or _HIGHEST


def packed_scores(scores: Mapping[str, float] | Iterable[tuple[str, float]]) -> str:
    """Return scores as one text in which `score_mark` finds each of them, followed by its sortable value."""
    return "".join(score_mark(name) + sortable(value) for name, value in dict(scores).items())


def score_mark(name: str) -> str:
    """Return what precedes the value of a score in the text of all of them."""
    return f"\t{name}\n"
