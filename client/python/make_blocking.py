"""Write the blocking client from the asyncio one: `make blocking`, checked by `make drift`.

The asyncio modules are the source. What differs is words (`await`, `async for`, the names of types) and a
few phrases of docstrings; the tables below hold both. An `except asyncio.CancelledError` clause is left
out, because a blocking call cannot be cancelled. Ruff then settles imports, loops and line breaks.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent / "lightningstore" / "client"
NOTICE = (
    "# Generated from {source} by make_blocking.py. Edit that file, then run `make blocking`.\n"
)

#: The packages of the asyncio modules, and of their twins.
SOURCES, TARGETS = PACKAGE / "_async", PACKAGE / "_sync"
#: Written by hand: it says what the package is.
BY_HAND = "__init__.py"

#: Words, whole ones, in this order.
WORDS = {
    r"async def ": "def ",
    r"async with ": "with ",
    r"async for ": "for ",
    r"(?<!\w)\(await (\w[\w.]*\((?:[^()]|\([^()]*\))*\))\)": r"\1",
    r"await ": "",
    r"\s*\| AsyncIterable\[(?:[^\[\]]|\[[^\[\]]*\])*\]": "",
    r"AsyncIterable, ": "",
    r"AsyncGenerator\[(\w+), None\]": r"Generator[\1, None, None]",
    r"AsyncGenerator\b": "Generator",
    r"AsyncIterator\b": "Iterator",
    r"AsyncLightningStore\b": "LightningStore",
    r"\bAsync([A-Z]\w+)": r"\1",
    r"\basync_": "",
    r"_async(\w*)": r"_sync\1",
    r"__aenter__": "__enter__",
    r"__aexit__": "__exit__",
    r"__aiter__": "__iter__",
    r"__anext__": "__next__",
    r"StopAsyncIteration": "StopIteration",
    r"aclosing": "closing",
    r"aclose": "close",
    r"asyncio\.sleep": "time.sleep",
    r"import asyncio": "import time",
}

#: What docstrings say differently. Each has to occur, so that no line here outlives its text.
PHRASES = {
    "The asyncio client.": "The blocking client.",
    "in the asyncio client": "in the blocking client",
    "of the asyncio client": "of the blocking client",
    "server, for asyncio.\n": "server, for blocking code. Threads may share it.\n",
    "After a fork, after pickling and in another event loop\n    the client opens a": "After a fork and after pickling\n    the client opens a",
    ", as `open_store` does.": ".",
}


def without_cancellation(text: str) -> str:
    """Leave out each `except asyncio.CancelledError` clause with its body."""
    lines: list[str] = []
    depth: int | None = None
    for line in text.splitlines(keepends=True):
        indent = len(line) - len(line.lstrip())
        if depth is not None and (not line.strip() or indent > depth):
            continue
        depth = indent if line.strip() == "except asyncio.CancelledError:" else None
        if depth is None:
            lines.append(line)
    return "".join(lines)


def blocking(text: str, used: set[str]) -> str:
    """Return the blocking twin of a module; adds the phrases that were met to `used`."""
    text = without_cancellation(text)
    for phrase, instead in PHRASES.items():
        if phrase in text:
            used.add(phrase)
            text = text.replace(phrase, instead)
    for word, instead in WORDS.items():
        text = re.sub(word, instead, text)
    return text


def main() -> None:
    """Write all modules, and fail where a phrase was not met."""
    used: set[str] = set()
    targets = []
    sources = [path for path in sorted(SOURCES.glob("*.py")) if path.name != BY_HAND]
    for stale in {path.name for path in TARGETS.glob("*.py")} - {p.name for p in sources}:
        if stale != BY_HAND:
            (TARGETS / stale).unlink()
    for source in sources:
        target = TARGETS / source.name
        notice = NOTICE.format(source=f"{SOURCES.name}/{source.name}")
        target.write_text(notice + blocking(source.read_text(), used))
        targets.append(str(target))
    ruff = [sys.executable, "-m", "ruff"]
    # I: order of imports. UP028: `yield from`. C4: list(…) for a comprehension that copies.
    fixes = "I,UP028,C4,UP034,F401"
    subprocess.run(  # noqa: S603
        [*ruff, "check", "--quiet", "--fix", "--unsafe-fixes", "--select", fixes, *targets],
        check=True,
    )
    subprocess.run([*ruff, "format", "--quiet", *targets], check=True)  # noqa: S603
    if unused := set(PHRASES) - used:
        sys.exit(f"no module says any more: {', '.join(sorted(unused))}")


if __name__ == "__main__":
    main()
