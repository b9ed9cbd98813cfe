"""Reads the metrics of a server as Prometheus does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from urllib.request import urlopen

#: Seconds in which a call that ended is counted.
SECONDS = 20


async def page_of(url: str) -> str:
    """Return the page of the metrics."""

    def read() -> str:
        with urlopen(url, timeout=10) as answer:
            return str(answer.read().decode())

    return await asyncio.to_thread(read)


def values_of(page: str) -> dict[str, float]:
    """Return the values of all samples by name and labels."""
    found = re.findall(r"^(\w+(?:\{.*?\})?) (\S+)$", page, re.MULTILINE)
    return {name: float(value) for name, value in found}


async def scrape(port: int) -> dict[str, float]:
    """Return the values of all samples of a local server by name and labels."""
    return values_of(await page_of(f"http://127.0.0.1:{port}/metrics"))


async def page_with(url: str, counts: Mapping[str, float]) -> str:
    """Return the page once it has these values.

    gRPC sends the answer of a call that fails before the handler of the call ends, so that a client
    can have it, and ask for the metrics, before the call is counted.
    """
    page = await page_of(url)
    try:
        async with asyncio.timeout(SECONDS):
            while not counts.items() <= values_of(page).items():
                await asyncio.sleep(0.01)
                page = await page_of(url)
    except TimeoutError:
        found = values_of(page)
        assert {name: found.get(name) for name in counts} == dict(counts)
    return page


async def scrape_with(port: int, counts: Mapping[str, float]) -> dict[str, float]:
    """Return the values of a local server once they include these; see `page_with`."""
    return values_of(await page_with(f"http://127.0.0.1:{port}/metrics", counts))
