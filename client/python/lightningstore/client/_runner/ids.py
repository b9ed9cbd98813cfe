"""Trace and span ids from the operating system.

The generator of the SDK uses `random`. An agent that calls `random.seed`, as many do for reproducible results, would
generate the same ids in each attempt, and the store takes a span with a known id for a duplicate.
"""

from __future__ import annotations

import os

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator


class SystemIdGenerator(RandomIdGenerator):
    """Generates ids of traces and spans that are unique despite `random.seed` and forks.

    Example:
        from opentelemetry.sdk.trace import TracerProvider

        provider = TracerProvider(id_generator=SystemIdGenerator())
    """

    def generate_span_id(self) -> int:
        """Generate the id of a span.

        Returns:
            64 random bits, never 0.
        """
        return _random(8)

    def generate_trace_id(self) -> int:
        """Generate the id of a trace.

        Returns:
            128 random bits, never 0.
        """
        return _random(16)


def _random(size: int) -> int:
    while not (number := int.from_bytes(os.urandom(size), "big")):
        pass  # all zeros: not an id
    return number


def take_from_system(provider: TracerProvider) -> None:
    """Make a provider use ids from the operating system, unless its generator is a custom one.

    The generator is changed and not replaced, because tracers that exist already hold it too.
    """
    generator = provider.id_generator
    if type(generator) is RandomIdGenerator:
        system = SystemIdGenerator()
        vars(generator).update(
            generate_span_id=system.generate_span_id, generate_trace_id=system.generate_trace_id
        )
