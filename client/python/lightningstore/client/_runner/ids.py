"""Trace and span ids from the operating system.

The SDK's own generator takes them from `random`. An agent that seeds that, as many do for the sake of
repeatable results, would make the same ids again in each attempt and after each `random.seed`, and the store
takes a span with an id that it knows for a repeat.
"""

from __future__ import annotations

import os

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator


class SystemIdGenerator(RandomIdGenerator):
    """Makes ids of traces and spans that `random.seed` and forks do not repeat.

    For a tracer provider of your own: `TracerProvider(id_generator=SystemIdGenerator())`.
    """

    def generate_span_id(self) -> int:
        """Return 64 random bits, not all of them 0."""
        return _random(8)

    def generate_trace_id(self) -> int:
        """Return 128 random bits, not all of them 0."""
        return _random(16)


def _random(size: int) -> int:
    while not (number := int.from_bytes(os.urandom(size), "big")):
        pass  # all zeros: not an id
    return number


def take_from_system(provider: TracerProvider) -> None:
    """Make a provider take its ids from the operating system, unless it has a generator of its own kind.

    The generator is changed, not replaced: tracers that the provider made before hold it too.
    """
    generator = provider.id_generator
    if type(generator) is RandomIdGenerator:
        system = SystemIdGenerator()
        vars(generator).update(
            generate_span_id=system.generate_span_id, generate_trace_id=system.generate_trace_id
        )
