"""The lines of a file of JSON, which may be packed by gzip."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Iterate over the lines that are not blank, each with its number.

    Raises ValueError for data that gzip cannot unpack, or that another program has packed.
    """
    with Path(path).open("rb") as file:
        head = file.read(8)
    if _ZSTD in head:  # the collector writes a length before it
        raise ValueError("it is packed by zstd: plain lines of JSON, or packed by gzip, are wanted")
    number = 0
    with gzip.open(path) if head.startswith(_GZIP) else Path(path).open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"line {number + 1}: gzip cannot unpack it: {error}") from None
