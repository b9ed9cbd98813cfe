"""What a call costs, without a clock: instructions of Python, and bytes that it holds at a time."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """The cost of a call."""

    instructions: int
    #: A copy of a container is one instruction, but needs memory.
    bytes: int


async def cost_of(call: Callable[[], Awaitable[Any]]) -> Cost:
    """Return what a call costs, which is made twice."""
    instructions = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal instructions
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        instructions += event == "opcode"
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        await call()
    finally:
        sys.settrace(former)
    tracemalloc.start()
    try:
        await call()
        return Cost(instructions, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def is_about(cost: Cost, other: Cost) -> bool:
    """Return whether a cost is not much higher than another one: at most twice as high, and a block of places."""
    return (
        cost.instructions < 2 * other.instructions + 500 and cost.bytes < 2 * other.bytes + 20_000
    )
