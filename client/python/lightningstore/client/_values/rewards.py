"""Rewards in spans: what is one, and which is the last."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lightningstore.client._values.spans import Span
from opentelemetry.proto.trace.v1 import trace_pb2

ANNOTATION = "agentlightning.annotation"
REWARD = "agentlightning.reward"
PRIMARY = "primary"
OUTPUTS = ("agentops.task.output", "agentops.entity.output")
MALFORMED = "not a reward: it must be a finite number"
#: Characters of a text that is read as a reward.
MAX_TEXT = 1 << 16


def finite(value: Any, wanted: str = "a finite number") -> float:
    """Return a reward as a float.

    Raises TypeError for what is not a number, ValueError for one that is not finite, and whatever else
    `float` raises.
    """
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"the reward must be {wanted}, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(
            f"the reward must be {wanted}: this one is too large for a double"
        ) from None
    if not math.isfinite(number):
        raise ValueError(f"the reward must be {wanted}, not {number}")
    return number


def find_final_reward(spans: Iterable[Span]) -> float | None:
    """Return the primary reward of the last span that has a reward.

    Args:
        spans: Spans in any order. The last one is the one with the highest sequence id, across attempts.

    Returns:
        The reward. None: no span has one.

    Example:
        rollout = store.start_rollout({"question": 1})
        assert find_final_reward(store.query_spans(rollout.rollout_id, "latest")) is None
    """
    last: tuple[int, int, str] | None = None
    found: float | None = None
    for span in spans:
        place = (span.sequence_id, span.start_time_ns, span.span_id)
        if last is None or place > last:
            reward = span_reward(span)
            if reward is not None:
                last, found = place, reward
    return found


def span_reward(span: Span) -> float | None:
    """Return the primary reward that a span holds, None if it holds none that can be read."""
    dimensions = read_reward(span.name, span.attributes).dimensions
    return dimensions[0].value if dimensions else None


def may_hold(span: trace_pb2.Span) -> bool:
    """Tell at a glance whether a span can hold a reward: whether `span_reward` is worth its time."""
    if span.name in (ANNOTATION, REWARD):
        return True
    return any(pair.key.startswith(REWARD) or pair.key in OUTPUTS for pair in span.attributes)


# Reading


class Dimension(NamedTuple):
    """One number of a reward.

    Attributes:
        name: Name of the dimension.
        value: A finite number.
    """

    name: str
    value: float


class RewardReading(NamedTuple):
    """What a span says about a reward.

    Attributes:
        is_marked: Whether the span is marked as a reward, even if its value cannot be read.
        dimensions: All dimensions, the primary one first. Empty: there is no reward, or none that can be read.
        faults: Keys of attributes that cannot be read, each with the reason.
    """

    is_marked: bool
    dimensions: tuple[Dimension, ...] = ()
    faults: tuple[tuple[str, str], ...] = ()


_NO_REWARD = RewardReading(is_marked=False)


def read_reward(name: str, attributes: Mapping[str, Any]) -> RewardReading:
    """Return the reward of a span, from the first of the places where one may be written.

    Args:
        name: Name of the span.
        attributes: Its attributes as Python values; only those that concern rewards are read.

    Returns:
        The reading. If the primary dimension cannot be read there are no dimensions.

    """
    numbered = _numbered(attributes)
    if numbered:
        return _read_numbered(numbered, attributes)
    if REWARD in attributes:
        return _read_value(REWARD, attributes[REWARD])
    faults: tuple[tuple[str, str], ...] = ()
    for key in OUTPUTS:
        if key in attributes:
            reading = _read_output(key, attributes[key])
            if reading.is_marked:
                return reading
            faults += reading.faults
    if "reward" in attributes and name in (ANNOTATION, REWARD):
        return _read_value("reward", attributes["reward"])
    return RewardReading(is_marked=False, faults=faults) if faults else _NO_REWARD


def _numbered(attributes: Mapping[str, Any]) -> dict[int, str]:
    """Return the keys `agentlightning.reward.<i>.value` by their number."""
    found: dict[int, str] = {}
    for key in attributes:
        if key.startswith(f"{REWARD}.") and key.endswith(".value"):
            digits = key[len(REWARD) + 1 : -len(".value")]
            if digits.isascii() and digits.isdecimal() and len(digits) < 10:
                found[int(digits)] = key
    return found


def _read_numbered(keys: Mapping[int, str], attributes: Mapping[str, Any]) -> RewardReading:
    dimensions: list[Dimension] = []
    faults: list[tuple[str, str]] = []
    for place, index in enumerate(sorted(keys)):
        value = _number(attributes[keys[index]])
        if value is None:
            faults.append((keys[index], MALFORMED))
            if place == 0:
                break  # another dimension must not pass for the primary one
            continue
        name = attributes.get(f"{REWARD}.{index}.name")
        named = name if isinstance(name, str) else ""
        dimensions.append(Dimension(named or (str(index) if place else PRIMARY), value))
    return RewardReading(True, tuple(dimensions), tuple(faults))


def _read_output(key: str, output: Any) -> RewardReading:
    """Read an output of AgentOps, which may say that it is a reward."""
    if isinstance(output, str):
        if '"reward"' not in output and "'reward'" not in output:
            return _NO_REWARD  # some other output: no need to parse it
        try:
            output = _parsed(output)
        except ValueError:
            fault = ((key, "not JSON"),) if output.lstrip().startswith("{") else ()
            return RewardReading(is_marked=False, faults=fault)
    if not isinstance(output, dict) or output.get("type") != "reward":
        return _NO_REWARD
    if output.get("value") is None:
        return _NO_REWARD  # of the type, and empty
    return _read_value(key, output["value"])


def _read_value(key: str, value: Any) -> RewardReading:
    """Read a reward given as one value: a number, a list of named ones, or the JSON text of either."""
    if isinstance(value, str):
        try:
            value = _parsed(value)
        except ValueError:
            value = None
    dimensions: list[Dimension] = []
    faults: list[tuple[str, str]] = []
    for item in value if isinstance(value, list) and value else [value]:
        name, amount = PRIMARY, item
        if isinstance(item, dict):
            name, amount = str(item.get("name") or PRIMARY), item.get("value")
        found = _number(amount)
        if found is not None:
            dimensions.append(Dimension(name, found))
        else:
            faults.append((key, MALFORMED))
            if not dimensions:
                break
    return RewardReading(True, tuple(dimensions), tuple(faults))


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _parsed(text: str) -> Any:
    """Return the value of JSON, or of what Python prints of it. Raises ValueError."""
    if len(text) > MAX_TEXT:
        raise ValueError("too long for a reward")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nests too deep") from None
    except ValueError:
        if "'" not in text:
            raise
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("neither JSON nor a Python literal") from None
