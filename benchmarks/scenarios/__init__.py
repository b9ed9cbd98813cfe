"""The rows of the table, by number. Each takes a Bench and adds its figures."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.bench import Bench
from benchmarks.scenarios import calls, spans, stalls, state

Scenario = Callable[[Bench], None]

#: Name and function of each row.
SCENARIOS: dict[int, tuple[str, Scenario]] = {
    1: ("calls-memory", calls.memory),
    2: ("calls-sqlite", calls.sqlite),
    3: ("batches", calls.batches),
    4: ("spans-memory", spans.memory),
    5: ("spans-sqlite", spans.sqlite),
    6: ("otlp", spans.otlp),
    7: ("query", spans.query),
    8: ("waiters", calls.waiters),
    9: ("history", state.history),
    10: ("span-memory", spans.resident),
    11: ("start", state.start),
    12: ("file-size", spans.file_size),
    13: ("life", calls.life),
    14: ("in-process", state.in_process),
    15: ("stalls", stalls.stalls),
}
#: The rows of the regression guard.
QUICK = frozenset({1, 2, 4, 5, 15})
